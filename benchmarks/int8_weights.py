"""Weights in 8 bits beside float32 and bfloat16 on a CPU: milliseconds a token, memory, and how far scores move.

    python benchmarks/int8_weights.py [--size 0.6B] [--context 128] [--tokens 8] [--rounds 7] [--threads 1]
        [--llama-python PATH]

Every kind runs in a process of its own, so that its memory is its own; they take turns, one round after another. All
have the same random weights, which are drawn layer by layer where they are needed. Scores are compared on sequences of
random ids, position by position. Random weights carry an error further than trained ones do, so what is shown of
severities is an upper bound; they are compared where float32 has a clear margin.

The kinds "-small-pages" leave the weights in the pages that malloc laid them in, see `engine/host_memory.py`.
`--llama-python` adds llama.cpp's Q8_0 at the same shapes, by an interpreter that has llama-cpp-python and gguf. On a
busy machine times say little: with `--threads 1` the CPU time of a token is worth comparing, since nobody waits for
another thread.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from common import header, mib, rss_mib, table

KINDS: dict[str, dict[str, str]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8"},
    "float32-small-pages": {"dtype": "float32"},
    "int8-small-pages": {"quantize": "int8"},
}
DEFAULT = ("float32", "bfloat16", "int8")
CLEAR = 0.1  # the margin of probability from which on two kinds should agree
SEQUENCES, LENGTH = 8, 64


def worker(pipe: Connection, size: str, kind: str, threads: int | None) -> None:
    import torch
    from stream_models import CATEGORIES, RISKS, SIZES

    from guardkit.engine import setup
    from guardkit.engine.checkpoint import Checkpoint, StoredTensor
    from guardkit.engine.qwen3 import Embedding
    from guardkit.engine.setup import Options, build
    from guardkit.models.stream import _GuardHead

    if threads:
        torch.set_num_threads(threads)
    if kind.endswith("-small-pages"):  # weights stay where malloc laid them
        setup.LARGE_MODEL = sys.maxsize
    config = SIZES[size]
    inner = config.hidden_size // 2

    class Drawn:
        """Stands in for a `Checkpoint`: a tensor is drawn from its name."""

        folder = Path(f"random-{size}")

        def __init__(self) -> None:
            self.config = config

        def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
            pass

        def load(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **_: object) -> dict[str, Any]:
            return {name: self._draw(name, shape).to(dtype) for name, shape in shapes.items()}

        @property
        def tensors(self) -> dict[str, StoredTensor]:
            """Embeddings in a file; removed once it is open, it lives as long as that."""
            name, shape = "model.embed_tokens.weight", (config.vocab_size, config.hidden_size)
            file = folder / name
            file.write_bytes(self._draw(name, shape).bfloat16().view(torch.int16).numpy().tobytes())
            return {name: StoredTensor(file, "BF16", shape, 0)}

        def _draw(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
            return self._exact(name, shape).bfloat16().float()  # as published weights are

        def _exact(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            tensor = torch.empty(shape)
            if len(shape) == 1:
                return tensor.normal_(1, 0.1, generator=generator)
            return tensor.normal_(
                0, (3 if name.endswith("head.weight") else 1) / math.sqrt(shape[1]), generator=generator
            )

    shapes: dict[str, tuple[int, ...]] = {
        "risk_level_category_pre.weight": (inner, config.hidden_size),
        "risk_level_category_layernorm.weight": (inner,),
        "risk_level_head.weight": (RISKS, inner),
        "category_head.weight": (CATEGORIES[""], inner),
    }

    def heads(own: dict[str, torch.Tensor], _: Embedding) -> dict[str, Any]:
        return {"response": _GuardHead(own, "", config.rms_norm_eps)}

    options = Options(device="cpu", cache_gib=1.0, threads=threads, **KINDS[kind])  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = build(cast(Checkpoint, Drawn()), shapes, heads, options)
    pipe.send(rss_mib())
    while (asked := pipe.recv()) is not None:
        what, *numbers = asked
        if what == "time":
            pipe.send(_time(engine, config.vocab_size, *numbers))
        else:
            pipe.send(_scores(engine, config.vocab_size))


def _ids(vocabulary: int, n: int, seed: int) -> list[int]:
    import torch

    return torch.randint(vocabulary, (n,), generator=torch.Generator().manual_seed(seed)).tolist()  # type: ignore[no-any-return]


def _time(engine: Any, vocabulary: int, context: int, tokens: int, number: int) -> list[float]:
    """Milliseconds of the prefill, of a token after it, and of CPU for that token. number: of the round, which has
    texts of its own, since a beginning that was computed before is not computed again."""
    ids = _ids(vocabulary, context + tokens, 1000 + number)
    sequence = engine.open()
    start = time.perf_counter()
    engine.submit(sequence, ids[:context]).result()
    prefilled, cpu = time.perf_counter(), time.process_time()
    for token in ids[context:]:
        engine.submit(sequence, [token], "response").result()
    end, cpu_end = time.perf_counter(), time.process_time()
    engine.close(sequence)
    return [(prefilled - start) * 1e3, (end - prefilled) / tokens * 1e3, (cpu_end - cpu) / tokens * 1e3]


class Llama:
    """llama.cpp in a process of its own; what it is asked for and answers, see `llama_worker.py`."""

    def __init__(self, python: str, config: Any, threads: int):
        self._threads = threads
        script = str(Path(__file__).with_name("llama_worker.py"))
        self._process = subprocess.Popen(
            [python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        names = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads")
        shapes = {name: getattr(config, name) for name in (*names, "head_dim", "vocab_size")}
        self.memory = float(self._ask(shapes))

    def time(self, context: int, tokens: int) -> list[float]:
        found: list[float] = self._ask([context, tokens, self._threads])
        return found

    def _ask(self, what: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        if not (line := self._process.stdout.readline()):
            sys.exit("--llama-python: it needs llama-cpp-python and gguf; run llama_worker.py with it to see its error")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _scores(engine: Any, vocabulary: int) -> Any:
    import numpy as np

    found = []
    for seed in range(SEQUENCES):
        sequence = engine.open()
        logits = engine.submit(sequence, _ids(vocabulary, LENGTH, seed), "response").result()[:, :3]
        engine.close(sequence)
        e = np.exp(logits - logits.max(1, keepdims=True))
        found.append(e / e.sum(1, keepdims=True))
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.6B", choices=("0.6B", "4B", "tiny"))
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=8, help="timed in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=DEFAULT)
    parser.add_argument("--llama-python", metavar="PATH", help="an interpreter with llama-cpp-python and gguf")
    args = parser.parse_args()
    header(__doc__.splitlines()[0], "torch", "onnxruntime")
    spawn = mp.get_context("spawn")
    pipes, memory = {}, {}
    for kind in args.kinds:
        pipes[kind], theirs = spawn.Pipe()
        spawn.Process(target=worker, args=(theirs, args.size, kind, args.threads), daemon=True).start()
        memory[kind] = pipes[kind].recv()
        print(f"{kind} is loaded", file=sys.stderr, flush=True)
    llama = None
    if args.llama_python:
        from stream_models import SIZES

        llama = Llama(args.llama_python, SIZES[args.size], args.threads or len(os.sched_getaffinity(0)))
        print("llama.cpp is loaded", file=sys.stderr, flush=True)
    found_ms: dict[str, list[list[float]]] = {kind: [] for kind in pipes}
    of_llama = []
    for n in range(args.rounds + 1):
        for kind, pipe in pipes.items():
            pipe.send(("time", args.context, args.tokens, n))
            found = pipe.recv()
            if n:  # the first round warms up
                found_ms[kind].append(found)
        if llama is not None:
            found = llama.time(args.context, args.tokens)
            of_llama += [found] if n else []
    scores = {}
    for kind, pipe in pipes.items():
        pipe.send(("scores",))
        scores[kind] = pipe.recv()
        pipe.send(None)
    first = args.kinds[0]
    prefill, token, cpu = (
        {kind: statistics.median(found[i] for found in times) for kind, times in found_ms.items()} for i in range(3)
    )
    rows = []
    for kind in pipes:
        a, b = scores[first], scores[kind]
        ordered = sorted(abs(a - b).max(1).tolist())
        top = a.copy()
        top.sort(1)
        clear = top[:, 2] - top[:, 1] > CLEAR
        same = (a.argmax(1) == b.argmax(1))[clear].mean()
        rows.append((
            *_times(kind, [prefill[kind], token[kind], cpu[kind]], [prefill[first], token[first], cpu[first]]),
            mib(memory[kind]), f"{statistics.median(ordered):.4f}",
            f"{ordered[int(len(ordered) * 0.95)]:.4f}", f"{same:.1%} of {clear.sum()}",
        ))  # fmt: skip
    if llama is not None:
        llama.close()
        medians = [statistics.median(column) for column in zip(*of_llama, strict=True)]
        for name, at in (("llama.cpp, Q8_0", 1), ("the same, with logits of all words", 3)):
            times = _times(name, [medians[0], *medians[at : at + 2]], [prefill[first], token[first], cpu[first]])
            rows.append((*times, mib(llama.memory), "-", "-", "-"))
    head = (
        "weights",
        f"ms a token at {args.context}",
        f"times {first}",
        "CPU ms",
        f"times {first}",
        f"ms of {args.context} tokens",
        f"times {first}",
    )
    moved = ("RSS MiB, loaded", "scores moved, median", "p95", f"same severity, margin over {CLEAR}")
    print(f"Random weights at the shapes of Qwen3Guard-Stream-{args.size}; medians of {args.rounds} rounds.\n")
    table((*head, *moved), rows)


def _times(name: str, own: list[float], first: list[float]) -> list[str]:
    """Of a token, of its CPU time, of the prefill: each in milliseconds, and how many times faster than the first."""
    cells = [name]
    for i, digits in ((1, 1), (2, 1), (0, 0)):
        cells += [f"{own[i]:.{digits}f}", f"{first[i] / own[i]:.2f}"]
    return cells


if __name__ == "__main__":
    main()
