"""Shared by all tests: one thread per process, repeatable hypothesis runs, tiny decoders that are built once.

`HYPOTHESIS_PROFILE=search pytest` looks for new counterexamples instead: ten times as many, other ones at each run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from depth_cases import tiny_model
from hypothesis import HealthCheck, settings
from postgres import Postgres, missing
from transformers import PreTrainedModel

from videollm_mod.depth import get_plan

shared = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.register_profile("repeatable", **shared, derandomize=True, max_examples=20)
settings.register_profile("search", **shared, max_examples=200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tests run side by side, and tiny tensors only lose by being shared among threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models() -> Callable[..., PreTrainedModel]:
    """`models("llama", torch.float64)`: built at the first call. A test gives it back unrouted."""
    built: dict[tuple[object, ...], PreTrainedModel] = {}

    def get(*args: object) -> PreTrainedModel:
        if args not in built:
            built[args] = tiny_model(*args)  # type: ignore[arg-type]
        return built[args]

    return get


@pytest.fixture
def llama(models: Callable[..., PreTrainedModel]) -> Iterator[PreTrainedModel]:
    """The tiny Llama in double precision."""
    decoder = models("llama", torch.float64)
    yield decoder
    assert get_plan(decoder) is None, "a test has left its routing on the shared model"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of our own; tests that want one are left out where there is none."""
    if why := missing():
        pytest.skip(why)
    server = Postgres()
    yield server
    server.close()
