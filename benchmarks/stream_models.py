"""What the Stream benchmarks share: random weights at the published shapes, and who computes with them.

Speed does not depend on the values of weights, so nothing is downloaded. guardkit's engine and transformers'
`Qwen3Model` get the same tensors. Run as a script it prints the shapes.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    sys.exit(f"{sys.executable} has no torch: pip install 'guardkit[torch]' transformers")

from common import rss_mib, table
from torch import Tensor

from guardkit.engine.cache import Cache
from guardkit.engine.checkpoint import Checkpoint
from guardkit.engine.config import Qwen3Config
from guardkit.engine.engine import Engine, Head
from guardkit.engine.qwen3 import Embedding, Qwen3
from guardkit.engine.setup import DTYPES, GIB, Options, build, pick_device, pick_dtype
from guardkit.models.stream import _GuardHead
from guardkit.verdict import Category

MIB = 1 << 20
RISKS = 3
CATEGORIES = {"": 8, "query_": 9}
SEVERITY_LABELS = ("Safe", "Unsafe", "Controversial")
CATEGORY_LABELS = tuple(category.label for category in Category)


def _config(hidden: int, layers: int, heads: int, intermediate: int, **other: int) -> Qwen3Config:
    sizes = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 8192} | other
    return Qwen3Config(hidden, intermediate, layers, heads, rope_theta=1e6, tie_word_embeddings=True, **sizes)  # type: ignore[arg-type]


SIZES = {
    "0.6B": _config(1024, 28, 16, 3072),
    "4B": _config(2560, 36, 32, 9728),
    "tiny": _config(64, 2, 4, 96, num_key_value_heads=2, head_dim=16, vocab_size=512),  # to try the scripts
}
# Where a verdict's margin is wider than this, rounding cannot have changed it. Random weights, unlike trained ones,
# carry an error through all layers: transformers' own runs with and without a cache differ as much.
CLEAR = {torch.bfloat16: 0.5, torch.float16: 0.1, torch.float32: 2e-3}


class RandomWeights:
    """All tensors of a Stream checkpoint, made once for a process; the same for the same size, dtype and device.

    Stands in for a `Checkpoint` where an engine is built.
    """

    def __init__(self, size: str, dtype: torch.dtype, device: torch.device):
        self.size, self.config, self.dtype, self.device = size, SIZES[size], dtype, device
        self.folder = Path(f"random-{size}")
        self.inner = self.config.hidden_size // 2  # published for 0.6B; the heads are too small to matter
        generator = torch.Generator(device).manual_seed(0)
        self.tensors: dict[str, Tensor] = {}
        for name, shape in {**Qwen3.shapes(self.config), **self.head_shapes()}.items():
            tensor = torch.empty(shape, dtype=dtype, device=device)
            if len(shape) == 1:
                self.tensors[name] = tensor.normal_(1, 0.1, generator=generator)
            else:  # verdicts that vary from token to token
                lively = 3 if name.endswith("head.weight") else 1
                self.tensors[name] = tensor.normal_(0, lively / math.sqrt(shape[1]), generator=generator)

    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for side, categories in CATEGORIES.items():
            shapes |= {
                f"{side}risk_level_category_pre.weight": (self.inner, self.config.hidden_size),
                f"{side}risk_level_category_layernorm.weight": (self.inner,),
                f"{side}risk_level_head.weight": (RISKS, self.inner),
                f"{side}category_head.weight": (categories, self.inner),
            }
        return shapes

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        pass

    def load(self, shapes: Iterable[str], dtype: torch.dtype | None = None, **_: object) -> dict[str, Tensor]:
        return {name: self.tensors[name].to(dtype or self.dtype) for name in shapes}

    def engine(
        self,
        cache_gib: float | None = None,
        max_streams: int | None = None,
        threads: int | None = None,
        quantize: str | None = None,
    ) -> Engine:
        """guardkit's engine over these weights, with the limits that `Guard.load` would give it."""
        eps = self.config.rms_norm_eps

        def heads(own: dict[str, Tensor], _: Embedding) -> dict[str, Head]:
            return {"response": _GuardHead(own, "", eps), "query": _GuardHead(own, "query_", eps)}

        name = next(name for name, dtype in DTYPES.items() if dtype == self.dtype)
        dtype = None if quantize and self.device.type == "cpu" else name
        options = Options(str(self.device), dtype, cache_gib, threads=threads, quantize=quantize)
        if max_streams is not None:
            options = dataclasses.replace(options, max_streams=max_streams)
        return build(cast(Checkpoint, self), self.head_shapes(), heads, options)

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token."""
        return Cache.bytes_per_token(self.config, self.dtype)

    @property
    def step_bytes(self) -> int:
        """Weights that every step reads: all but the embedding, of which it reads a row a token."""
        c = self.config
        shapes = [s for name, s in Qwen3.shapes(c).items() if "embed_tokens" not in name]
        shapes += [s for name, s in self.head_shapes().items() if not name.startswith("query_")]
        return sum(math.prod(shape) for shape in shapes) * self.dtype.itemsize

    def flops(self, tokens: int, context: int) -> float:
        """Of `tokens` new tokens that see `context` tokens each."""
        c = self.config
        attention = 4 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * context
        return tokens * (2 * self.step_bytes / self.dtype.itemsize + attention)


class Reference:
    """transformers' `Qwen3Model` with the guard's heads on the same tensors."""

    def __init__(self, weights: RandomWeights):
        try:
            import transformers
        except ImportError:
            sys.exit(f"{sys.executable} has no transformers, which guardkit is compared with: pip install transformers")
        c = weights.config
        self.config = transformers.Qwen3Config(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size,
            num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            max_position_embeddings=c.max_position_embeddings,
            rope_theta=c.rope_theta,
            rms_norm_eps=c.rms_norm_eps,
        )
        with torch.device("meta"):
            self.model = transformers.Qwen3Model._from_config(self.config, attn_implementation="sdpa")
        backbone = {n.removeprefix("model."): t for n, t in weights.tensors.items() if n.startswith("model.")}
        self.model.load_state_dict(backbone, assign=True)
        self.model.rotary_emb = type(self.model.rotary_emb)(self.config).to(weights.device)  # computed, not stored
        self.model.eval()
        self._tensors, self.device = weights.tensors, weights.device

    def new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.config)

    def hidden(self, ids: Sequence[int], cache: Any = None) -> Tensor:
        """[n, hidden_size] after the final norm."""
        given = torch.tensor([list(ids)], device=self.device)
        with torch.inference_mode():
            found = self.model(input_ids=given, past_key_values=cache, use_cache=cache is not None)
        return found.last_hidden_state[0]  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor, side: str = "") -> tuple[Tensor, Tensor]:
        """Of the risk [n, 3] and the category [n, c]; `side` is "" for a response, "query_" for a query."""
        with torch.inference_mode():
            x = F.linear(hidden, self._tensors[f"{side}risk_level_category_pre.weight"])
            norm = self._tensors[f"{side}risk_level_category_layernorm.weight"]
            x = F.rms_norm(x, norm.shape, norm, self.config.rms_norm_eps)
            risk = F.linear(x, self._tensors[f"{side}risk_level_head.weight"])
            return risk, F.linear(x, self._tensors[f"{side}category_head.weight"])

    def published(self, ids: Sequence[int]) -> tuple[dict[str, list[str]], Tensor]:
        """What the published loop does for one more token: the whole sequence again, all heads at all positions, and
        every position's verdict as Python strings. With the response logits of the last position, [3 + c]."""
        hidden = self.hidden(ids)
        verdicts: dict[str, list[str]] = {}
        last = []
        for side in CATEGORIES:
            for kind, names, found in zip(
                ("risk", "category"), (SEVERITY_LABELS, CATEGORY_LABELS), self.logits(hidden, side), strict=True
            ):
                best = torch.softmax(found, dim=-1).argmax(dim=-1)
                verdicts[f"{side}{kind}"] = [names[i] for i in best.tolist()]
                last += [found[-1]] if side == "" else []
        return verdicts, torch.cat(last)


def random_ids(weights: RandomWeights, n: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(weights.config.vocab_size, (n,), generator=generator).tolist()  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------------- options


def parser(doc: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--size", choices=SIZES, default="0.6B")
    made.add_argument("--device", help="default: CUDA where there is one, else the CPU")
    made.add_argument("--dtype", choices=DTYPES, help="default: as guardkit chooses for the device")
    made.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    return made


def make_weights(args: argparse.Namespace, family: str = "Stream") -> RandomWeights:
    """The weights that the options ask for; says on which device. After `common.header`."""
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    if args.threads:
        torch.set_num_threads(args.threads)
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        where = f"{card.name}, {card.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}"
    else:
        where = f"{device}, {torch.get_num_threads()} threads"
    name = str(dtype).removeprefix("torch.")
    print(f"Random weights at the shapes of Qwen3Guard-{family}-{args.size}, {name}, on {where}.\n", flush=True)
    return RandomWeights(args.size, dtype, device)


# ------------------------------------------------------------------------------------------------------- figures


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_mib(device: torch.device) -> float | None:
    """Memory that is taken now: of the CUDA device, else of this process."""
    return torch.cuda.memory_allocated(device) / MIB if device.type == "cuda" else rss_mib()


def memory_name(device: torch.device) -> str:
    return "CUDA MiB" if device.type == "cuda" else "RSS MiB"


def _best(call: Callable[[], object], device: torch.device, runs: int) -> float:
    """Seconds of the fastest of `runs` calls, after one to warm up."""
    seconds = []
    for _ in range(runs + 1):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def copy_bandwidth(device: torch.device, mib: int | None = None, runs: int = 5) -> float:
    """Bytes read and written a second by a large copy."""
    size = (mib or (4096 if device.type == "cuda" else 512)) * MIB
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / _best(lambda: target.copy_(source), device, runs)


def matmul_peak(device: torch.device, dtype: torch.dtype, width: int | None = None, runs: int = 5) -> float:
    """FLOPs a second of a large square matrix product."""
    width = width or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn((width, width), dtype=dtype, device=device) for _ in range(2))
    return 2 * width**3 / _best(lambda: torch.mm(a, b), device, runs)


def main() -> None:
    rows = []
    for size, c in SIZES.items():
        sizes = (c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads, c.head_dim)
        parameters = sum(math.prod(shape) for shape in Qwen3.shapes(c).values())
        kv = Cache.bytes_per_token(c, torch.bfloat16)
        rows.append([size, *map(str, sizes), f"{c.intermediate_size}", f"{parameters / 1e6:,.0f}", f"{kv / 1024:,.0f}"])
    head = ["size", "hidden", "layers", "heads", "kv heads", "head dim", "intermediate", "million weights"]
    table([*head, "KV KiB a token, bf16"], rows)


if __name__ == "__main__":
    main()
