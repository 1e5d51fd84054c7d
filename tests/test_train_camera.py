"""Training on streams of fixed cameras: what is where, what changed, and how they mix with the other world."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import torch
from test_train import small_recipe

from videollm_mod.dialogue import IGNORE, Assistant
from videollm_mod.train.build import build
from videollm_mod.train.camera import camera_changes
from videollm_mod.train.changes import CHANGES
from videollm_mod.train.command import TrainConfig, _checked
from videollm_mod.train.data import NAMED, ROLES, StreamSamples, TowerSamples, any_stream, is_camera, stream_sample
from videollm_mod.train.loop import StreamStage, validate
from videollm_mod.train.recipe import Phase, Recipe, TowerStage
from videollm_mod.world import WorldConfig, WorldStream
from videollm_mod.world.camera import CameraConfig, CameraStream, all_camera_sentences, make_camera_stream
from videollm_mod.world.conversation import segments

WORLD = WorldConfig(seconds=6, size=48)
CAMERA = CameraConfig(seconds=6, size=48, events_per_minute=18)


def mixed(share: float = 0.5, **changes: object) -> Recipe:
    return dataclasses.replace(
        small_recipe(phases=(Phase(2, 4, WORLD, camera=CAMERA, camera_share=share),)),
        **changes,  # type: ignore[arg-type]
    )


def test_streams_of_both_worlds_are_evenly_mixed() -> None:
    phase = mixed(0.75).phases[0]
    cameras = [is_camera(number, phase) for number in range(400)]
    assert 298 <= sum(cameras) <= 302
    assert all(6 <= sum(cameras[start : start + 10]) <= 9 for start in range(0, 400, 10))
    kinds = {type(any_stream("train", number, phase, mixed())) for number in range(8)}
    assert kinds == {WorldStream, CameraStream}
    assert not any(is_camera(number, Phase(1, 1, WORLD)) for number in range(20))


def test_what_changed_is_told_at_the_cells_where_actors_are_or_were() -> None:
    found: set[str] = set()
    for number in range(12):
        stream = make_camera_stream("train", number, dataclasses.replace(CAMERA, seconds=20))
        labels = camera_changes(stream, (7, 7))
        assert labels.shape == (40, 50, 3) and (labels[:, 0] == IGNORE).all() and (labels[0] == IGNORE).all()
        assert (labels[..., 1:] == IGNORE).all()  # nothing has a colour or a shape that is told
        for f, time in enumerate(stream.times.tolist()):
            actors = [actor for actor in stream.visible(time) if actor.role in ("walker", "object")]
            named = int((labels[f, :, 0] != IGNORE).sum())
            before = stream.visible(stream.times[f - 1]) if f else []
            assert named <= len({actor.number for actor in [*actors, *before]})
        found |= {CHANGES[label] for label in labels[..., 0].unique().tolist() if label != IGNORE}
    assert found >= {"rests", "new", "gone", "held"} and found & {"left", "right"} and "turned" not in found


def test_two_hands_at_once_are_told_in_one_narration() -> None:
    """A model speaks once a frame: a second narration of it could never be said."""
    both = 0
    for number in range(60):
        stream = make_camera_stream("train", number, CameraConfig(seconds=30, objects=1.0, size=48))
        conversation = segments(stream, "Say what happens.")
        told = [segment.text for segment in conversation if isinstance(segment, Assistant)]
        assert not any(isinstance(a, Assistant) and isinstance(b, Assistant) for a, b in pairwise(conversation))
        assert all(any(event.text in text for text in told) for event in stream.events)
        both += len({event.frame for event in stream.events}) < len(stream.events)
    assert both > 0


def test_the_tower_learns_names_roles_and_places_of_what_a_camera_sees() -> None:
    samples = TowerSamples(TowerStage(steps=4, streams=4, frames=4), mixed(1.0).phases[0], (3, 3), seed=0)
    truths = [samples[number] for number in range(10)]
    named = torch.cat([truth.shape.flatten() for truth in truths])
    assert named.max() < len(NAMED) and (named[named >= 0] >= NAMED.index("person")).all() and (named >= 0).any()
    assert all((truth.colour == -1).all() and (truth.size == -1).all() for truth in truths)
    assert sum(float(truth.cover[..., ROLES.index("thing")].sum()) for truth in truths) > 0
    assert all(truth.frames.shape == (4, 48, 48, 3) and truth.scene.shape == (4, 3) for truth in truths)


def test_a_model_that_is_to_watch_cameras_has_their_words_and_trains_on_both_worlds() -> None:
    recipe = mixed()
    model = build(recipe)
    unknown = model.template.tokenizer.unk_token_id
    texts = all_camera_sentences()
    assert all(unknown not in model.template.tokenizer.encode(text, add_special_tokens=False) for text in texts)
    samples = StreamSamples(recipe)
    stage = StreamStage(model.train(), recipe)
    items = [samples[number] for number in range(4)]
    assert {item.matter is None for item in items} == {True, False}
    loss, numbers = stage(items, 0)
    loss.backward()
    assert loss.isfinite() and numbers["change_loss"] > 0
    assert validate(model, dataclasses.replace(recipe, validation_streams=2))["loss"] > 0


def test_the_tower_goes_on_naming_while_streams_are_learned() -> None:
    """The loss of the first stage, on every fourth frame; without it, cells are not even looked up."""
    recipe = mixed(cell_weight=0.5)
    samples = StreamSamples(recipe)
    assert all(samples[number].cells is not None for number in range(4))
    assert StreamSamples(mixed())[0].cells is None
    cells = samples[0].cells
    assert cells is not None and torch.equal(cells.frames, samples[0].frames[::4])
    torch.manual_seed(0)
    stage = StreamStage(build(recipe).train(), recipe)
    losses = []
    optimiser = torch.optim.Adam(stage.parameters(), lr=3e-3)
    for _ in range(12):
        loss, numbers = stage([samples[0]], 0)
        losses.append(numbers["cell_loss"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert stage.cells is not None and stage.cells.cell.weight.grad is not None
    assert losses[-1] < 0.7 * losses[0]


def test_each_run_of_a_chain_sees_other_streams_and_all_have_the_flags() -> None:
    run: Recipe | None = _checked(TrainConfig(recipe="camera", seed=4, set=("weight_decay=0.1",)))
    seeds = []
    while run is not None:
        seeds.append(run.seed)
        assert run.weight_decay == 0.1
        run = run.first
    assert seeds == [7, 6, 5, 4]


def test_most_replies_are_wrong_in_the_misled_share_of_training_streams_alone() -> None:
    recipe = mixed(misled=1.0)
    phase = recipe.phases[0]

    def wrong(split: str) -> int:
        samples = [stream_sample(split, number, phase, recipe) for number in range(12)]
        return sum(isinstance(s, Assistant) and not s.learn for sample in samples for s in sample.segments)

    assert wrong("train") > 0 and wrong("validation") == 0
    assert "misled" not in mixed().to_dict() and recipe.to_dict()["misled"] == 1.0
