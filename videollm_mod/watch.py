"""`videollm-mod watch SOURCE`: source -> session -> sinks, with a clock, questions and a terminal.

    videollm-mod watch clip.mp4 --ask "What is in view?@12.5" --jsonl events.jsonl --srt clip.srt --video narrated.mp4

Flags and outputs are checked before anything is opened, the source before the model is loaded. Heavy modules are
imported where they are used: `watch --help` must not wait for torch.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from videollm_mod.flags import (
    BUNDLED,
    PLANS,
    POLICY_NAMES,
    REDUCTION_HELP,
    check_keep,
    check_least,
    check_probability,
    parse_size,
    reduced_by,
    stored_as,
)
from videollm_mod.pace import Interrupts, catch_interrupts, close_source, sleep_until

if TYPE_CHECKING:
    from videollm_mod.depth import DepthPlan
    from videollm_mod.model import StreamingVideoLM
    from videollm_mod.show.terminal import Terminal
    from videollm_mod.stream.pipeline import Pipeline
    from videollm_mod.stream.session import StreamSession
    from videollm_mod.stream.sinks import Sink
    from videollm_mod.types import StreamEvent
    from videollm_mod.video import VideoSource


PICTURES = ("picture", "strip")  # outputs that are a png or the like
POLICY_HELP = (
    f"What is forgotten of a long stream: {POLICY_NAMES}. If not given, older frames go where there is a window, and "
    "words with them."
)
LATE = 3.0  # seconds behind a file that is played in real time, from which on it is worth a word
TOO_SLOW = (
    "{:.0f} s behind the video: this machine is too slow for it, or busy; try --threads 1, leave frames out with "
    "--drop newest, or play it as fast as can be with --speed max"
)
PLAN_HELP = f"Which layers route: {PLANS}; the model's own if not given."


@dataclass(frozen=True)
class StreamFlags:
    """Flags of every command that runs a model over a source."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A video file, a folder of images, an http or rtsp address, camera:0, or - for standard input."""
    fps: float = 2.0
    """Frames per second that the model sees."""
    start: float = 0.0
    """Begin at this time of the source, seconds."""
    end: float | None = None
    """Stop at this time of the source, seconds."""
    ask: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="TEXT@SECONDS")] = ()
    """A question and when to put it; may be given several times."""
    speed: Literal["realtime", "max"] = "max"
    """How fast a file is played; a live source is always realtime."""
    model: str = "tiny"
    """A bundled model, tiny (coloured shapes) or camera (what fixed cameras see), a model's folder, or a hub id such as
    owner/name."""
    keep: float | None = None
    """Share of each frame's vision tokens that routed layers keep, in (0, 1]; the model's own if not given."""
    plan: Annotated[str | None, tyro.conf.arg(help=PLAN_HELP)] = None
    reduction: Annotated[str | None, tyro.conf.arg(metavar="NAME=SHARE", help=REDUCTION_HELP)] = None
    dtype: Literal["float32", "bfloat16", "int8", "int4"] = "float32"
    """How the model's weights are stored; the last two round the decoder's, with torchao (`[quant]`)."""
    kv: Literal["int8", "fp8"] | None = None
    """How keys and values are stored; as they are if not given."""
    threshold: float | None = None
    """Speak when the probability of silence falls below this; the model's own if not given."""
    window: float | None = None
    """Seconds of video that the model remembers whole: what is older is forgotten, so that memory stays bounded; the
    model's own if not given, inf to forget nothing."""
    policy: Annotated[str | None, tyro.conf.arg(help=POLICY_HELP)] = None
    budget: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None
    """Bytes that the entries of the KV cache never exceed, such as 64MB; no bound if not given."""
    drop: Literal["auto", "newest", "all", "adaptive"] = "auto"
    """What a model that is too slow sees: "newest" leaves out all that has been overtaken, "adaptive" lowers the frame
    rate as far as is needed, "all" leaves out nothing; "auto" is "newest" for a live source and "all" for a file."""
    threads: int | None = None
    """CPU threads; all of them if not given."""


@dataclass(frozen=True)
class WatchConfig(StreamFlags):
    """Narrate a source, and write down what was said."""

    jsonl: Path | None = None
    """Write events here, one JSON object a line."""
    srt: Path | None = None
    """Write subtitles here."""
    video: Path | None = None
    """Write an annotated mp4 here: the picture, the narration below it, and beside it what each routed layer keeps."""
    strip: Path | None = None
    """Write one picture (png) here: for every sentence the frame that it was said of."""


@dataclass(frozen=True)
class Question:
    """Something to ask, and when: seconds of the source."""

    text: str
    time: float


@dataclass
class Tally:
    """What a run has come to; becomes the final JSON."""

    frames: int = 0
    events: int = 0
    first: float = 0.0  # time of the first and of the newest frame, seconds
    last: float = 0.0
    wall_seconds: float = 0.0
    lag: float = 0.0  # of the newest frame, and the largest: how late the model was done with it, seconds
    lag_max: float = 0.0
    dropped: int = 0
    drops: dict[str, int] = dataclasses.field(default_factory=dict)  # the same by reason
    interrupted: bool = False
    answers: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def count_drops(self, drops: dict[str, int]) -> None:
        self.drops, self.dropped = drops, sum(drops.values())


def watch(config: WatchConfig) -> dict[str, Any]:
    """Run the command; returns the final JSON. Raises InputError for what the user can mend."""

    def sinks(video: VideoSource, session: StreamSession) -> list[Sink]:
        from videollm_mod.show.overlay import VideoSink
        from videollm_mod.show.strip import StripSink
        from videollm_mod.stream.sinks import JsonlSink, SrtSink

        made: list[Sink] = []
        if config.jsonl:
            made.append(JsonlSink(config.jsonl))
        if config.srt:
            made.append(SrtSink(config.srt))
        if config.video:
            made.append(VideoSink(config.video, video.fps, session.grid))
        if config.strip:
            made.append(StripSink(config.strip))
        return made

    outputs = {"jsonl": config.jsonl, "srt": config.srt, "video": config.video, "strip": config.strip}
    return run(config, outputs, sinks, record_kept=config.video is not None)


def run(
    flags: StreamFlags,
    outputs: dict[str, Path | None],
    make_sinks: Callable[[VideoSource, StreamSession], Sequence[Sink]],
    record_kept: bool,
) -> dict[str, Any]:
    """Check everything, open the source, load the model, follow the stream; returns the final JSON."""
    from videollm_mod.show.terminal import Terminal

    questions, plan = check_flags(flags)
    check_outputs(flags.source, outputs)
    tally = Tally()
    with ExitStack() as stack:
        terminal = stack.enter_context(Terminal(flags.source))
        stack.enter_context(_warnings_to(tally.warnings, terminal))
        from videollm_mod.video import open_video

        if flags.threads:
            import torch

            torch.set_num_threads(flags.threads)
        interrupts = stack.enter_context(catch_interrupts())
        video = open_video(flags.source, fps=flags.fps, start=flags.start, end=flags.end)
        stack.callback(close_source, video)
        check_times(questions, flags, video.duration)
        # seconds to import and to load, which Ctrl-C may not cut short; a source that cannot be opened is told before
        with interrupts.shielded():
            from videollm_mod.model import load
            from videollm_mod.stream.pipeline import Pipeline
            from videollm_mod.stream.session import StreamSession

            wishes = stored_as(flags.dtype, flags.kv) | reduced_by(flags.reduction)
            model = load(flags.model, plan=plan, keep=flags.keep, **wishes)
            session = StreamSession(
                model,
                threshold=flags.threshold,
                window=flags.window,
                policy=flags.policy,
                budget=parse_size("--budget", flags.budget),
                record_kept=record_kept,
            )
        terminal.begin(flags.start, _earliest(video.duration, flags.end))
        known = len(video.warnings)
        for message in _joined(video, flags.fps, unlike_training(model, video.fps)):
            warnings.warn(message, stacklevel=1)
        stack.push(lambda kind, *error: _tell_parts(kind, outputs, terminal))
        sinks = [stack.enter_context(sink) for sink in make_sinks(video, session)]
        realtime = flags.speed == "realtime" or video.live
        drop = flags.drop if flags.drop != "auto" else "newest" if video.live else "all"
        encode = session.encode if model.device.type != "cpu" else None
        with Pipeline(video, drop=drop, live=video.live, realtime=realtime, encode=encode) as frames:
            follow(frames, 1 / video.fps, session, sinks, questions, realtime, terminal, tally, interrupts)
        for sink in sinks:
            sink.finish()
        for message in video.warnings[known:]:  # those about damage come at the end
            warnings.warn(message, stacklevel=1)
        state = session.state()
        used = model.plan
    return {
        "frames": tally.frames,
        "events": tally.events,
        "seconds": round(_watched(tally, 1 / video.fps, _earliest(video.duration, flags.end)), 3),
        "wall_seconds": round(tally.wall_seconds, 3),
        "fps": round(tally.frames / tally.wall_seconds, 2) if tally.wall_seconds else 0.0,
        "lag_max": round(tally.lag_max, 3),
        "dropped": tally.dropped,
        "drops": tally.drops,
        "drop": drop,
        "kv_bytes": state.kv_bytes,
        "kv_bytes_dense": state.kv_bytes_dense,
        "policy": state.policy,
        "budget": state.budget,
        "forgotten": state.forgotten,
        "questions": tally.answers,
        "warnings": tally.warnings,
        "files": {name: str(path) for name, path in outputs.items() if path is not None and path.exists()},
        "source": flags.source,
        "model": flags.model,
        "plan": used.to_dict(),
        "reduction": reduced_by(flags.reduction).get("reduction"),
        "interrupted": tally.interrupted,
    }


def _watched(tally: Tally, period: float, end: float | None) -> float:
    """Seconds from the first frame to the end of what the newest one shows: `period` later, or where all ends."""
    if not tally.frames:
        return 0.0
    shown = tally.last + period
    return max(tally.last, shown if end is None else min(shown, end)) - tally.first  # an estimated end may come early


def _tell_parts(kind: type[BaseException] | None, outputs: dict[str, Path | None], terminal: Terminal) -> None:
    """After an error: where what was said until then is. The outputs' own names are as they were before."""
    from videollm_mod.files import part_name

    if kind is None or issubclass(kind, KeyboardInterrupt):
        return
    kept = [str(part) for path in outputs.values() if path is not None and (part := part_name(path)).exists()]
    if kept:
        terminal.note(f"what was said before the error is in {' and '.join(kept)}")


# -- what can be checked before anything is opened ---------------------------------------------------------------------


def check_flags(flags: StreamFlags) -> tuple[list[Question], Any]:
    """Raise InputError for a flag that cannot be right; returns the questions by time, and the plan for `load`."""
    from videollm_mod.depth.plan import parse_layers
    from videollm_mod.hub import is_hub_id
    from videollm_mod.types import InputError

    if not (math.isfinite(flags.fps) and flags.fps > 0):
        raise InputError(f"--fps {flags.fps:g} makes no sense; give a number above 0, such as 2.")
    if not (math.isfinite(flags.start) and flags.start >= 0):
        raise InputError(f"--start {flags.start:g} makes no sense; give 0 or more seconds.")
    if flags.end is not None and not flags.end > flags.start:  # also refuses NaN
        raise InputError(f"--end {flags.end:g} does not lie after --start {flags.start:g}; give a later end.")
    check_keep(flags.keep)
    reduced_by(flags.reduction)
    check_probability(threshold=flags.threshold)
    check_least(1, threads=flags.threads)
    if flags.window is not None and not flags.window > 0:  # also refuses NaN
        raise InputError(f"--window {flags.window:g} is no time; give seconds of video, such as 30, or inf.")
    check_policy(flags.policy, flags.window, parse_size("--budget", flags.budget))
    if flags.model not in BUNDLED and not Path(flags.model).is_dir() and not is_hub_id(flags.model):
        raise InputError(
            f"--model {flags.model} is neither 'tiny', 'camera' nor a folder; give a folder that save_pretrained "
            "wrote, or a hub id such as owner/name."
        )
    return sorted(map(parse_question, flags.ask), key=lambda question: question.time), parse_layers(flags.plan)


def check_policy(policy: str | None, window: float | None, budget: int | None) -> None:
    """Raise InputError for a policy that does not exist, and for what does not go together; budget in bytes."""
    from videollm_mod.stream.policies import policy_of

    policy_of(policy, window, budget=budget)


def parse_question(words: str) -> Question:
    """ "TEXT@SECONDS" -> Question. The last @ counts: the text may have some of its own."""
    from videollm_mod.types import InputError

    text, at, seconds = words.rpartition("@")
    try:
        when = float(seconds)
    except ValueError:
        when = math.nan
    if not at or not text.strip() or not (math.isfinite(when) and when >= 0):
        raise InputError(f"--ask '{words}' is not TEXT@SECONDS; write for example \"What is in view?@12.5\".")
    return Question(text.strip(), when)


def check_outputs(source: str, outputs: dict[str, Path | None]) -> None:
    """Raise InputError if an output cannot be written, is named twice, or is the source itself."""
    from videollm_mod.files import check_writable
    from videollm_mod.types import InputError
    from videollm_mod.video import VideoWriter

    seen = {os.path.realpath(source): "the source"}
    for name, path in outputs.items():
        if path is None:
            continue
        real = os.path.realpath(path)
        if real in seen:
            raise InputError(f"--{name} {path} is also {seen[real]}; give it a name of its own.")
        seen[real] = f"--{name}"
        check_writable(path)
        if name == "video":
            VideoWriter(path, fps=1)  # checks the kind of file, and writes nothing before its first frame
        if name in PICTURES and path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            raise InputError(f"--{name} {path} is not a picture's name; end it in .png.")


def check_times(questions: Sequence[Question], flags: StreamFlags, duration: float | None) -> None:
    """Raise InputError for a question put before the first frame or, where the duration is known, after the last."""
    from videollm_mod.types import InputError

    end = _earliest(duration, flags.end)
    for question in questions:
        asked = f"--ask '{question.text}' at {question.time:.10g} s"
        if question.time < flags.start:
            raise InputError(f"{asked} is before --start {flags.start:g}; ask later or start earlier.")
        if end is not None and question.time > end + 0.005:  # durations in containers are rounded
            raise InputError(f"{asked} is beyond the end ({end:.2f} s); ask earlier.")


def _earliest(*times: float | None) -> float | None:
    return min((time for time in times if time is not None), default=None)


def unlike_training(model: StreamingVideoLM, fps: float) -> list[str]:
    """What differs from the model's training, one sentence each: the frame rate, the depth plan."""
    messages = []
    trained_fps = model.settings.fps
    if abs(fps / trained_fps - 1) > 0.05:  # 1.99 for 2 is not worth a word
        rate = f"{trained_fps:.3g} frame{'s' * (trained_fps != 1)} per second"
        messages.append(f"the model was trained at {rate}; at {fps:.3g} it may misjudge motion")
    trained, used, layers = model.trained_plan, model.plan, model.num_layers
    if trained is None:
        return messages
    experts = set(trained.routed(layers)) if trained.has_experts else set()
    untrained = used.has_experts and not set(used.routed(layers)) <= experts  # loading has warned of them
    if used.ratios(layers) != trained.ratios(layers) and not untrained:
        messages.append(
            f"the model was trained with the plan {_plan_words(trained)}; with {_plan_words(used)} it may speak badly"
        )
    return messages


def _joined(video: VideoSource, asked: float, unlike: list[str]) -> list[str]:
    """The source's warnings and the model's. Where fewer frames come than were asked for, both have one cause."""
    if asked > video.fps * 1.005 and unlike and "trained at" in unlike[0]:  # the source's word on that is its newest
        return [*video.warnings[:-1], f"{video.warnings[-1]}; {unlike[0]}", *unlike[1:]]
    return [*video.warnings, *unlike]


def _plan_words(plan: DepthPlan) -> str:
    """A plan as its flags say it: `interleaved, keep 0.2`."""
    layers = plan.layers if isinstance(plan.layers, str) else ",".join(map(str, plan.layers))
    return layers if layers in ("full", "early-exit", "layer-skip") else f"{layers}, keep {plan.keep}"


# -- the loop ----------------------------------------------------------------------------------------------------------


def follow(
    frames: Pipeline,
    period: float,
    session: StreamSession,
    sinks: Sequence[Sink],
    questions: Sequence[Question],
    realtime: bool,
    terminal: Terminal,
    tally: Tally,
    interrupts: Interrupts,
) -> None:
    """Push every frame when it is due, ask every question when its time has come, tell sinks and terminal.

    period: how long a frame is shown, seconds.
    """
    waiting, slow = list(questions), False

    def say(words: Iterator[str | StreamEvent], now: float, question: Question | None = None) -> None:
        for item in words:
            if isinstance(item, str):
                terminal.word(item, now, question.text if question else None)
                continue
            tally.events += 1
            terminal.event(item)
            for sink in sinks:
                sink.event(item)
            if question is not None:
                tally.answers.append({"text": question.text, "time": question.time, "answer": item.text})

    def ask(question: Question, when: float) -> None:
        with interrupts.shielded():
            say(session.ask_iter(question.text, when), max(tally.last, when), question)

    began = time.monotonic()
    try:
        for ready in frames:
            frame, due = ready.frame, ready.due
            if not tally.frames:
                tally.first = frame.time
            while waiting and waiting[0].time < frame.time:
                question = waiting.pop(0)
                if realtime:
                    sleep_until(due - (frame.time - question.time))
                ask(question, question.time)
            if realtime:
                sleep_until(due)
            with interrupts.shielded():
                say(session.push_iter(ready.tokens or frame), frame.time)
                for sink in sinks:
                    sink.frame(frame, session)
                tally.frames, tally.last = tally.frames + 1, frame.time
                now = time.monotonic()
                tally.lag = max(0.0, now - due)
                tally.count_drops(frames.dropped)
                tally.lag_max = max(tally.lag_max, tally.lag)
                tally.wall_seconds = now - began
                terminal.progress(tally, session)
                if tally.lag > LATE and realtime and not (slow or frames.live):
                    slow = True
                    warnings.warn(TOO_SLOW.format(tally.lag), stacklevel=1)
        end = tally.last + period  # of what the last frame shows
        for question in waiting:
            if question.time > end + 0.005:
                message = f"the question at {question.time:g} s was put at the end of the source, {end:.4g} s"
                warnings.warn(message, stacklevel=1)
            ask(question, min(question.time, end))
    except KeyboardInterrupt:
        tally.interrupted = True
    finally:
        interrupts.shield = True  # files are closed next
        tally.count_drops(frames.dropped)
        tally.wall_seconds = time.monotonic() - began


@contextmanager
def _warnings_to(messages: list[str], terminal: Terminal) -> Iterator[None]:
    """Warnings become one line each on the terminal, and an entry of the final JSON."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if str(message) not in messages:
            messages.append(str(message))
            terminal.warn(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield
