"""The table of benchmarks: name -> who reads it, how its streams are played, who judges what became of them.

A new benchmark is a reader (data/), a line here, and a judge if none of those there fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollm_mod.data.reading import Source
from videollm_mod.data.registry import DATA_SETS, DataSet
from videollm_mod.data.segments import Segment, Stream, read_streams
from videollm_mod.evaluate.judges import Anticipation, Classes, Judge, Labels, Narration, Procedure, Tasks
from videollm_mod.evaluate.labels import ActionSpace, LabelSpace, plain
from videollm_mod.types import InputError

LTA_CANDIDATES = 5
ACTION_WORDS = 512  # tokens of twenty actions, or of a procedure, at most


@dataclass(frozen=True)
class Settings:
    """What judges must know of a run."""

    threshold: float  # the model's, of the probability of silence
    tolerance: float  # seconds that a sentence may be off
    compat: bool
    meteor: bool = False


MakeJudge = Callable[[Source, Settings], Judge]


@dataclass(frozen=True)
class Benchmark:
    """One line of the table."""

    name: str
    data: DataSet
    protocol: str  # of playing.play
    judge: MakeJudge
    main: tuple[str, ...]  # the metrics that a report shows first
    candidates: int = 1
    tokens: int | None = None
    forced: bool = True

    def read(self, data: Path, split: str | None, **options: Any) -> tuple[Source, Iterator[Stream]]:
        """Its source and its streams, from the folder (or, for video-qa and narration, the file) `data`."""
        if self.data.reader.startswith("own:"):
            source = Source(data, split or "all", self.name, **options)
            return source, _own_streams(source)
        if not data.exists():
            raise InputError(f"there is no {data}; {self.name} is to be had at: {self.data.page}.")
        if data.is_file():  # one file of questions
            source = Source(
                data, split or self.data.splits[-1], self.name, self.data.page, self.data.video_page, **options
            )
        else:
            source = self.data.source(data, split, **options)
        return source, self.data.read(source)


def _own_streams(source: Source) -> Iterator[Stream]:
    if not source.root.is_file():
        raise InputError(f"there is no file {source.root}; give a .jsonl file of streams (docs/data.md).")

    def skip(number: int, error: InputError) -> None:
        source.skipped.append(str(error))

    for stream in read_streams(source.root, skip if source.skip_bad else None):
        named = str(stream.meta.get("video", stream.id))
        yield Stream(
            stream.id,
            stream.segments,
            stream.video,
            stream.features,
            stream.fps,
            stream.duration or _length(stream),
            {**stream.meta, "video": str(stream.video or stream.features or named)},
        )


def _length(stream: Stream) -> float | None:
    """Of a stream that says neither how long its video is nor what of it is watched."""
    if stream.video is None or not stream.video.exists() or stream.of("stream"):
        return None
    from videollm_mod.video import open_video

    with open_video(stream.video) as source:
        return source.duration


# -- judges ------------------------------------------------------------------------------------------------------------


def _narration(source: Source, settings: Settings) -> Judge:
    return Narration(settings.threshold, settings.tolerance, settings.compat, settings.meteor)


def _coin_labels(source: Source, kind: str, compat: bool) -> LabelSpace:
    from videollm_mod.data import coin

    if not compat:
        return LabelSpace(plain(label) for label in coin.labels(source)[kind])
    task = kind == "tasks"  # the public code knows the labels of the evaluated split only
    streams = coin.read_task(_bare(source)) if task else coin.read_step(_bare(source))
    return LabelSpace(plain(stream.replies[0].text) for stream in streams)


def _bare(source: Source) -> Source:
    """The same files, whichever videos there are."""
    return Source(source.root, source.split, source.name, source.page, source.video_page, skip_bad=True)


def _coin_steps(source: Source, settings: Settings) -> Judge:
    return Labels(_coin_labels(source, "steps", settings.compat), settings.threshold, settings.compat)


def _coin_tasks(source: Source, settings: Settings) -> Judge:
    return Labels(_coin_labels(source, "tasks", settings.compat), settings.threshold, settings.compat)


def _coin_procedure(source: Source, settings: Settings) -> Judge:
    return Procedure(_coin_labels(source, "steps", settings.compat), settings.threshold, settings.compat)


def _ego4d_lta(source: Source, settings: Settings) -> Judge:
    from videollm_mod.data.ego4d import taxonomy

    verbs, nouns = taxonomy(source)
    return Anticipation(
        ActionSpace([plain(v) for v in verbs], [plain(n) for n in nouns]), settings.threshold, settings.compat
    )


def _epic_space(source: Source) -> ActionSpace:
    from videollm_mod.data.epic import classes

    verbs, nouns = classes(source)
    return ActionSpace(*([plain(part[number]) for number in range(len(part))] for part in (verbs, nouns)))


def _epic_lta(source: Source, settings: Settings) -> Judge:
    return Anticipation(_epic_space(source), settings.threshold, settings.compat)


def _epic_anticipation(source: Source, settings: Settings) -> Judge:
    space = _epic_space(source)
    nouns = len(space.nouns)

    def numbered(verb: int, noun: int) -> Mapping[str, int]:
        return {"verb": verb, "noun": noun, "action": verb * nouns + noun}

    def read(text: str) -> Mapping[str, int]:
        return numbered(*space.numbers([text])[0])

    def true(reply: Segment) -> Mapping[str, int]:
        return numbered(int(reply.meta["verb"]), int(reply.meta["noun"]))

    return Classes(("verb", "noun", "action"), read, true, settings.threshold, top=5, compat=settings.compat)


def _keystep(source: Source, settings: Settings) -> Judge:
    from videollm_mod.data.egoexo4d import labels

    names = {plain(text): number for number, text in sorted(labels(source).items(), reverse=True)}
    space = LabelSpace(names)

    def read(text: str) -> Mapping[str, int]:
        return {"step": names[space.nearest([plain(text)])[0]]}

    def true(reply: Segment) -> Mapping[str, int]:
        return {"step": names.get(plain(reply.text), int(reply.meta["step"]))}

    return Classes(("step",), read, true, settings.threshold, compat=settings.compat)


def _ovo(source: Source, settings: Settings) -> Judge:
    from videollm_mod.data.ovo_bench import GROUPS

    return Tasks(GROUPS, settings.threshold, settings.compat)


def _streaming(source: Source, settings: Settings) -> Judge:
    from videollm_mod.data.streamingbench import GROUPS

    return Tasks(GROUPS, settings.threshold, settings.compat)


def _questions(source: Source, settings: Settings) -> Judge:
    return Tasks({"questions": ("question",)}, settings.threshold, settings.compat)


# -- the table ---------------------------------------------------------------------------------------------------------

_OVO = DataSet(
    "ovo-bench", "ovo_bench:read_ovo_bench", "Backward, real-time and forward questions.", ("ovo_bench_new.json",),
    "git clone https://github.com/JoeLeelyf/OVO-Bench (its folder data)",
    "src_videos.tar of huggingface.co/datasets/JoeLeelyf/OVO-Bench", ("test",),
)  # fmt: skip
_STREAMING = DataSet(
    "streamingbench", "streamingbench:read_streamingbench", "Choices at their times, and proactive output.",
    ("questions_real.json", "questions_omni.json", "questions_sqa.json", "questions_proactive.json"),
    "git clone https://github.com/THUNLP-MT/StreamingBench (its folder src/data)",
    "huggingface.co/datasets/mjuicem/StreamingBench", ("test",),
)  # fmt: skip
_QA = DataSet(
    "video-qa", "video_qa:read_video_qa", "Questions with one answer each.", ("a .json or .jsonl file",),
    "the data set's own page", "the data set's own page", ("test",),
)  # fmt: skip
_OWN = DataSet(
    "narration", "own:", "Timed sentences of your own.", ("a .jsonl file",), "docs/data.md", "docs/data.md", ("all",)
)

_TOLD = ("iou_f1", "time_f1", "cider", "lm_ppl", "time_diff", "fluency", "lm_correctness")
_ACCURACY = ("accuracy", "exact_replies")
_ED = ("verb_ed", "noun_ed", "action_ed")


def _narrations(name: str, data: DataSet | None = None) -> Benchmark:
    return Benchmark(name, data or DATA_SETS[name], "narrate", _narration, _TOLD)


BENCHMARKS: dict[str, Benchmark] = {
    one.name: one
    for one in (
        _narrations("ego4d-narration"),
        _narrations("ego4d-narration-refined"),
        Benchmark("ego4d-lta", DATA_SETS["ego4d-lta"], "answer", _ego4d_lta, _ED, LTA_CANDIDATES, ACTION_WORDS),
        _narrations("egoexo4d-narration"),
        Benchmark("egoexo4d-keystep", DATA_SETS["egoexo4d-keystep"], "answer", _keystep, ("step_top1", "step_recall")),
        Benchmark("coin-step", DATA_SETS["coin-step"], "answer", _coin_steps, _ACCURACY),
        Benchmark("coin-task", DATA_SETS["coin-task"], "answer", _coin_tasks, _ACCURACY),
        Benchmark("coin-next", DATA_SETS["coin-next"], "answer", _coin_steps, _ACCURACY),
        Benchmark(
            "coin-procedure", DATA_SETS["coin-procedure"], "answer", _coin_procedure, _ACCURACY, 1, ACTION_WORDS
        ),
        Benchmark(
            "coin-procedure-goal", DATA_SETS["coin-procedure-goal"], "answer", _coin_procedure, _ACCURACY, 1,
            ACTION_WORDS,
        ),
        _narrations("epic-narration"),
        Benchmark(
            "epic-anticipation", DATA_SETS["epic-anticipation"], "answer", _epic_anticipation,
            ("action_top1", "action_recall_top5", "verb_recall_top5", "noun_recall_top5"), 5,
        ),
        Benchmark("epic-lta", DATA_SETS["epic-lta"], "answer", _epic_lta, _ED, LTA_CANDIDATES, ACTION_WORDS),
        Benchmark("ovo-bench", _OVO, "answer", _ovo, ("accuracy", "backward", "real_time", "forward"), forced=False),
        Benchmark(
            "streamingbench", _STREAMING, "answer", _streaming,
            ("accuracy", "real_time", "omni", "contextual", "proactive_own", "proactive_polled"), forced=False,
        ),
        Benchmark("video-qa", _QA, "answer", _questions, ("accuracy",), forced=False),
        _narrations("narration", _OWN),
    )
}  # fmt: skip


def protocol_of(benchmark: Benchmark, stream: Stream) -> str:
    """How a stream is played: StreamingBench has two kinds."""
    return "proactive" if "proactive" in stream.meta else benchmark.protocol
