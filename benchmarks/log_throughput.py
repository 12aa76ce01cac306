"""Lines per second of `guard check` on a large log, and whether its memory stays flat.

    python benchmarks/log_throughput.py [--megabytes 100] [--lines N] [--runs 3]

Seeded logs of mixed app, nginx, syslog, chat and JSON lines are made in a temporary folder:

- distinct: every line differs, as in a log with timestamps. Only its first --distinct-lines are judged (all of
  100 MB would take many minutes); the table says how many.
- nginx: its nginx lines alone, as many.
- repeats: lines without timestamps, drawn by Zipf's law from a few thousand.

Each is piped through `guard check --quiet` and `guard check --json > /dev/null`, start-up included, and through
alt-profanity-check in batches of 1,000 where that is installed. Goals: 1,500 lines/s distinct on two cores, 1,000 of
nginx, 20,000 with repeats, flat memory.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from common import (
    Watch,
    check_guard,
    children_cpu_s,
    guard_command,
    header,
    median,
    mib,
    note,
    question,
    rss_mib,
    sentence,
    table,
)

SEED = 20
KINDS = ("distinct", "nginx", "repeats")
WRITE_BYTES = 1 << 16
LEAST_TENTH = 1 << 19  # bytes: below this the first tenth of the input may still be in the pipe
PIPED = {"guard check --quiet": ["--quiet"], "guard check --json": ["--json"]}
REFERENCE = """
import sys
from itertools import islice
from profanity_check import predict
seen = {} if "once" in sys.argv else None
lines = (line.rstrip("\\n") for line in open(0, encoding="utf-8", errors="replace"))
while batch := list(islice(lines, 1000)):
    if seen is not None:
        batch = [line for line in dict.fromkeys(batch) if line not in seen]
    if batch:
        said = predict(batch)
        if seen is not None:
            seen.update(zip(batch, said))
"""

# ---------------------------------------------------------------------------------------------------- the log

_SERVICES = (
    "auth",
    "billing",
    "search",
    "mailer",
    "cart",
    "gateway",
    "scheduler",
    "inventory",
)
_EVENTS = (
    "request {i} finished in {n} ms with status 200 for org-{o}",
    "cache miss for key user:{i}:profile, loading it from the primary",
    "connection pool grew to {o} of 64, {n} requests are waiting",
    "retrying upload of part {o} of object {h} after a timeout of {n} ms",
    "checkpoint complete: wrote {n} buffers, {o} files were removed",
    "worker {o} killed child process {i} after it ignored SIGTERM for {n} s",
    "usage for org-{o} flushed, {n} events, cursor is now {h}",
    "feature flag checkout-v{o} evaluated to true for account {i}",
)
_PATHS = (
    "/",
    "/login",
    "/api/v1/items/{i}",
    "/static/app.{h}.js",
    "/search?q=garden+chairs&page={o}",
    "/cart/{i}/checkout",
    "/health",
)
_AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64)",
    "curl/8.5.0",
    "Mozilla/5.0 (iPhone)",
    "kube-probe/1.29",
)
_SYSTEM = (
    "sshd[{i}]: Accepted publickey for deploy from 10.0.{o}.{o} port {i} ssh2: ED25519 SHA256:{h}",
    "kernel: [{i}.{n}] eth0: link is up, 1000 Mbps, full duplex, flow control rx/tx",
    "systemd[1]: Started session-{i}.scope - Session {i} of user deploy.",
    "CRON[{i}]: (root) CMD (test -x /usr/sbin/anacron || run-parts /etc/cron.hourly # {h})",
    "dhclient[{i}]: bound to 10.0.{o}.{o} -- renewal in {n} seconds.",
)
_LEVELS = ("INFO ", "INFO ", "INFO ", "DEBUG", "WARN ", "ERROR")


def _fill(template: str, rng: random.Random) -> str:
    return template.format(
        i=rng.randrange(1000, 99999), n=rng.randrange(1, 5000), o=rng.randrange(1, 250), h=f"{rng.getrandbits(40):010x}"
    )


def line(rng: random.Random, second: float | None) -> str:
    """A log line; `second` is its time, None leaves the time out."""
    kind, service = rng.random(), rng.choice(_SERVICES)
    iso = apache = syslog = ""
    if second is not None:
        now = time.gmtime(1_770_000_000 + int(second))
        iso = time.strftime("%Y-%m-%dT%H:%M:%S", now) + f".{int(second * 1000) % 1000:03d}Z "
        apache = time.strftime(" [%d/%b/%Y:%H:%M:%S +0000]", now)
        syslog = time.strftime("%b %d %H:%M:%S ", now)
    if kind < 0.38:
        return f"{iso}{rng.choice(_LEVELS)} {service:<9} {_fill(rng.choice(_EVENTS), rng)}"
    if kind < 0.58:
        address = f"10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(256)}"
        status, size = rng.choice((200, 200, 200, 304, 404, 500)), rng.randrange(200, 90000)
        path = _fill(rng.choice(_PATHS), rng)
        return f'{address} - -{apache} "GET {path} HTTP/1.1" {status} {size} "-" "{rng.choice(_AGENTS)}"'
    if kind < 0.76:
        return f"{syslog}node-{rng.randrange(40):02d} {_fill(rng.choice(_SYSTEM), rng)}"
    if kind < 0.86:
        text = question(rng) if rng.random() < 0.2 else sentence(rng)
        return f'{iso}INFO  chat conv=c-{rng.randrange(10**6)} role=user text="{text}"'
    fields = {"level": rng.choice(_LEVELS).strip().lower(), "svc": service, "msg": _fill(rng.choice(_EVENTS), rng)}
    return json.dumps({"ts": iso.strip(), **fields} if iso else fields, separators=(",", ":"))


def distinct_lines() -> Iterator[str]:
    rng, second = random.Random(SEED), 0.0
    seen: set[str] = set()
    while True:
        second += rng.expovariate(25)
        made = line(rng, second)
        if made not in seen:
            seen.add(made)
            yield made


def repeated_lines(templates: int) -> Iterator[str]:
    rng = random.Random(SEED + 1)
    pool = list(dict.fromkeys(line(rng, None) for _ in range(templates)))
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(pool) + 1)))
    while True:
        yield from rng.choices(pool, cum_weights=weights, k=4096)


@dataclass(frozen=True)
class Log:
    kind: str
    path: Path
    lines: int
    size: int
    distinct: int
    tokens_per_line: float


def write_log(kind: str, path: Path, source: Iterator[str], size: int, most: int, encode: Callable[[str], int]) -> Log:
    """`source` up to `size` bytes, and at most `most` lines (0: no limit)."""
    written = count = 0
    seen: set[int] = set()
    tokens: list[int] = []
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for text in itertools.islice(source, most or None):
            raw = text.encode() + b"\n"
            out.write(raw)
            digest.update(raw)
            seen.add(hash(text))
            if len(tokens) < 4000:
                tokens.append(encode(text))
            written += len(raw)
            count += 1
            if written >= size:
                break
    print(
        f"- {kind}: {count:,} lines, {written / 1e6:,.1f} MB, {written / count:.0f} bytes and "
        f"{sum(tokens) / len(tokens):.1f} tokens a line, {len(seen):,} of them distinct; "
        f"sha256 {digest.hexdigest()[:16]}",
        flush=True,
    )
    return Log(kind, path, count, written, len(seen), sum(tokens) / len(tokens))


# ------------------------------------------------------------------------------------------------- one pass


@dataclass(frozen=True)
class Pass:
    seconds: float
    cpu_s: float
    second_half: float | None  # seconds
    at_tenth: float | None
    at_half: float | None
    at_end: float | None
    peak: float | None


def pipe(command: list[str], log: Log) -> Pass:
    """The log through the standard input of `command`; memory by how much of it was handed over."""
    marks: dict[int, tuple[float, float | None]] = {}
    with tempfile.TemporaryFile() as errors, log.path.open("rb") as source:
        cpu, start = children_cpu_s(), time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, bufsize=0)
        watch = Watch(process.pid)
        assert process.stdin is not None
        fd, given = process.stdin.fileno(), 0
        try:
            while chunk := source.read(WRITE_BYTES):
                view = memoryview(chunk)
                while view:
                    view = view[os.write(fd, view) :]
                given += len(chunk)
                for tenth in (1, 5):
                    if tenth not in marks and given * 10 >= log.size * tenth and log.size / 10 > LEAST_TENTH:
                        marks[tenth] = time.perf_counter() - start, rss_mib(process.pid)
        except BrokenPipeError:
            pass  # its exit status says what happened
        process.stdin.close()
        code = process.wait()
        seconds = time.perf_counter() - start
        watch.stop()
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace")
    if command[0] == sys.executable and "-c" in command:
        if code:
            sys.exit(f"the reference failed:\n{said[-2000:]}")
    else:
        check_guard(code, said)
    first, half = marks.get(1), marks.get(5)
    return Pass(
        seconds,
        children_cpu_s() - cpu,
        half and seconds - half[0],
        first and first[1],
        half and half[1],
        watch.last,
        watch.peak,
    )


def middle(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return median(known) if known else None


def measure(log: Log, commands: dict[str, list[str]], runs: int, reference: str | None) -> None:
    passes: dict[str, list[Pass]] = {name: [] for name in commands}
    names = list(commands)
    for i in range(runs):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            passes[name].append(pipe(commands[name], log))
            note(f"{log.kind}, run {i + 1} of {runs}: {name}: {log.lines / passes[name][-1].seconds:,.0f} lines/s")
    rate = {name: log.lines / median([p.seconds for p in done]) for name, done in passes.items()}
    print(f"\n## {log.kind}: {log.lines:,} lines\n")
    table(
        [
            "judge",
            "lines/s",
            "CPU us a line",
            "in the second half",
            "tokens/s",
            "of the reference",
            "MiB at a tenth",
            "at half",
            "at the end",
            "peak MiB",
        ],
        [
            [
                f"`{name}`" if name in PIPED else name,
                f"{rate[name]:,.0f}",
                f"{median([p.cpu_s for p in done]) / log.lines * 1e6:,.0f}",
                f"{log.lines / 2 / late:,.0f}" if (late := middle([p.second_half for p in done])) else "-",
                f"{rate[name] * log.tokens_per_line:,.0f}" if name in PIPED else "-",
                f"{rate[name] / rate[reference]:.3f}" if reference else "-",
                mib(middle([p.at_tenth for p in done])),
                mib(middle([p.at_half for p in done])),
                mib(middle([p.at_end for p in done])),
                mib(middle([p.peak for p in done])),
            ]
            for name, done in passes.items()
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100, help="size of each log (default 100)")
    parser.add_argument("--lines", type=int, default=0, help="at most this many lines of either log (default: no cap)")
    parser.add_argument(
        "--distinct-lines", type=int, default=60_000, help="lines of the distinct log that are judged; 0: all of them"
    )
    parser.add_argument("--templates", type=int, default=5000, help="lines that the other log draws from")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    args = parser.parse_args()

    header("Log throughput", "alt-profanity-check", "scikit-learn")
    from guardkit import Guard

    tokenizer = Guard.load().model.tokenizer
    commands = {name: guard_command("check", *options) for name, options in PIPED.items()}
    reference = None
    if find_spec("profanity_check"):
        reference = "alt-profanity-check"
        commands[reference] = [sys.executable, "-c", REFERENCE]
    else:
        print("SKIPPED: alt-profanity-check is not installed: pip install alt-profanity-check scikit-learn\n")

    size = int(args.megabytes * 1e6)
    with tempfile.TemporaryDirectory(prefix="guardkit-bench-") as folder:
        for kind in args.kinds:
            caps = [n for n in (args.lines, args.distinct_lines if kind != "repeats" else 0) if n]
            source = repeated_lines(args.templates) if kind == "repeats" else distinct_lines()
            if kind == "nginx":
                source = (line for line in source if "HTTP/1.1" in line)
            log = write_log(
                kind, Path(folder) / kind, source, size, min(caps, default=0), lambda t: len(tokenizer.encode(t)[0])
            )
            if log.size < size:
                print(f"  **a prefix**: {log.size / size:.1%} of the {args.megabytes:g} MB asked for (capped in lines)")
            if kind == "repeats" and reference:
                commands[f"{reference}, each line once"] = [sys.executable, "-c", REFERENCE, "once"]
            measure(log, commands, args.runs, reference)
            log.path.unlink()
    print(
        f"Medians of {args.runs} interleaved runs, start-up included (it is not in the second half). Memory is "
        'resident memory when a tenth, half and all of the log was handed over ("-": too small a log to tell). '
        "Tokens: nano's, by the first 4,000 lines."
    )


if __name__ == "__main__":
    main()
