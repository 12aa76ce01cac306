"""A random language model of a few thousand weights, over words, bytes and a chat template."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

WORDS = (" sun", " water", " tomato", " forbidden", " hmm", ".", "\n", " soil", " END", " and")
PARTS = "é☕"  # characters of two and three tokens
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    inner.add_special_tokens(["<eos>"])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    made.chat_template = TEMPLATE
    return made


def model(kind: str = "qwen3", window: int | None = None, **config: Any) -> Any:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 256 + len(WORDS) + 1, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 2048,
        "eos_token_id": 256 + len(WORDS), "bos_token_id": None, "pad_token_id": None, **config,
    }  # fmt: skip
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**sizes, sliding_window=window)).eval()
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    return Qwen3ForCausalLM(Qwen3Config(**sizes)).eval()


class Only:
    """A logits processor that leaves some tokens alone, `rare` ones less likely."""

    def __init__(self, ids: list[int], rare: dict[int, float] | None = None):
        self.ids, self.rare = ids, rare or {}

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        masked = torch.full_like(scores, -torch.inf)
        masked[:, self.ids] = scores[:, self.ids]
        for token, less in self.rare.items():
            masked[:, token] -= less
        return masked


def ids_of(made: Any, *words: str) -> list[int]:
    return [i for word in words for i in made(word, add_special_tokens=False)["input_ids"]]
