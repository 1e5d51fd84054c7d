"""`videollm-mod doctor`: what works on this machine, what is missing, and how to get it.

Every check is tried, not looked up: decoders are opened, the bundled model is loaded and watches one frame, the cache
folder is written to. A check that breaks is a line of the report, never a traceback. Only what is needed can fail: for
the rest the report tells what is there, and `mend` how to get what is not.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, cast

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "av", "numpy", "pillow", "tyro", "rich", "matplotlib")
# FFmpeg's own "av1" needs a graphics card; the libraries decode everywhere
DECODERS = {"h264": ("h264",), "hevc": ("hevc",), "vp8": ("vp8",), "vp9": ("vp9",), "av1": ("libdav1d", "libaom-av1")}
DECODERS |= {name: (name,) for name in ("mpeg2video", "mpeg4", "mjpeg", "prores")}
ENCODER = "libx264"  # of --video


@dataclass(frozen=True)
class DoctorConfig:
    """Nothing to choose."""


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    there: bool
    found: str  # for people
    mend: str = ""  # how to get it if it is not there
    essential: bool = True  # nothing works without it
    data: Any = None  # for programs; `found` if None

    @property
    def ok(self) -> bool:
        """False only if something that is needed is not there."""
        return self.there or not self.essential


def doctor(config: DoctorConfig) -> dict[str, Any]:
    """Run all checks; the report goes to stderr. "ok" in the result: everything essential works."""
    checks: list[Check] = []
    for name, essential, run in (
        ("versions", True, check_versions),
        ("video", True, check_video),
        ("devices", False, check_devices),
        ("attention", False, check_attention),
        ("model", True, check_model),
        ("extras", False, check_extras),
        ("cache", False, check_cache),
    ):
        checks += guarded(name, essential, run)
    _print_table(checks)
    return {
        "ok": all(check.ok for check in checks),
        "checks": {
            check.name: {
                "ok": check.ok,
                "found": check.found if check.data is None else check.data,
                "mend": "" if check.there else check.mend,
            }
            for check in checks
        },
    }


def guarded(name: str, essential: bool, run: Callable[[], list[Check]]) -> list[Check]:
    """The checks of one group; if finding out fails, one failed check that says why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run()
    except Exception as error:  # a broken installation raises whatever it likes; that is what is being reported
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return [Check(name, False, reason, f"reinstall: {install_command('--force-reinstall')}", essential)]


def install_command(option: str = "", extra: str = "", root: Path = Path(__file__).parents[1]) -> str:
    """How to install this package here, with an extra: from the clone at `root` if it is one, else by its name."""
    group = f"[{extra}]" if extra else ""
    clone = (root / "pyproject.toml").is_file()
    what = f"-c constraints.txt -e '.{group}'" if clone else f"'videollm-mod{group}'"
    return " ".join(filter(None, ["pip install", option, what]))


def version_of(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_versions() -> list[Check]:
    """Python, ourselves and every package we need; those that are there are also the right ones."""
    from videollm_mod import __version__

    versions = {name: version_of(name) for name in PACKAGES}
    missing = [name for name, version in versions.items() if version is None]
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return [
        Check("videollm-mod", True, __version__),
        Check("python", sys.version_info >= (3, 10), system, "install Python 3.10 or newer"),
        Check(
            "packages",
            not missing,
            ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items()),
            f"pip install {' '.join(missing)}" if missing else "",
            data=versions,
        ),
    ]


def check_video() -> list[Check]:
    """FFmpeg's libraries inside PyAV, the decoders they hold, the encoder for --video."""
    import av

    libraries = {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
    found = [name for name, codecs in DECODERS.items() if any(_opens(codec, "r") for codec in codecs)]
    encodes = _opens(ENCODER, "w")
    absent = [name for name in DECODERS if name not in found]
    words = ", ".join(found) + (f"; not: {', '.join(absent)}" if absent else "")
    mend = "pip install --force-reinstall av  (its wheels bring FFmpeg along)"
    return [
        Check("ffmpeg", True, ", ".join(f"{name} {version}" for name, version in libraries.items()), data=libraries),
        Check("decoders", "h264" in found, words, mend, data={name: name in found for name in DECODERS}),
        Check("encoder", encodes, ENCODER if encodes else f"no {ENCODER}, so no --video", mend, essential=False),
    ]


def _opens(codec: str, mode: Literal["r", "w"]) -> bool:
    """Whether FFmpeg has a codec and can open it."""
    import av

    try:
        context = cast(av.VideoCodecContext, av.CodecContext.create(codec, mode))
        if mode == "w":
            context.width, context.height, context.pix_fmt, context.time_base = 64, 64, "yuv420p", Fraction(1, 25)
        context.open()
    except (av.FFmpegError, ValueError):
        return False
    return True


def check_devices() -> list[Check]:
    """CPU threads, and which accelerators PyTorch sees."""
    import torch

    from videollm_mod.arithmetic import NO_BF16, cpu_has_bf16

    slow = "" if cpu_has_bf16() else f"; {NO_BF16}, so training computes in float32"
    found = [f"cpu ({torch.get_num_threads()} threads{slow})"]
    data: dict[str, Any] = {
        "cpu_threads": torch.get_num_threads(),
        "cpu_bf16": cpu_has_bf16(),
        "cuda": [],
        "mps": torch.backends.mps.is_available(),
    }
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        found.append(f"cuda:{number} {properties.name} ({properties.total_memory / 2**30:.0f} GiB)")
        data["cuda"].append({"name": properties.name, "bytes": properties.total_memory})
    if data["mps"]:
        found.append("mps")
    return [Check("devices", True, ", ".join(found), essential=False, data=data)]


def check_attention() -> list[Check]:
    """Attention implementations that a model may be loaded with."""
    import torch

    cuda = torch.cuda.is_available()
    have = {
        "sdpa": True,
        "eager": True,
        "flex_attention": importlib.util.find_spec("torch.nn.attention.flex_attention") is not None,
        "flash_attention_2": cuda and importlib.util.find_spec("flash_attn") is not None,
    }
    words = ", ".join(name for name, there in have.items() if there)
    if cuda and not have["flash_attention_2"]:
        words += "; for flash attention: pip install flash-attn --no-build-isolation"
    return [Check("attention", True, words, essential=False, data=have)]


def check_model() -> list[Check]:
    """The bundled models load, and one watches a grey frame."""
    import numpy as np

    from videollm_mod.model import load
    from videollm_mod.stream.session import StreamSession
    from videollm_mod.types import Frame, InputError

    began = time.monotonic()
    try:
        load("camera")
        model = load("tiny")
    except InputError as error:
        return [Check("bundled model", False, str(error), install_command("--force-reinstall"))]
    size = sum(weight.numel() for weight in model.parameters())
    StreamSession(model).push(Frame(np.full((96, 96, 3), 128, dtype=np.uint8), time=0.0, index=0))
    words = f"tiny and camera, {size / 1e6:.1f} M parameters each, loaded in {time.monotonic() - began:.1f} s"
    return [Check("bundled model", True, words, data={"name": "tiny", "parameters": size})]


def check_extras() -> list[Check]:
    """Optional groups of packages, as the installed metadata name them."""
    if version_of("videollm-mod") is None:
        return [Check("installation", False, "run from a folder, not installed", install_command(), essential=False)]
    metadata = importlib.metadata.metadata("videollm-mod")
    checks = []
    for extra in metadata.get_all("Provides-Extra") or []:
        marker = re.compile(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""")
        wanted = [line for line in importlib.metadata.requires("videollm-mod") or [] if marker.search(line)]
        names = [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in wanted]
        missing = [name for name in names if version_of(name) is None]
        words = "complete" if not missing else f"optional, not here: {', '.join(missing)}"
        mend = install_command(extra=extra)
        checks.append(Check(f"extra {extra}", not missing, words, mend, False, data={"missing": missing}))
    return checks


def check_cache() -> list[Check]:
    """Where models from the hub are kept: can it be written to?"""
    from huggingface_hub.constants import HF_HUB_CACHE

    from videollm_mod.files import temporary_name

    folder = Path(HF_HUB_CACHE)
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        probe = temporary_name(existing / "doctor")
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        mend = "set HF_HOME to a folder you may write to"
        return [Check("cache", False, f"{folder}: {os.strerror(error.errno or 0)}", mend, essential=False)]
    return [Check("cache", True, f"{folder} can be written", essential=False, data=str(folder))]


def _print_table(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for check in checks:
        mark = Text("ok", "green") if check.there else Text("--", "dim") if check.ok else Text("FAIL", "bold red")
        words = Text(check.found)
        if check.mend and not check.there:
            words.append(f"\n-> {check.mend}", style="dim" if check.ok else "yellow")
        table.add_row(mark, check.name, words)
    Console(stderr=True, highlight=False).print(table)
