"""A small Qwen3Guard-Gen checkpoint that speaks the grammar: trained here, in a minute at most, and kept.

The layout is the published one (`checkpoints.write_gen`). Words of a made-up rule decide the answer: some name
categories, some soften, some refuse, some make the model leave out the Refusal line. It need not be right, only answer
within the grammar: its greedy text is the oracle for what guardkit reads from logits.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tests.engine.checkpoints import IM_END, write_gen

SEED = 0
STEPS = 170
BATCH = 24
RATE = 4e-3
NEGATIVES = 512  # other tokens that each step of the training compares with
SHAPE = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate": 128}

NAMED = {
    "Violent": (" stab", " schlagen", "殴打"),
    "Non-violent Illegal Acts": (" smuggle", " stehlen", "走私"),
    "Sexual Content or Sexual Acts": (" erotic", " nackt", "色情"),
    "PII": (" passport", " Adresse", "身份证"),
    "Suicide & Self-Harm": (" suicide", " Selbst", "自杀"),
    "Unethical Acts": (" bully", " Betrug", "歧视"),
    "Politically Sensitive Topics": (" coup", " Aufstand", "政变"),
    "Copyright Violation": (" pirated", " kopieren", "盗版"),
    "Jailbreak": (" ignore", " umgehen", "绕过"),
}
SOFT = (" perhaps", " vielleicht", "也许")
REFUSES = (" sorry", " leider", "抱歉")
SHORT = (" brief", " kurz", "简短")
FILLERS = (
    (" the", " garden", " we", " walked", " along", " a", " river", " and", " talked", " about", " old", " books",
     " while", " rain", " fell", " on", " quiet", " streets", ",", " then", " tea", " at", " five", "."),
    (" das", " Haus", " wir", " gehen", " und", " lesen", " ein", " Buch", " am", " Abend", " mit", " Freunden",
     " über", " Straße", ",", " dann", " Tee", " um", " fünf", "."),
    ("我们", "今天", "去", "公园", "看", "花", "，", "然后", "回家", "喝茶", "读书", "天气", "很好", "。"),
    (" сад", " мы", " шли", " вдоль", " реки", ".", " النهر", " قديم", " كتاب", " 川", " そして",
     " naïve", " café", "☕", "\n", " x", " =", " 1", "2"),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """messages: as chat APIs give them; answer: what the rule says."""

    messages: list[dict[str, str]]
    answer: str


def rows(seed: int, n: int) -> list[Row]:
    """Prompts and responses with their answers; a third of them harmless, lists of up to three categories."""
    rng = random.Random(seed)
    return [_row(rng) for _ in range(n)]


def _row(rng: random.Random) -> Row:
    response = rng.random() < 0.55
    filler = rng.choice(FILLERS)
    words = rng.choices(filler, k=rng.randrange(4, 16))
    names = [name for name in NAMED if not (response and name == "Jailbreak")]
    named = sorted(rng.sample(names, rng.choice((0, 0, 0, 1, 1, 1, 1, 2, 2, 3))), key=names.index)
    soft, refuses, short = (rng.random() < share for share in (0.4, 0.4, 0.25))
    for keys in [NAMED[name] for name in named] + [SOFT] * soft + [REFUSES] * refuses + [SHORT] * short:
        words.insert(rng.randrange(len(words) + 1), rng.choice(keys))
    text = "".join(words).strip()
    severity = "Safe" if not named else "Controversial" if soft else "Unsafe"
    answer = f"Safety: {severity}\nCategories: {', '.join(named) or 'None'}"
    if not response:
        return Row([{"role": "user", "content": text}], answer)
    asked = "".join(rng.choices(rng.choice(FILLERS), k=rng.randrange(2, 8))).strip() or "?"
    if not short:
        answer += f"\nRefusal: {'Yes' if refuses else 'No'}"
    return Row([{"role": "user", "content": asked}, {"role": "assistant", "content": text}], answer)


def cached() -> Path:
    """The checkpoint's folder; trained once per user and recipe."""
    recipe = b"".join(Path(file).read_bytes() for file in (__file__, Path(__file__).with_name("checkpoints.py")))
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "guardkit-tests"
    folder = root / f"gen-{hashlib.sha256(recipe + torch.__version__.encode()).hexdigest()[:16]}"
    if not (folder / "model.safetensors").is_file():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as made:
            build(Path(made) / "checkpoint")
            try:
                os.replace(Path(made) / "checkpoint", folder)
            except OSError:  # another run was first
                shutil.rmtree(Path(made) / "checkpoint")
    return folder


def build(folder: Path, steps: int = STEPS, log: Any = None) -> None:
    """Train and write. Seeded; the backbone and the answer's rows of the (tied) embedding learn."""
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    write_gen(folder, **SHAPE, seed=SEED)  # type: ignore[arg-type]
    torch.manual_seed(SEED)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as fast at this size, ten times as fast beside others, and always the same sums
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = Qwen3ForCausalLM.from_pretrained(str(folder), dtype=torch.float32, attn_implementation="sdpa")
    made = _Training(model, tokenizer)
    order = random.Random(SEED)
    examples = [made.example(row) for row in rows(SEED, 1500)]
    for step in range(steps):
        loss = made.step(order.sample(examples, BATCH), RATE * min(1.0, (step + 1) / 20, 3 * (1 - step / steps)))
        if log and step % 20 == 0:
            log(step, loss)
    torch.set_num_threads(threads)
    made.finish()
    stored = {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


class _Training:
    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer
        self.table = model.model.embed_tokens.weight.detach().clone()
        words = [word for words in (*NAMED.values(), SOFT, REFUSES, SHORT) for word in words]
        told = torch.tensor([i for word in words for i in tokenizer(word)["input_ids"]])
        pieces = [row.answer + "<|im_end|>" for row in rows(SEED, 1500)]
        self.own = torch.tensor(sorted({i for piece in pieces for i in tokenizer(piece)["input_ids"]}))
        self._point(told)
        self.at = torch.full((len(self.table),), -1)
        self.at[self.own] = torch.arange(len(self.own))
        self.rows = torch.nn.Parameter(self.table[self.own].clone())
        self.others = torch.tensor([i for i in range(len(self.table)) if self.at[i] < 0])
        self.generator = torch.Generator().manual_seed(SEED)
        parameters = [p for name, p in model.named_parameters() if "embed_tokens" not in name and "lm_head" not in name]
        self.optimizer = torch.optim.AdamW([*parameters, self.rows], lr=RATE, weight_decay=0.0, betas=(0.9, 0.98))

    def _point(self, told: torch.Tensor) -> None:
        """What takes attention longest to find is given: in one head, the answer looks at the words of the rule."""
        shape = self.model.config
        looks, seen = F.normalize(torch.randn(2, shape.hidden_size), dim=1)
        norm = self.table.norm(dim=1).mean()
        self.table[told] += norm * seen
        self.table[self.own] += norm * looks
        slow = shape.head_dim // 2 - 1  # the pair of dimensions that positions turn least
        with torch.no_grad():
            for layer in self.model.model.layers:
                layer.self_attn.k_proj.weight[slow] += 3 * seen
                for head in range(shape.num_attention_heads // shape.num_key_value_heads):
                    layer.self_attn.q_proj.weight[head * shape.head_dim + slow] += 3 * looks
                layer.self_attn.o_proj.weight *= 0.3  # what random layers add is noise at first
                layer.mlp.down_proj.weight *= 0.3

    def example(self, row: Row) -> tuple[list[int], int]:
        """Ids of template and answer, and where the answer begins."""
        text = self.tokenizer.apply_chat_template(row.messages, tokenize=False)
        before = self.tokenizer(text)["input_ids"]
        return [*before, *self.tokenizer(row.answer)["input_ids"], IM_END], len(before)

    def step(self, batch: list[tuple[list[int], int]], rate: float) -> float:
        longest = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([ids + [IM_END] * (longest - len(ids)) for ids, _ in batch])  # behind: never looked at
        learned = (self.at[ids] >= 0).unsqueeze(-1)
        embedded = torch.where(learned, self.rows[self.at[ids].clamp(min=0)], self.table[ids])
        hidden = self.model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        where = [(i, at) for i, (own, begin) in enumerate(batch) for at in range(begin - 1, len(own) - 1)]
        read = hidden[[i for i, _ in where], [at for _, at in where]]
        targets = self.at[ids[[i for i, _ in where], [at + 1 for _, at in where]]]
        drawn = self.others[torch.randint(len(self.others), (NEGATIVES,), generator=self.generator)]
        negative = read @ self.table[drawn].T + torch.tensor(len(self.others) / NEGATIVES).log()
        loss = F.cross_entropy(torch.cat([read @ self.rows.T, negative], 1), targets)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def finish(self) -> None:
        with torch.no_grad():
            self.table[self.own] = self.rows
            self.model.model.embed_tokens.weight.copy_(self.table)
