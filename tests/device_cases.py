"""Runs of a small recipe, alone and in two processes, for test_train_devices.py: `python device_cases.py FOLDER`.

Everything is imported once; the processes of a run are forked from here, which spares each of them the seconds that the
imports take. FOLDER gets one folder for each run, and codes.json with the exit codes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from test_train import small_recipe

from videollm_mod.train.loop import StreamStage, train
from videollm_mod.train.recipe import Phase, Recipe, TowerStage
from videollm_mod.train.tower import TowerStage as TowerTraining
from videollm_mod.world import WorldConfig

Log = Callable[[dict[str, Any]], None]


def shared_recipe(**changes: object) -> Recipe:
    """Steps of three streams, which two processes share unevenly, then of one, of which one process gets nothing."""
    world = WorldConfig(seconds=3, size=48, events_per_minute=18, questions=6)
    recipe = small_recipe(
        phases=(Phase(3, 3, world), Phase(2, 1, world)),
        tower_stage=TowerStage(steps=3, streams=3, frames=2),
        cell_weight=0.3,
        bf16=False,
        lr=3e-3,
        warmup=1,
        validation_streams=3,
    )
    return dataclasses.replace(recipe, **changes)  # type: ignore[arg-type]


def launch(size: int, act: Callable[[], None]) -> list[int]:
    """Fork `size` processes as torchrun would start them; returns their exit codes, -9 for a killed one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child:
            children.append(child)
            continue
        if size > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
            os.environ |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        code = 1
        try:
            act()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    codes, deadline = [0] * size, time.monotonic() + 1200
    left = dict(enumerate(children))
    while left:
        for rank, child in [*left.items()]:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[rank] = os.waitstatus_to_exitcode(status)
                del left[rank]
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return codes


def killed(line: dict[str, Any]) -> None:
    if (line["stage"], line["step"]) == ("stream", 3):
        os.kill(os.getpid(), signal.SIGKILL)


def stopped(stage: StreamStage) -> dict[str, float]:
    """Validation, during which one of the processes is told to stop; twice, as launchers do."""
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    return validate(stage)


validate = StreamStage.validate


def main(home: Path) -> None:
    torch.set_num_threads(1)
    StreamStage.log_every = TowerTraining.log_every = 1

    def run(name: str, size: int, resume: bool = False, show: Log = lambda line: None, **changes: object) -> list[int]:
        recipe = shared_recipe(**changes)
        return launch(size, lambda: train(recipe, home / name, workers=0, resume=resume, show=show) and None)

    fsdp2 = {"sharding": "fsdp2", "accumulate": 2, "checkpointing": True}
    codes = {"alone": run("alone", 1, checkpoint_every=1e9)}
    for name, how in (("ddp", {}), ("fsdp2", fsdp2)):
        codes[name] = run(name, 2, checkpoint_every=1e9, **how)
        codes[f"{name} killed"] = run(f"{name} resumed", 2, show=killed, **how)
        codes[f"{name} resumed"] = run(f"{name} resumed", 2, resume=True, **how)
    StreamStage.validate = stopped  # type: ignore[method-assign]
    codes["stopped"] = run("stopped", 2, tower_stage=None, checkpoint_every=1e9, balance=0.1, **fsdp2)
    (home / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
