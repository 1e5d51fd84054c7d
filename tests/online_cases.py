"""A tiny checkpoint in VideoLLM-online's public layout, made as its training script makes one, with peft's own writer.

The decoder is a Llama of two layers, the tower a SigLIP of one, and the tokenizer splits words as Llama-3's does, so
that "]" and the end of its line are one token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, SiglipVisionConfig, SiglipVisionModel

# Llama-3's, from its tokenizer.json
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
PATTERN += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TARGETS = "model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)|lm_head$"
TEXTS = [
    "A helper watches.\n\n[",
    "]\nAssistant: You pick up 2 cups.",
    "]\nUser: What happened?\nAssistant: Nothing yet",
    "\n[,,,]\nUser: Please narrate the video in real time.\n[",
]


class LiveLlama(LlamaForCausalLM):
    """What the adapter was trained on: a Llama with a connector among its modules."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.connector = nn.Sequential(nn.Linear(16, width), nn.GELU(), nn.Linear(width, width))


def llama_3_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in ("<|begin_of_text|>", "<|eot_id|>")])
    bos = "<|begin_of_text|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token="<|eot_id|>")


def write_checkpoint(folder: Path, *, with_tokenizer: bool) -> dict[str, Path]:
    """The checkpoint, and the base and the tower that it needs: {"checkpoint", "base", "tower"}."""
    torch.manual_seed(0)
    places = {name: folder / name for name in ("checkpoint", "base", "tower")}
    tokenizer = llama_3_tokenizer()
    lm = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=len(tokenizer),
            initializer_range=0.3,
        )
    )
    lm.save_pretrained(places["base"])
    tokenizer.save_pretrained(places["base"])
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=48, patch_size=8)).save_pretrained(places["tower"])
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=TARGETS,
        lora_dropout=0.05,
        task_type="CAUSAL_LM",
        modules_to_save=["connector"],
        inference_mode=False,
    )
    live: Any = peft.get_peft_model(LiveLlama.from_pretrained(places["base"]), config)
    with torch.no_grad():
        for name, weight in live.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    live.save_pretrained(places["checkpoint"])
    if with_tokenizer:  # its Trainer does so
        tokenizer.add_special_tokens({"additional_special_tokens": ["<v>"]})
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.save_pretrained(places["checkpoint"])
    return places


@torch.no_grad()
def logits_by_hand(places: dict[str, Path], ids: Tensor, placeholder: int, pixels: Tensor) -> Tensor:
    """The parts put together without us, in double: peft loads the adapter. pixels: (F, 3, S, S) -1..1."""
    base = LiveLlama.from_pretrained(places["base"], dtype=torch.float64)
    live: Any = peft.PeftModel.from_pretrained(base, places["checkpoint"]).eval()
    seen = SiglipVisionModel.from_pretrained(places["tower"], dtype=torch.float64).eval()(pixels.double())
    side = int(seen.last_hidden_state.shape[1] ** 0.5)
    cells = seen.last_hidden_state.transpose(1, 2).unflatten(2, (side, side))
    pooled = nn.functional.adaptive_avg_pool2d(cells, (3, 3)).flatten(2).transpose(1, 2)
    frames = torch.cat([seen.pooler_output[:, None], pooled], 1)  # (F, 10, 16)
    vision = ids == placeholder
    embeds = live.get_input_embeddings()(ids.masked_fill(vision, 0))
    embeds[vision] = live.get_base_model().connector(frames).flatten(0, 1)
    logits: Tensor = live(inputs_embeds=embeds).logits
    return logits
