"""A method of one's own, dropped into the folder: found, used, and told in one sentence what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from reduction_cases import features_of, small_model
from stream_cases import frames

import videollm_mod as vm
from videollm_mod import reductions
from videollm_mod.cli import main
from videollm_mod.reductions import Reduction, Signals, Tokens, base, from_dict, parse_reduction
from videollm_mod.reductions.attention import Heard
from videollm_mod.reductions.base import HERE
from videollm_mod.types import InputError

OWN = '''
"""Keeps the first cells."""
from dataclasses import dataclass
import torch
from videollm_mod.reductions.base import Reduction, Signals, Tokens

class _Helper(Reduction):
    pass

@dataclass
class FirstCells(Reduction):
    """The first k cells."""
    keep: float = 0.5
    skip: int = 0
    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        return tokens.take(torch.arange(self.skip, self.skip + self.count(len(tokens))))
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files stand beside those of the methods."""
    monkeypatch.setattr(reductions, "__path__", [*reductions.__path__, str(tmp_path)])
    base.methods.cache_clear()
    yield tmp_path
    base.methods.cache_clear()
    for name in [name for name in sys.modules if name.startswith("videollm_mod.reductions.own")]:
        del sys.modules[name]


def test_a_file_in_the_folder_is_a_method(folder: Path) -> None:
    (folder / "own.py").write_text(OWN)
    assert "first_cells" in reductions.methods() and "FirstCells" in dir(vm.reductions)
    assert not any(name.startswith("_") for name in reductions.methods())
    one = from_dict({"name": "first_cells", "keep": 0.25, "skip": 3})
    assert one == vm.reductions.FirstCells(0.25, skip=3) and from_dict(one.to_dict()) == one
    assert parse_reduction("first_cells=0.5")["name"] == "first_cells"
    with one.on(small_model(), traced=True) as within:
        vm.StreamSession(small_model(), threshold=0.0).push(frames(1)[0])
    assert within.last[0].positions[:, 2].tolist() == [3, 0, 1, 2]


def test_a_file_that_does_not_load_is_named_with_the_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "own_broken.py").write_text("def reduce(:\n")
    with pytest.raises(InputError, match=r"reductions/own_broken.py does not load \(SyntaxError: .*mend it or take"):
        _ = vm.reductions.Uniform
    assert main(["bench", "reductions", "--only", "uniform"]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith("mend it or take it away.")


def test_two_files_with_the_same_method_are_both_named(folder: Path) -> None:
    (folder / "own_uniform.py").write_text(OWN.replace("FirstCells", "Uniform"))
    with pytest.raises(
        InputError, match=r"uniform.py and own_uniform.py both have a 'uniform'|own_uniform.py and uniform"
    ):
        reductions.methods()


# -- slips of a class --------------------------------------------------------------------------------------------------


def own(**body: Any) -> Reduction:
    """A method called Mine, as someone may have written it."""
    kind = type("Mine", (Reduction,), {"reduce": lambda self, tokens, signals: tokens, **body})
    return dataclass(kind)()  # type: ignore[no-any-return]


def asks(*needs: Any) -> property:
    return property(lambda self: needs)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"stage": "token"}, "stage of Mine is 'token'; take one of frames, tower, tokens, layer, cache."),
        ({"streamable": "never"}, "streamable of Mine is 'never'; take one of causal, lookahead, question, whole."),
        ({"reduce": Reduction.reduce}, "Mine reduces nothing; override reduce."),
        ({"stage": "layer"}, "Mine does not say behind which layers it cuts; override cuts."),
        (
            {"stage": "cache", "streamable": "whole"},
            "Mine wants the whole video in stage cache; take the stage frames or",
        ),
        ({"stage": "cache", "merges": True}, "Mine merges in stage cache, which only prunes; take the stage tokens or"),
        (
            {"needs": asks(("cls_atention", -2))},
            "needs 'cls_atention', which there is not in stage tokens; there are cls",
        ),
        ({"needs": asks("cls_attention")}, "needs 'cls_attention'; give (name, layer), such as ('cls_attention', -2)."),
        ({"needs": asks(("queries", HERE))}, "needs 'queries', which there is not in stage tokens"),
        ({"needs": asks(("cls_attention", HERE))}, "in stage tokens give the number of a layer of the tower."),
        (
            {"stage": "cache", "needs": asks(("keys", 2))},
            "Mine needs keys of layer 2; in stage cache it may ask for HERE.",
        ),
        ({"stage": "tower", "cuts": lambda self, layers: {9: 0.5}}, "Mine cuts after block 9, but the tower has 5."),
        ({"stage": "layer", "cuts": lambda self, layers: {9: 0.5}}, "Mine cuts after layer 9, but the decoder has 4."),
    ],
)
def test_a_method_that_cannot_work_is_refused_before_it_begins(body: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as refused, own(title="Mine", **body).on(small_model()):
        pass
    assert told in str(refused.value)


def test_fields_of_a_class_that_is_no_dataclass_are_not_lost_in_silence() -> None:
    class Forgot(Reduction):
        keep: float = 0.1

        def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
            return tokens

    with pytest.raises(InputError, match="Forgot has the field 'keep' but is no dataclass; write @dataclass above"):
        Forgot().on(small_model())


@pytest.mark.parametrize(
    ("reduce", "told"),
    [
        (lambda tokens: None, "reduce of Mine returned NoneType; return Tokens, by take or merge."),
        (lambda tokens: tokens.take(torch.arange(0)), "Mine has left no token of a frame; keep one at least."),
        (lambda tokens: tokens.take(torch.tensor([1, 1])), "Mine returned two tokens in the same place"),
        (lambda tokens: tokens, "Mine has left 16 of 16 tokens, but count says 4."),
        (
            lambda tokens: tokens.merge(torch.arange(16) // 4, torch.arange(0, 16, 4)),
            "Mine has merged tokens, but says that it only prunes; say merges = True.",
        ),
    ],
)
def test_what_it_returns_is_looked_at(reduce: Any, told: str) -> None:
    mine = own(title="Mine", reduce=lambda self, tokens, signals: reduce(tokens))
    with mine.on(small_model()), pytest.raises(InputError) as refused:
        vm.StreamSession(small_model(), threshold=0.0).push(frames(1)[0])
    assert told in str(refused.value)


def test_a_signal_that_was_not_asked_for_is_named() -> None:
    mine = own(title="Mine", reduce=lambda self, tokens, signals: tokens.top(signals["cls_attention", -2], 4))
    with (
        mine.on(small_model()),
        pytest.raises(InputError, match=r"'cls_attention', -2\) was not asked for; name it in"),
    ):
        vm.StreamSession(small_model(), threshold=0.0).push(frames(1)[0])


def test_a_mask_takes_as_its_places_do() -> None:
    tokens = Tokens.of_frame(torch.arange(6.0)[:, None], (2, 3), traced=True)
    taken = tokens.take(torch.tensor([True, False, False, True, False, True]))
    assert taken.x[:, 0].tolist() == [0, 3, 5] and taken.w is not None
    assert taken.w.to_dense().argmax(1).tolist() == [0, 3, 5]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"name": "faster_vlm", "layer": "last"}, "layer of FasterVLM is 'last'; give it a value of int."),
        ({"name": "holi_tom", "alike": None}, "alike of HoliTom is None; give it a value of float."),
        (
            {"name": "quick_video", "decay": "square"},
            "decay of QuickVideo is 'square'; take none, linear or exponential.",
        ),
        ({"name": "quick_video", "group": 0}, "group of QuickVideo is 0; give 1 frame or more."),
        (
            {"name": "compose", "parts": ["uniform"]},
            "a reduction is an object with a name and its fields, not 'uniform'.",
        ),
    ],
)
def test_a_hyper_parameter_that_cannot_be_is_refused_by_its_name(values: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as refused:
        from_dict(values)
    assert str(refused.value) == told


# -- what a live stream is told ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"streamable": "whole", "why_not": "it sorts all frames"}, "Mine cannot stream: it sorts all frames."),
        ({"streamable": "whole"}, "Mine cannot stream: it needs the whole video at once."),
        ({"streamable": "lookahead", "lookahead": 2}, "Mine cannot stream: it needs 2 later frame(s)."),
    ],
)
def test_a_session_refuses_by_name_and_reason_also_in_a_composition(body: dict[str, Any], told: str) -> None:
    model, mine = small_model(), own(title="Mine", keep=1.0, **body)
    for one in (mine, vm.Compose([vm.reductions.Uniform(0.5), mine])):
        with one.on(model), pytest.raises(InputError) as refused:
            vm.StreamSession(model)
        assert str(refused.value) == told


def test_an_empty_question_is_one_and_none_is_not() -> None:
    model = small_model()
    for question in ("", " ", "What happened?"):
        with vm.reductions.HoliTomMerge(0.5).on(model, question=question):
            vm.StreamSession(model, threshold=0.0).push(frames(1)[0])
    with vm.reductions.HoliTomMerge(0.5).on(model), pytest.raises(InputError, match="begin the session with it"):
        vm.StreamSession(model)


def test_the_question_is_heard_of_where_the_stream_begins_with_it() -> None:
    model, told = small_model(), []

    @dataclass
    class Listens(Reduction):
        keep: float = 1.0
        stage: ClassVar = "layer"
        needs_query: ClassVar[bool] = True

        @property
        def needs(self) -> tuple[tuple[str, int], ...]:
            return (("last_attention", HERE),)

        def cuts(self, layers: int) -> dict[int, float]:
            return {2: 1.0}

        def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
            assert signals.text is not None
            told.append((len(signals.text), signals["last_attention", HERE]))
            return tokens

    for question in ("What happened?", "a red square"):
        with Listens().on(model, question=question):
            vm.StreamSession(model, system=question, threshold=0.0).push(frames(1)[0])
    assert told[0][0] > 0 and not torch.allclose(told[0][1], told[1][1])


# -- signals cost nothing until they are asked for ---------------------------------------------------------------------


def test_attention_is_worked_out_for_one_query_of_one_layer_and_for_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, rows, plain = small_model(), [], Heard.attention
    monkeypatch.setattr(
        Heard,
        "attention",
        lambda self, which, *args, **more: (rows.append(len(which)), plain(self, which, *args, **more))[1],
    )
    fast = []
    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: (fast.append(1), sdpa(*a, **k))[1]
    )

    def push(*reduction: Reduction) -> tuple[list[int], int]:
        rows.clear(), fast.clear()
        for one in reduction:
            with one.on(model):
                vm.StreamSession(model, threshold=0.0).push(frames(1)[0])
        if not reduction:
            vm.StreamSession(model, threshold=0.0).push(frames(1)[0])
        return list(rows), len(fast)

    _, layers = push()
    assert layers > 0
    assert push(vm.reductions.DivPrune(0.25)) == ([], layers)
    assert push(vm.reductions.QuickVideo(0.25))[0] == []
    assert push(vm.reductions.FasterVLM(0.25)) == ([1], layers)  # the CLS's query, of the one frame; SDPA as ever
    assert push(vm.reductions.FoPru(0.25)) == ([17], layers)  # all queries of one layer
    assert features_of(model, 1).shape == (1, 17, 16)  # and behind all of them, nothing of it


def test_each_method_is_one_file_of_at_most_150_lines() -> None:
    for name, kind in reductions.methods().items():
        path = Path(vm.__file__).parent / "reductions" / (kind.__module__.rpartition(".")[2] + ".py")
        assert len(path.read_text().splitlines()) <= 150, name
