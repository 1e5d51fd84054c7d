"""Libraries that complain without need: where torchao is installed, Transformers imports it, and it tells of files that
it cannot load.

For a process that is started anew, too: what it imports first is this, and only then what it shall run.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

CHATTY = ("torchao", "torch.utils._pytree")


def hush() -> None:
    """Errors alone are told; to be called before Transformers is imported."""
    for logger in CHATTY:
        logging.getLogger(logger).setLevel(logging.ERROR)


def hushed(module: str, function: str, *values: Any) -> Any:
    """Call a module's function, which is imported here: for the first call of a new process."""
    hush()
    return getattr(importlib.import_module(module), function)(*values)
