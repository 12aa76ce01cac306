"""A small Qwen3 from scratch: a byte-level vocabulary learned from texts, and random weights, in the layout of a
published base model. For trying a training run in seconds or minutes; it knows nothing yet."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from guardkit.models.qwen_tokenizer import SPLIT

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<think>", "</think>")


def tokenizer_of(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Qwen3's own pre-tokenizer over `vocab` tokens."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    pieces = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    size = vocab - len(SPECIAL) - len(TAGS)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens(list(SPECIAL))
    made.add_tokens(list(TAGS))
    return made


def write_base(
    folder: Path,
    texts: Iterable[str],
    *,
    vocab: int = 8192,
    hidden: int = 192,
    layers: int = 4,
    heads: int = 4,
    positions: int = 1024,
    seed: int = 0,
) -> Path:
    """Write the folder; returns it. Two heads share keys and values."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(texts, vocab)
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id("<|im_end|>")
    shape = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(heads // 2, 1),
        "head_dim": hidden // heads,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "eos_token_id": end,
    }
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**shape))
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        **shape,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": False,
        "rope_theta": 1000000,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special, indent=2) + "\n")
    return folder
