"""Data sets by name: who reads them, which files they need, and the page or command that gives those."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollm_mod.data.reading import Source
from videollm_mod.data.segments import Stream
from videollm_mod.types import InputError

Reader = Callable[[Source], Iterator[Stream]]

EGO4D = "pip install ego4d; ego4d --output_directory DIR --version v2 --datasets annotations (licence: ego4d-data.org)"
EGO4D_VIDEOS = "ego4d --output_directory DIR --version v2 --datasets full_scale"
ONLINE = "huggingface.co/datasets/chenjoya/videollm-online-chat-ego4d-134k"
EGOEXO = "pip install ego4d; egoexo -o DIR --parts annotations metadata (licence: ego-exo4d-data.org)"
EGOEXO_VIDEOS = "egoexo -o DIR --parts downscaled_takes/448 --views ego"
COIN = "git clone https://github.com/coin-dataset/annotations"
COIN_VIDEOS = "the video_url of COIN.json with a downloader of your choice (coin-dataset.github.io)"
EPIC = "git clone https://github.com/epic-kitchens/epic-kitchens-100-annotations"
EPIC_VIDEOS = "https://github.com/epic-kitchens/epic-kitchens-download-scripts"
CLASSES = ("EPIC_100_verb_classes.csv", "EPIC_100_noun_classes_v2.csv")


@dataclass(frozen=True)
class DataSet:
    """One task of a data set."""

    name: str
    reader: str  # "module of this folder:function"
    about: str
    files: tuple[str, ...]  # what it reads; {split} stands for the split
    page: str  # what gives them
    video_page: str
    splits: tuple[str, ...]  # the last one is evaluated, and read unless another is asked for

    @property
    def read(self) -> Reader:
        """Its reader."""
        module, function = self.reader.split(":")
        read: Reader = getattr(importlib.import_module(f"videollm_mod.data.{module}"), function)
        return read

    def source(self, root: str | Path, split: str | None = None, **options: Any) -> Source:
        """Its files in the folder `root`; options are fields of Source. Raises InputError for another split."""
        split = split or self.splits[-1]
        if split not in self.splits:
            raise InputError(f"{self.name} has no split '{split}'; take one of {', '.join(self.splits)}.")
        if not Path(root).is_dir():
            raise InputError(f"there is no folder {root} for {self.name}; get its annotations with: {self.page}.")
        return Source(Path(root), split, self.name, self.page, self.video_page, **options)


def _coin(task: str, about: str) -> DataSet:
    reader = f"coin:read_{task.replace('-', '_')}"
    return DataSet(f"coin-{task}", reader, about, ("COIN.json",), COIN, COIN_VIDEOS, ("train", "test"))


_NARRATIONS = ("all_narrations_redacted.json", "*_val.json and *_test_unannotated.json of the benchmarks")
_SETS = (
    DataSet(
        "ego4d-narration", "ego4d:read_narration", "What the camera wearer does, told as it happens; raw narrations.",
        _NARRATIONS, EGO4D, EGO4D_VIDEOS, ("train", "test", "val"),
    ),
    DataSet(
        "ego4d-narration-refined", "ego4d:read_refined", "The same, as VideoLLM-online refined the sentences.",
        ("refined_narration_stream_{split}.json",), ONLINE, EGO4D_VIDEOS, ("train", "val"),
    ),
    DataSet(
        "ego4d-livechat", "ego4d:read_live_chat", "Made-up conversations over GoalStep's videos, to train on.",
        ("goalstep_livechat_trainval_filtered_21k.json",), ONLINE, EGO4D_VIDEOS, ("trainval",),
    ),
    DataSet(
        "ego4d-lta", "ego4d:read_lta", "Long-term anticipation: twenty actions to come, after eight that were seen.",
        ("fho_lta_{split}.json", "fho_lta_taxonomy.json"), EGO4D, EGO4D_VIDEOS, ("train", "test_unannotated", "val"),
    ),
    DataSet(
        "egoexo4d-narration", "egoexo4d:read_narration", "Atomic descriptions, told as it happens.",
        ("atomic_descriptions_{split}.json", "takes.json (if there is one)"), EGOEXO, EGOEXO_VIDEOS, ("train", "val"),
    ),
    DataSet(
        "egoexo4d-keystep", "egoexo4d:read_keystep", "Which keystep a stretch shows.",
        ("keystep_{split}.json", "takes.json (if there is one)"), EGOEXO, EGOEXO_VIDEOS, ("train", "val"),
    ),
    _coin("step", "Which step a stretch shows."),
    _coin("task", "What a video is about."),
    _coin("next", "Which step comes next."),
    _coin("procedure", "The steps that follow, up to five."),
    _coin("procedure-goal", "The same, with the goal told."),
    DataSet(
        "epic-narration", "epic:read_narration", "What the camera wearer does, told as it happens.",
        ("EPIC_100_{split}.csv", "EPIC_100_video_info.csv (if there is one)"), EPIC, EPIC_VIDEOS,
        ("train", "validation"),
    ),
    DataSet(
        "epic-anticipation", "epic:read_anticipation", "The next action, a second before it starts.",
        ("EPIC_100_{split}.csv", *CLASSES), EPIC, EPIC_VIDEOS, ("train", "validation"),
    ),
    DataSet(
        "epic-lta", "epic:read_lta", "Twenty actions to come, after eight that were seen, as in Ego4D's.",
        ("EPIC_100_{split}.csv", *CLASSES), EPIC, EPIC_VIDEOS, ("train", "validation"),
    ),
)  # fmt: skip
DATA_SETS = {entry.name: entry for entry in _SETS}


def data_set(name: str) -> DataSet:
    """By name; InputError for another one."""
    if name not in DATA_SETS:
        raise InputError(f"there is no data set '{name}'; take one of {', '.join(DATA_SETS)}, or a .jsonl file.")
    return DATA_SETS[name]


def read_data(name: str, root: str | Path, split: str | None = None, **options: Any) -> Iterator[Stream]:
    """The streams of a data set whose annotation files are in the folder `root`; see `Source` for the options."""
    entry = data_set(name)
    return entry.read(entry.source(root, split, **options))
