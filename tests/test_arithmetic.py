"""bf16 where the device has it: elsewhere a run computes in float32, and who asks for bf16 is told that it is slow."""

from __future__ import annotations

import dataclasses
import warnings
from types import MappingProxyType

import pytest
import torch

import recipes.tiny
from videollm_mod.adapters import LoraSettings
from videollm_mod.arithmetic import cpu_has_bf16
from videollm_mod.flags import stored_as
from videollm_mod.train.devices import in_bf16

AVX2 = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="of CPUs")


def on(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    """A CPU with these instructions, as PyTorch tells of it."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType({**AVX2, **capabilities}))


def test_a_cpu_has_bf16_if_it_has_any_of_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch)
    assert not cpu_has_bf16()
    for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"):
        on(monkeypatch, **{name: True})
        assert cpu_has_bf16()


def test_what_pytorch_cannot_tell_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert cpu_has_bf16()


def test_a_run_computes_in_bf16_where_recipe_and_cpu_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.tiny.recipe()
    plain, lora = dataclasses.replace(recipe, bf16=False), dataclasses.replace(recipe, lora=LoraSettings())
    on(monkeypatch, avx512_bf16=True)
    assert [in_bf16(each) for each in (recipe, plain, lora)] == [True, False, True]
    on(monkeypatch)
    assert [in_bf16(each) for each in (recipe, plain, lora)] == [False, False, True], "what LoRA leaves alone is bf16"


def test_who_asks_for_bfloat16_on_such_a_cpu_is_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch)
    with pytest.warns(UserWarning, match="no bf16 arithmetic"):
        assert stored_as("bfloat16", None)["dtype"] == torch.bfloat16
    on(monkeypatch, amx_bf16=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored_as("bfloat16", None)
        stored_as("float32", None)
