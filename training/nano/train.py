"""Train nano on what prepare.py wrote.

    python training/nano/train.py --work WORK --minutes 60 [--resume] [--device cuda]

Writes WORK/nano.pt (the weights), WORK/nano-state.pt (what `--resume` goes on from: weights, optimiser, progress) and
WORK/nano.log. The rate falls with the clock, so a run ends in time on any machine. Loss: the severity of a prompt at
its closing [SEP]; the severity of a response at every token (safe rows) or with a weight that grows towards its end
(the others: where the harm begins is not labelled); the category where the severity is not safe; the refusal over a
response's second half.
"""

from __future__ import annotations

import argparse
import gzip
import json
import pickle
import random
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
from model import CATEGORIES, SEVERITIES, Nano  # noqa: E402
from model import load as load_model  # noqa: E402

from guardkit.models.nano.unigram import CLS, SEP, UnigramTokenizer  # noqa: E402

# Share of the short prompts, by severity, shown inside a log line or a JSON record, and of the others those shown amid
# harmless text. In such frames most texts are harmless, unlike in the training data: with equal shares the frame
# itself came to mean harm.
WRAP_SHARE = (0.25, 0.08, 0.08)
BURY_SHARE = (0.20, 0.10, 0.10)
# Of the short responses, harmless and harmful alike, those that go on from a harmless one: where harm begins late is
# learnt from these, whose first part is known to be safe.
LATE_SHARE = 0.35
FULL, SHORT = 0.3, 112  # the share of texts shown at full length, and the length of the others: a third less to compute
READ = 32  # positions of a response that are judged in one step
CONTEXT = 62  # tokens of the prompt that stand before a response: its head and its tail
STATEMENTS = ("hatecheck", "toxic_spans_civil", "davidson_hate", "hatemoji_build", "multilingual_hatecheck",
              "surge_toxicity", "toxigen_demonstrations", "synthetic_logs", "synthetic_code", "synthetic_chat",
              "synthetic_tool", "paradetox", "outputs", "benign_sib200_multilingual")  # fmt: skip


class Row(NamedTuple):
    query: bool  # judged by the query heads
    context: list[int]
    text: list[int]
    severity: int  # -1: not labelled
    categories: tuple[int, ...]
    refusal: int  # 1, 0, -1: not labelled
    weight: float
    statement: bool  # makes sense as a response too
    source: str
    lang: str


class Example(NamedTuple):
    ids: list[int]
    first: int  # index of the first judged position
    row: Row
    clean: int = 0  # of the judged positions, the first that belong to a harmless text before the row's own


def vocabulary(work: Path) -> UnigramTokenizer:
    return UnigramTokenizer(work / "pieces.txt", work / "scores.npy")


def load(path: Path, tokenizer: Any, most: int | None = None) -> list[Row]:
    """The first rows of a file in tokens; kept beside it for the next run with the same vocabulary."""
    kept = path.with_name(f"{path.name}.{tokenizer.size}.{most or 'all'}.tokens")
    if kept.exists() and kept.stat().st_mtime > path.stat().st_mtime:
        with kept.open("rb") as file:
            return [Row(*values) for values in pickle.load(file)]
    rows = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in islice(lines, most):
            r = json.loads(line)
            query = r["kind"] == "prompt"
            rows.append(Row(
                query,
                [] if query else tokenizer.encode(r["prompt"] or "")[0],
                tokenizer.encode((r["prompt"] if query else r["response"])[:20000])[0],
                SEVERITIES.index(r["severity"]) if r["severity"] else -1,
                tuple(CATEGORIES.index(c) for c in r["categories"]),
                -1 if r["refusal"] is None else int(r["refusal"]),
                r["weight"], r["source"] in STATEMENTS, r["source"], r["lang"],
            ))  # fmt: skip
    with kept.open("wb") as file:
        pickle.dump([tuple(row) for row in rows], file)
    return rows


def wraps(tokenizer: UnigramTokenizer, rng: random.Random, count: int = 600) -> list[tuple[list[int], list[int]]]:
    """Token prefixes and suffixes that make a text a record of a log, a JSON object or a chat export."""

    def stamp() -> str:
        date = f"20{rng.randint(15, 29)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}"
        return rng.choice((f"{date}T{clock}Z", f"{date} {clock},{rng.randint(0, 999):03}", f"[{date} {clock}]", clock))

    def level() -> str:
        return rng.choice(("INFO", "DEBUG", "WARN", "info", "[info]", "INFO:", "NOTICE"))

    def who() -> str:
        return rng.choice(("user", "alice", "guest", "customer", "u", "user_")) + str(
            rng.choice(("", rng.randint(1, 9999)))
        )

    out = []
    for _ in range(count):
        key = rng.choice(("text", "message", "prompt", "content", "query", "q", "input", "msg", "body"))
        before, after = rng.choice((
            (f'{stamp()} {level()} {rng.choice(("chat", "api", "web", "bot", "gateway"))} {rng.choice(("conv", "id", "session", "req"))}={rng.randint(0, 16**6):x} role=user {key}="', '"'),
            (f"{stamp()} {level()} {rng.choice(('received', 'user said', 'incoming message', 'new prompt', 'request'))}: ", ""),
            (f'{{"ts": "{stamp()}", "level": "{level().lower()}", "user": "{who()}", "{key}": "', '"}'),
            (f'{{"role": "user", "{key}": "', '"}'),
            (f"{stamp()} <{who()}> ", ""),
            (f"{who()}: ", ""),
            (f"{stamp()} {who()} {rng.choice(('->', 'to', '>'))} {rng.choice(('bot', 'assistant', 'support'))}: ", ""),
            (f"level={level().lower()} ts={stamp()} user={who()} {key}=", f" latency={rng.randint(1, 900)}ms"),
            (f"{key}='", f"' status=200 len={rng.randint(5, 900)}"),
        ))  # fmt: skip
        out.append((tokenizer.encode(before)[0], tokenizer.encode(after)[0]))
    return out


def head_and_tail(ids: list[int], limit: int) -> list[int]:
    return ids if len(ids) <= limit else ids[: limit // 2] + ids[-(limit - limit // 2) :]


Wraps = list[tuple[list[int], list[int]]]


class Frames(NamedTuple):
    """What a text can stand in: records of a log, and other harmless texts around it; behind which harmless responses."""

    wraps: Wraps
    fillers: list[list[int]]
    responses: list[list[int]]

    def around(self, text: list[int], severity: int, room: int, rng: random.Random) -> list[int]:
        """`text` as it is, as a record, or buried in harmless text."""
        if len(text) < 100 and rng.random() < WRAP_SHARE[severity]:
            before, after = rng.choice(self.wraps)
            return [*before, *text, *after]
        if len(text) < 80 and rng.random() < BURY_SHARE[severity]:
            wanted = rng.randint(len(text), room)
            before, after = [], []
            while len(before) + len(text) + len(after) < wanted:
                filler = rng.choice(self.fillers)
                if rng.random() < 0.5:
                    before = [*filler, *before]
                else:
                    after += filler
            keep = max(0, wanted - len(text))
            cut = min(len(before), max(keep - len(after), rng.randint(0, keep)))
            return [*before[len(before) - cut :], *text, *after[: keep - cut]]
        return text


def example(row: Row, limit: int, rng: random.Random | None, frames: Frames | None = None) -> Example | None:
    """Cut a row to `limit` positions the way the runtime's windows do; `rng=None`: no chance, the first window."""
    chance = rng.random() if rng else 0.0
    query = row.query
    if query and row.statement and rng and rng.random() < 0.25:
        query = False
    if query:
        room = limit - 2
        text = frames.around(row.text, row.severity, room, rng) if rng and frames else row.text
        spare = len(text) - room
        if spare > 0:
            # A harmful long prompt mostly shows it at its head or its tail; a safe one must be safe everywhere.
            start = rng.randint(0, spare) if rng and row.severity == 0 else (0 if chance < 0.6 else spare)
            text = text[start : start + room]
        ids = [CLS, *text, SEP]
        return Example(ids, len(ids) - 1, row._replace(query=True))
    context = head_and_tail(row.context, CONTEXT) if chance < 0.8 else []
    room = limit - 2 - len(context)
    text, spare = row.text, len(row.text) - room
    if not text:
        return None
    clean = 0
    if spare > 0:
        start = rng.randint(0, spare) if rng and (row.severity == 0 or rng.random() < 0.3) else 0
        text = text[start : start + room]
    elif spare < -16 and row.severity >= 0 and rng and frames and rng.random() < LATE_SHARE:
        before = rng.choice(frames.responses)[: rng.randint(8, -spare)]
        text, clean = [*before, *text], len(before)
    ids = [CLS, *context, SEP, *text]
    return Example(ids, len(ids) - len(text), row._replace(query=False), clean)


def batches(examples: list[Example], tokens: int, rng: random.Random) -> Iterator[list[Example]]:
    """Batches of at most `tokens` padded positions, of alike lengths, in random order."""
    rng.shuffle(examples)
    pools = [sorted(examples[i : i + 20000], key=lambda e: len(e.ids)) for i in range(0, len(examples), 20000)]
    for pool in pools:
        cut: list[list[Example]] = []
        batch: list[Example] = []
        for e in pool:
            if batch and (len(batch) + 1) * len(e.ids) > tokens:
                cut.append(batch)
                batch = []
            batch.append(e)
        cut.append(batch)
        rng.shuffle(cut)
        yield from cut


def ramp(n: int) -> np.ndarray:
    """Weights of a text's positions that grow towards its end, as it is not known where the harm begins; the last one
    sees everything and counts more than all others together. They sum up to 1."""
    w = np.clip((np.arange(n) + 1) / n - 0.3, 0, None)
    w[-1] += w.sum()
    return w / w.sum()


def tensors(batch: list[Example], device: str) -> dict[str, torch.Tensor]:
    """Padded ids and, for every judged position, its row, column, targets and weights."""
    width = max(len(e.ids) for e in batch)
    ids = np.zeros((len(batch), width), np.int64)
    out: dict[str, list] = {k: [] for k in ("b", "t", "q", "severity", "w", "refusal", "wr")}
    categories = np.zeros((len(batch), 9), np.float32)
    for b, e in enumerate(batch):
        ids[b, : len(e.ids)] = e.ids
        row = e.row
        if row.severity > 0 and row.categories:
            categories[b, list(row.categories)] = 1 / len(row.categories)
            if not row.query and categories[b, 8]:
                categories[b] = 0
        n = len(e.ids) - e.first
        at = np.arange(n)
        severity = np.full(n, max(row.severity, 0))
        severity[: e.clean] = 0
        # Of what begins harmless half of the weight is for that part.
        w = (
            np.ones(n)
            if row.severity == 0
            else np.concatenate((np.full(e.clean, 1 / max(e.clean, 1)), ramp(n - e.clean)))
        )
        wr = np.clip((at + 1) / n - 0.5, 0, None) if not row.query and row.refusal >= 0 else np.zeros(n)
        if e.clean:
            wr[:] = 0
        if n > READ:  # of a long response some positions, the last among them
            kept = np.sort(np.append(np.random.choice(n - 1, READ - 1, replace=False), n - 1))
            at, w, wr, severity, n = at[kept], w[kept], wr[kept], severity[kept], READ
        out["b"].append(np.full(n, b))
        out["t"].append(e.first + at)
        out["q"].append(np.full(n, row.query))
        out["severity"].append(severity)
        out["w"].append(w / w.sum() * row.weight * (row.severity >= 0))
        out["refusal"].append(np.full(n, max(row.refusal, 0)))
        out["wr"].append(wr / max(wr.sum(), 1e-9))
    flat = {k: torch.from_numpy(np.concatenate(v)).to(device) for k, v in out.items()}
    frame = torch.tensor([e.first for e in batch], device=device)
    return flat | {
        "ids": torch.from_numpy(ids).to(device),
        "frame": frame,
        "categories": torch.from_numpy(categories).to(device),
    }


def loss_of(model: Nano, t: dict[str, torch.Tensor], dropout: float) -> torch.Tensor:
    n, width = t["ids"].shape
    hidden = model(t["ids"], t["frame"], t["b"] * width + t["t"], dropout)
    total = hidden.new_zeros((), dtype=torch.float32)
    for query in (True, False):
        pick = t["q"] == query
        if not pick.any():
            continue
        b, w = t["b"][pick], t["w"][pick].float()
        h = hidden[pick]
        logits = (model.query(h) if query else model.response(h)).float()
        total = (
            total
            + (F.cross_entropy(logits[:, :3], t["severity"][pick], reduction="none", label_smoothing=0.03) * w).sum()
        )
        width = 9 if query else 8
        target = t["categories"][b][:, :width]
        told = w * (t["severity"][pick] > 0)
        total = total - 0.3 * ((F.log_softmax(logits[:, 3 : 3 + width], -1) * target).sum(-1) * told).sum()
        if not query:
            wr, refusal = t["wr"][pick].float(), t["refusal"][pick].float()
            total = (
                total + 0.3 * (F.binary_cross_entropy_with_logits(logits[:, 11], refusal, reduction="none") * wr).sum()
            )
    return total / n


@torch.no_grad()
def evaluate(model: Nano, rows: list[Row], device: str) -> str:
    from sklearn.metrics import average_precision_score

    model.eval()
    result = []
    for query in (True, False):
        picked = [e for r in rows if r.query == query and r.severity >= 0 and (e := example(r, 192, None))]
        picked.sort(key=lambda e: len(e.ids))
        scores, labels = [], []
        for i in range(0, len(picked), 64):
            t = tensors(picked[i : i + 64], device)
            width = t["ids"].shape[1]
            last = torch.tensor([len(e.ids) - 1 + b * width for b, e in enumerate(picked[i : i + 64])], device=device)
            h = model(t["ids"], t["frame"], last)
            p = (model.query(h) if query else model.response(h))[:, :3].softmax(-1)
            scores += p.tolist()
            labels += [e.row.severity for e in picked[i : i + 64]]
        s, y = np.array(scores), np.array(labels)
        result.append(
            f"{'query' if query else 'response'} n={len(y)} acc={np.mean(s.argmax(1) == y):.4f} "
            f"AP(not safe)={average_precision_score(y > 0, 1 - s[:, 0]):.4f} AP(unsafe)={average_precision_score(y == 2, s[:, 2]):.4f}"
        )
    model.train()
    return "; ".join(result)


def meet(model: Nano, partner: Path) -> None:
    """Average the weights with those that another run left, if there is one."""
    if partner.exists():
        others = torch.load(partner, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.requires_grad:
                    weight.lerp_(others[name].to(weight.device), 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60, help="of all legs together")
    parser.add_argument("--batch", type=int, default=3072, help="padded tokens a step")
    parser.add_argument("--limit", type=int, default=192)
    parser.add_argument("--lr", type=float, default=1.5e-4)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--half", action="store_true", help="bf16 on the CPU too: faster where it has AMX, slower elsewhere"
    )
    parser.add_argument("--resume", action="store_true", help="go on from WORK/nano-state.pt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="weights to start from")
    parser.add_argument("--prompts", type=float, default=1.0, help="the share of the prompt rows that is used")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--name", default="nano", help="of this process's files")
    parser.add_argument("--partner", help="the name of another run on this machine: weights are averaged with its")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    rng = random.Random(args.seed)
    tokenizer = vocabulary(args.work)
    train, dev = load(args.work / "train.jsonl.gz", tokenizer), load(args.work / "dev.jsonl.gz", tokenizer)
    dev = random.Random(0).sample(dev, min(3000, len(dev)))
    train = [row for row in train if not row.query or rng.random() < args.prompts]
    harmless = [r.text for r in train if r.query and r.severity == 0 and r.weight == 1 and len(r.text) >= 5]
    responses = [r.text for r in train if not r.query and r.severity == 0 and r.weight == 1 and len(r.text) >= 12]
    frames = Frames(
        wraps(tokenizer, random.Random(args.seed)), rng.sample(harmless, min(20000, len(harmless))), responses
    )
    model = load_model(args.work, args.start, positions=args.limit).to(args.device)
    half = args.device != "cpu" or args.half
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    heads = [p for n, p in named if "_pre" in n or "_head" in n]
    body = [p for n, p in named if not ("_pre" in n or "_head" in n)]
    groups = [{"params": body, "lr": args.lr}, {"params": heads, "lr": args.lr * 3}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    done, step, before = 0, 0, 0.0
    if args.resume:
        state = torch.load(args.work / f"{args.name}-state.pt", map_location=args.device, weights_only=True)
        model.load_state_dict(model.state_dict() | state["weights"])
        optimiser.load_state_dict(state["optimiser"])
        done, step, before = state["tokens"], state["step"], state["seconds"]

    def save() -> None:
        spent = before + time.time() - start
        state = {
            "weights": model.kept(),
            "optimiser": optimiser.state_dict(),
            "tokens": done,
            "step": step,
            "seconds": spent,
        }
        for name, value in ((f"{args.name}.pt", state["weights"]), (f"{args.name}-state.pt", state)):
            torch.save(value, args.work / (name + ".new"))
            (args.work / (name + ".new")).replace(args.work / name)

    start, first, smooth, warmup, total = time.time(), done, 0.0, 0.04, args.minutes * 60
    log = (args.work / f"{args.name}.log").open("a", buffering=1)
    print(f"train {len(train)} dev {len(dev)} args {vars(args)}", file=log)
    while (at := (before + time.time() - start) / total) < 1:
        lengths = ((rng.random() < FULL and args.limit) or SHORT for _ in train)
        examples = [e for r, n in zip(train, lengths, strict=True) if (e := example(r, n, rng, frames))]
        print(f"a pass over {sum(len(e.ids) for e in examples) / 1e6:.2f} M tokens", file=log)
        for batch in batches(examples, args.batch, rng):
            if (at := (before + time.time() - start) / total) >= 1:
                break
            rate = max(0.01, min(at / warmup, (1 - at) / (1 - warmup)))
            for group, base in zip(optimiser.param_groups, (args.lr, args.lr * 3), strict=True):
                group["lr"] = base * rate
            t = tensors(batch, args.device)
            with torch.autocast(args.device, torch.bfloat16, enabled=half):
                loss = loss_of(model, t, args.dropout)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(body + heads, 1.0)
            optimiser.step()
            done += t["ids"].numel()
            step += 1
            smooth = loss.item() if step == 1 else 0.98 * smooth + 0.02 * loss.item()
            if step % 25 == 0:
                speed = (done - first) / (time.time() - start)
                print(f"step {step} tokens {done / 1e6:.2f}M loss {smooth:.4f} {speed:.0f} tok/s at {at:.3f}", file=log)
            if step % 50 == 0:
                save()
                meet(model, args.work / f"{args.partner}.pt")
            if step % 600 == 0:
                print(evaluate(model, dev, args.device), file=log)
    save()
    print(evaluate(model, dev, args.device), file=log)
    print(f"finished: {done / 1e6:.2f} M tokens in {before + time.time() - start:.0f} s", file=log)


if __name__ == "__main__":
    main()
