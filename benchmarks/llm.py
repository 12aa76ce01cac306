"""Language models for the benchmarks of rollback: one from a folder, or a small random one that needs no files."""

from __future__ import annotations

import argparse
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--llm", help="a chat model of transformers: a folder or a hub id")
    parser.add_argument("--gguf", help="its file, where it is a GGUF (needs the package gguf)")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--int8", action="store_true", help="its linear layers with weights in 8 bits: faster on a CPU")


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model and its tokenizer; without --llm, 8 M random weights over bytes."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.llm is None:
        return _random()
    file = {"gguf_file": args.gguf} if args.gguf else {}
    model = AutoModelForCausalLM.from_pretrained(args.llm, dtype="float32", **file)
    if args.int8:
        from torch.ao.quantization import quantize_dynamic

        model = quantize_dynamic(model.eval(), {torch.nn.Linear}, dtype=torch.qint8)
    return model.eval(), AutoTokenizer.from_pretrained(args.llm, **file)


def _random() -> tuple[Any, Any]:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=256, hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=4096, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval(), PreTrainedTokenizerFast(tokenizer_object=inner)
