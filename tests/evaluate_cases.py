"""What the tests of evaluation share: a small model with random weights, short streams, made-up results."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from videollm_mod.depth import DepthPlan
from videollm_mod.dialogue import word_tokenizer
from videollm_mod.evaluate.metrics import Said
from videollm_mod.evaluate.self_conditioned import SelfConditioned
from videollm_mod.evaluate.streams import Watched
from videollm_mod.evaluate.teacher_forced import TeacherForced
from videollm_mod.model import StreamingVideoLM, StreamSettings
from videollm_mod.types import StreamEvent
from videollm_mod.vision import Connector, ConvTower, ConvTowerConfig, FrameEncoder
from videollm_mod.world import WorldConfig, WorldStream, all_sentences, make_stream

SYSTEM = "Say what happens."


def random_model(decide: str = "last", scorer: str = "learned", plan: DepthPlan | None = None) -> StreamingVideoLM:
    """1 + 2x2 tokens per frame of 32 px, three layers of width 32 of which one is routed; float64."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer([*all_sentences(), SYSTEM])
    tower = ConvTower(ConvTowerConfig(image_size=32, channels=(8, 16, 16), blocks=(1, 1, 1), heads=2))
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.3,  # strong opinions: probabilities differ from frame to frame
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    return StreamingVideoLM(
        FrameEncoder(tower, (2, 2)),
        Connector(tower.width, 32),
        lm,
        tokenizer,
        plan or DepthPlan("interleaved", keep=0.4, scorer=scorer),
        StreamSettings(system=SYSTEM, decide=decide, max_reply_tokens=4, threshold=0.01),
    ).to(torch.float64).eval()  # fmt: skip


def short_stream(number: int = 0, seconds: float = 12.0) -> WorldStream:
    """A busy stream of 32 px with questions."""
    config = WorldConfig(seconds=seconds, size=32, events_per_minute=18, questions=6, compress=False)
    return make_stream("test", number, config)


def true_said(stream: WorldStream, shift: float = 0.0) -> list[Said]:
    """What a model that knows everything says, at the frames that show it, `shift` seconds late."""
    return [Said(event.frame / stream.config.fps + shift, event.text) for event in stream.events]


def watched(stream: WorldStream, said: list[Said], answers: list[str] | None = None) -> Watched:
    """A stream with what was said of it; by default all answers are true. The teacher-forced part is empty."""
    events = tuple(StreamEvent(time, "narration", text, round(time * stream.config.fps)) for time, text in said)
    silence = torch.ones(len(stream.times)).numpy()
    true = [question.answer for question in stream.questions]
    own = SelfConditioned(events, tuple(true if answers is None else answers), silence)
    return Watched(stream, TeacherForced(silence, ()), own)
