# SPDX-License-Identifier: Apache-2.0
"""Fit nano's screen: what is clearly harmless, told from the tokens' embeddings (guardkit/models/nano/screen.py).

    python training/nano/screen.py --work WORK --model guardkit/models/nano [--texts 40000] [--scored 0.2]

1. Texts (`screen_rows.py`): the training rows, logs, code, prose, harm inside of these, disguises.
2. nano judges all dev texts and a part of the training texts (WORK/screen-*.npz; a second run goes on from there).
3. A convolution over projected embeddings, maxima and means, a hidden layer: fitted to what nano says, or where that was
   not asked to the label; then rounded to whole numbers.
4. A limit for each group of languages: of what nano flags of the dev texts at most LOST is settled. What is lost where
   one half's limits meet the other half, and how much of each kind of text is settled, is printed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import screen_rows

sys.path.insert(0, str(Path(__file__).parents[2]))
from guardkit.models.base import Query
from guardkit.models.nano.calibration import GROUPS
from guardkit.models.nano.model import Nano
from guardkit.models.nano.screen import WIDTH, Embeddings, Screen
from guardkit.verdict import Stage

LOST = 0.001  # of what nano flags on dev, in each group of languages: texts of other sources lose more, 0.5% at most
PROJECTED, FILTERS, HIDDEN = 40, 80, 32
MOST_CHARS = {False: 300, True: 500}  # of a text, in training and dev
CHUNK = 1000
HARMFUL = ("harm in logs", "harm in other text", "disguised")
Ids = list[int]


class Net(nn.Module):
    """What `Screen` computes, in real numbers."""

    def __init__(self, width: int):
        super().__init__()
        self.project = nn.Linear(width, PROJECTED)
        self.filters = nn.Conv1d(PROJECTED, FILTERS, WIDTH)
        self.inner = nn.Linear(2 * FILTERS, HIDDEN)
        self.last = nn.Linear(HIDDEN, 1)

    def forward(self, x: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """x [N, T, width], there [N, T] -> [N], the higher the less sure to be harmless"""
        h = torch.relu(self.project(x)) * there[:, :, None]
        y = torch.relu(self.filters(nn.functional.pad(h.transpose(1, 2), (WIDTH // 2, WIDTH // 2)))) * there[:, None]
        pooled = torch.cat((y.amax(2), y.sum(2) / there.sum(1)[:, None]), 1)
        return self.last(torch.relu(self.inner(pooled)))[:, 0]


def windows_of(nano: Nano, texts: Sequence[screen_rows.Text], dev: bool) -> list[list[Ids]]:
    return [[ids for ids, *_ in nano.windows(Query(text[: MOST_CHARS[dev]]))] for _, text in texts]


def scored(nano: Nano, windows: list[list[Ids]], most: int, path: Path) -> NDArray[np.float32]:
    """The raw logits of the query heads [windows, 12] of the first `most` texts; kept in pieces at `path`."""
    parts = []
    for begin in range(0, most, CHUNK):
        file = path.with_name(f"{path.name}-{begin // CHUNK:03d}.npy")
        if not file.exists():
            flat = [ids for each in windows[begin : min(begin + CHUNK, most)] for ids in each]
            found = np.zeros((len(flat), 12), np.float32)
            order = sorted(range(len(flat)), key=lambda i: len(flat[i]))
            while order:
                some = [order.pop(0)]
                while order and (len(some) + 1) * len(flat[order[0]]) <= 1024:
                    some.append(order.pop(0))
                found[some] = nano.read([flat[i] for i in some])[0][:, 12:]
            np.save(file, found)
            print(f"{file.name}: {len(flat)} windows", flush=True)
        parts.append(np.load(file))
    return np.concatenate(parts)


def severities(nano: Nano, flat: list[Ids], logits: NDArray[np.float32]) -> tuple[Any, NDArray[np.bool_], Any]:
    """Probabilities [N, 3], whether nano flags them, and their groups of languages."""
    groups = nano._groups_of(flat)
    scores = nano._query_scores(logits, groups)
    return scores.severity, nano.severities(scores, Stage.prompt) > 0, groups


def batches(flat: list[Ids], rng: np.random.Generator, tokens: int = 6000) -> list[list[int]]:
    order = sorted(range(len(flat)), key=lambda i: len(flat[i]) + rng.random() * 4)
    out: list[list[int]] = [[]]
    for i in order:
        if len(out[-1]) and (len(out[-1]) + 1) * len(flat[i]) > tokens:
            out.append([])
        out[-1].append(i)
    rng.shuffle(out)  # type: ignore[arg-type]
    return out


def train(net: Net, table: torch.Tensor, flat: list[Ids], target: NDArray[np.float32], epochs: int) -> None:
    """table [tokens, width]: embeddings, whole numbers / 127."""
    rng = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-3)
    total = epochs * len(batches(flat, rng))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=total + epochs * 4)
    want = torch.tensor(target)
    for epoch in range(epochs):
        begin, losses = time.time(), []
        for some in batches(flat, rng):
            longest = max(len(flat[i]) - 2 for i in some) or 1
            ids = torch.zeros((len(some), longest), dtype=torch.long)
            there = torch.zeros((len(some), longest))
            for row, i in enumerate(some):
                inner = flat[i][1:-1] or [3]
                ids[row, : len(inner)] = torch.tensor(inner)
                there[row, : len(inner)] = 1
            z = net(table[ids], there)
            y = want[some]
            # What is flagged counts more: one lost is worse than a few judged in vain.
            loss = nn.functional.binary_cross_entropy_with_logits(z, y, weight=1 + 4 * y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {np.mean(losses):.4f}, {time.time() - begin:.0f} s", flush=True)


@torch.no_grad()
def rounded(net: Net, table: torch.Tensor, flat: list[Ids], unit: float) -> dict[str, Any]:
    """The net in whole numbers: weights of 8 bits, activations from 0 to 255 at scales seen on `flat`."""
    reach = [0.0, 0.0, 0.0]
    for ids in flat:
        x = table[torch.tensor(ids[1:-1] or [3])][None]
        h = torch.relu(net.project(x))
        y = torch.relu(net.filters(nn.functional.pad(h.transpose(1, 2), (2, 2))))
        inner = torch.relu(net.inner(torch.cat((y.amax(2), y.mean(2)), 1)))
        reach = [max(r, float(v.max())) for r, v in zip(reach, (h, y, inner), strict=True)]
    out: dict[str, Any] = {"unit": np.float32(unit)}
    before = 1 / 127  # the real number that 1 of the activation before stands for
    layers = (
        (net.project.weight.T, net.project.bias), (net.filters.weight.permute(2, 1, 0), net.filters.bias),
        (net.inner.weight.T, net.inner.bias),
    )  # fmt: skip
    for i, (weight, bias) in enumerate(layers):
        step = float(weight.abs().max()) / 127
        out[f"w{i}"] = np.round(weight.numpy() / step).astype(np.int8)
        out[f"b{i}"] = np.round(bias.numpy() / step / before).astype(np.int32)
        out[f"s{i}"] = np.float32(before * step * 255 / reach[i])
        before = reach[i] / 255
    step = float(net.last.weight.abs().max()) / 127
    out["w3"] = np.round(net.last.weight[0].numpy() / step).astype(np.int8)
    out["b3"] = np.int32(round(float(net.last.bias[0]) / step / before))
    return out


def by_text(of: NDArray[Any], values: NDArray[Any], how: Any, empty: float) -> NDArray[Any]:
    out = np.full(of.max() + 1, empty)
    how.at(out, of, values)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=40_000, help="training prompts; other texts come with them")
    parser.add_argument("--scored", type=float, default=0.2, help="share of the training texts that nano judges")
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    torch.manual_seed(0)
    nano = Nano(args.model)
    embeddings = Embeddings(args.model / "nano.onnx", nano.tokenizer.size)
    sets: dict[bool, Any] = {}
    for dev, name, most in ((True, "dev", args.texts // 5), (False, "train", args.texts)):
        texts = list(screen_rows.texts(args.work / f"{name}.jsonl.gz", most, dev, 1))
        np.random.default_rng(5).shuffle(texts)  # type: ignore[arg-type]
        windows = windows_of(nano, texts, dev)
        n = len(texts) if dev else int(len(texts) * args.scored)
        sets[dev] = texts, windows, scored(nano, windows, n, args.work / f"screen-{name}")
    fit(args, nano, embeddings, sets)


def fit(args: argparse.Namespace, nano: Nano, embeddings: Embeddings, sets: dict[bool, Any]) -> None:
    texts, windows, logits = sets[False]
    flat = [ids for each in windows for ids in each]
    labels = {t[: MOST_CHARS[False]]: bad for t, bad in screen_rows.rows(args.work / "train.jsonl.gz")}
    target = np.array(
        [float(labels.get(text[: MOST_CHARS[False]], kind in HARMFUL)) for (kind, text), each in zip(texts, windows, strict=True) for _ in each],
        np.float32,
    )  # fmt: skip
    severity, _, _ = severities(nano, flat[: len(logits)], logits)
    least = nano.limits(Stage.prompt).flagged
    odds = np.log((1 - severity[:, 0] + 1e-6) / (severity[:, 0] + 1e-6)) - np.log(least / (1 - least))
    target[: len(logits)] = 1 / (1 + np.exp(-(odds + 0.5)))  # soft, and a little before the limit
    used = np.unique(np.concatenate([np.array(ids) for ids in flat]))
    raw = embeddings(used)
    unit = 127 / float(np.quantile(np.abs(raw), 0.9995))
    table = torch.zeros((len(embeddings), raw.shape[1]))
    table[used] = torch.tensor(np.clip(np.rint(raw * unit), -127, 127) / 127)
    net = Net(raw.shape[1])
    print(f"{len(flat)} windows, {len(used)} pieces, {sum(p.numel() for p in net.parameters())} weights", flush=True)
    train(net, table, flat, target, args.epochs)
    data = rounded(net, table, flat[:3000], unit)
    data |= {"limits": np.full(len(GROUPS), -np.inf), "edges": np.zeros(1), "scores": np.zeros((2, 3))}
    file = args.model / "screen.npy"
    save(file, data)
    choose(nano, Screen(embeddings, file), data, sets[True])
    save(file, data)
    print(f"{file}: {file.stat().st_size} bytes")


def save(file: Path, data: dict[str, Any]) -> None:
    """As one record: numpy reads it without the modules for zip files, which take longer to load than the screen."""
    arrays = {name: np.asarray(value) for name, value in data.items()}
    record = np.zeros((), [(name, value.dtype, value.shape) for name, value in arrays.items()])
    for name, value in arrays.items():
        record[name] = value
    np.save(file, record)


def choose(nano: Nano, screen: Screen, data: dict[str, Any], dev: Any) -> None:
    """Limits by group, and what a settled window's scores are, into `data`; what is lost and settled, on the console."""
    texts, windows, logits = dev
    flat = [ids for each in windows for ids in each]
    of = np.repeat(np.arange(len(windows)), [len(each) for each in windows])
    severity, flagged, groups = severities(nano, flat, logits)
    level = np.concatenate([screen.levels(flat[i : i + 256]) for i in range(0, len(flat), 256)])
    # A text is lost where all its flagged windows are settled: its level is the highest of theirs.
    n = len(texts)
    flag = np.zeros(n, bool)
    flag[of[flagged]] = True
    top = np.full(n, -np.inf)
    np.maximum.at(top, of[flagged], level[flagged])
    first = np.searchsorted(of, np.arange(n))
    group = groups[np.minimum(first, len(groups) - 1)]
    half = np.arange(n) % 2 == 0

    def limit(rows: NDArray[np.bool_]) -> float:
        found = np.sort(top[rows & flag])
        return float(found[int(LOST * len(found))]) - 1 if len(found) else -np.inf

    def limits_of(rows: NDArray[np.bool_]) -> NDArray[np.float32]:
        """By group, and none above that of all groups together."""
        return np.array([min(limit(rows), limit(rows & (group == g))) for g in range(len(GROUPS))], np.float32)

    # What the limits of one half lose of the other; those that are kept are of both.
    other = np.where(half, top <= limits_of(~half)[group], top <= limits_of(half)[group])
    data["limits"] = limits_of(np.ones(n, bool))
    settled = level <= data["limits"][groups]
    whole = np.ones(n, bool)
    np.logical_and.at(whole, of, settled)
    lost = flag & (top <= data["limits"][group])
    print("\n| group | flagged | lost | lost, limits of the other half |\n|---|---|---|---|")
    for g, name in enumerate((*GROUPS, "all")):
        mine = flag & ((group == g) | (name == "all"))
        print(f"| {name} | {mine.sum()} | {lost[mine].mean():.2%} | {other[mine].mean():.2%} |")
    print("\n| kind | texts | flagged by nano | settled | lost of the flagged |\n|---|---|---|---|---|")
    kinds = np.array([kind for kind, _ in texts])
    for kind in sorted(set(kinds)):
        mine = kinds == kind
        share = f"{lost[mine & flag].mean():.2%}" if (mine & flag).any() else "-"
        print(f"| {kind} | {mine.sum()} | {flag[mine].mean():.1%} | {whole[mine].mean():.1%} | {share} |")
    # What a settled window shows: the mean of nano's own scores of those at its level.
    edges = np.quantile(level[settled], (0.25, 0.5, 0.75)) if settled.any() else np.zeros(3)
    at = np.searchsorted(edges, level)
    each = [settled & (at == b) for b in range(len(edges) + 1)]
    rows = [severity[mine if mine.any() else slice(None)].mean(0) for mine in each]
    data["edges"], data["scores"] = edges.astype(np.float32), np.array(rows, np.float32)
    print("\nscores of what is settled, by level:", np.round(rows, 4).tolist())


if __name__ == "__main__":
    main()
