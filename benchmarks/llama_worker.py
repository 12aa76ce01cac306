"""Times llama.cpp's Q8_0 at the shapes of Qwen3 with random weights: for `int8_weights.py --llama-python`.

Run by an interpreter that has llama-cpp-python and gguf. The first line of its input are the shapes, as JSON; its first
answer is the memory in MiB once the model is loaded. Then each line [context, tokens, threads] is answered with
milliseconds of the prefill and of a token after it, CPU milliseconds of that token, and the same two with the logits of
all words, which a guard does not need. Without them llama.cpp leaves the last layer's second half out too.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BLOCK = 32  # weights of Q8_0 that share a scale of 2 bytes


def write(path: Path, c: dict[str, Any]) -> None:
    import gguf
    import numpy as np

    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(str(path), "qwen3")
    writer.add_context_length(32768)
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_key_length(c["head_dim"])
    writer.add_value_length(c["head_dim"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_vocab_size(c["vocab_size"])
    writer.add_tokenizer_model("none")

    def matrix(name: str, rows: int, columns: int) -> None:
        blocks = np.empty((rows, columns // BLOCK, 2 + BLOCK), np.uint8)
        scale = np.float16(1 / 73 / columns**0.5)  # the spread of whole numbers up to 127 is about 73
        blocks[..., :2] = np.frombuffer(scale.tobytes(), np.uint8)
        blocks[..., 2:] = rng.integers(-127, 128, (rows, columns // BLOCK, BLOCK), dtype=np.int8).view(np.uint8)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=kind)

    def norm(name: str, n: int) -> None:
        writer.add_tensor(name, np.ones(n, np.float32))

    hidden, inner, head = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    matrix("token_embd.weight", c["vocab_size"], hidden)
    norm("output_norm.weight", hidden)
    for i in range(c["num_hidden_layers"]):
        norm(f"blk.{i}.attn_norm.weight", hidden)
        matrix(f"blk.{i}.attn_q.weight", c["num_attention_heads"] * head, hidden)
        matrix(f"blk.{i}.attn_k.weight", c["num_key_value_heads"] * head, hidden)
        matrix(f"blk.{i}.attn_v.weight", c["num_key_value_heads"] * head, hidden)
        matrix(f"blk.{i}.attn_output.weight", hidden, c["num_attention_heads"] * head)
        norm(f"blk.{i}.attn_q_norm.weight", head)
        norm(f"blk.{i}.attn_k_norm.weight", head)
        norm(f"blk.{i}.ffn_norm.weight", hidden)
        matrix(f"blk.{i}.ffn_gate.weight", inner, hidden)
        matrix(f"blk.{i}.ffn_up.weight", inner, hidden)
        matrix(f"blk.{i}.ffn_down.weight", hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Model:
    def __init__(self, path: Path, vocabulary: int):
        import llama_cpp

        self._vocabulary = vocabulary
        self._llama = llama = llama_cpp
        llama.llama_backend_init()
        options = llama.llama_model_default_params()
        options.n_gpu_layers, options.use_mmap = 0, False
        self._model = llama.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            sys.exit("llama.cpp does not load what was written for it")
        options = llama.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = 2048
        self._context = llama.llama_init_from_model(self._model, options)
        self._batch = llama.llama_batch_init(2048, 0, 1)

    def threads(self, n: int) -> None:
        self._llama.llama_set_n_threads(self._context, n, n)

    def clear(self) -> None:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)

    def decode(self, ids: list[int], at: int, logits: bool) -> None:
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token % self._vocabulary, at + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = int(logits and i == len(ids) - 1)
        if self._llama.llama_decode(self._context, batch):
            sys.exit("llama.cpp could not decode")

    def time(self, context: int, tokens: int) -> list[float]:
        self.clear()
        start = time.perf_counter()
        self.decode([7919 * i for i in range(context)], 0, False)
        found = [time.perf_counter() - start]
        for logits in (False, True):
            start, cpu = time.perf_counter(), time.process_time()
            for i in range(tokens):
                self.decode([104729 * i], context + i, logits)
            found += [(time.perf_counter() - start) / tokens, (time.process_time() - cpu) / tokens]
            self._llama.llama_memory_seq_rm(self._llama.llama_get_memory(self._context), 0, context, -1)
        return [seconds * 1e3 for seconds in found]


def rss_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) / 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        shapes = json.loads(sys.stdin.readline())
        write(path, shapes)
        model = Model(path, shapes["vocab_size"])
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    print(json.dumps(rss_mib()), flush=True)
    for line in sys.stdin:
        context, tokens, threads = json.loads(line)
        model.threads(threads)
        print(json.dumps(model.time(context, tokens)), flush=True)


if __name__ == "__main__":
    main()
