"""On the path of a server under test: at SIGUSR1 it writes how many blocks of memory Python holds, garbage aside."""

import gc
import os
import signal
import sys
from pathlib import Path


def _count(number: int, stack: object) -> None:
    gc.collect()
    told = Path(os.environ["PROBE"])
    unfinished = told.with_suffix(".new")
    unfinished.write_text(str(sys.getallocatedblocks()))
    unfinished.replace(told)


if "PROBE" in os.environ:
    signal.signal(signal.SIGUSR1, _count)
