# SPDX-License-Identifier: Apache-2.0
"""Texts for the screen (`screen.py`): what a guard reads most, and what is harmful inside it.

Rows of the training files, the synthetic rows of other seeds, log lines from frames of our own, source code and its
docstrings (Python's own library, which is wherever this runs), and requests put into logs, behind or before harmless
text, or disguised. Nothing is labelled here: what counts is how nano judges them.
"""

from __future__ import annotations

import ast
import base64
import gzip
import json
import random
import re
import string
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import synthetic

Text = tuple[str, str]  # kind, text

# {w}: a word of source code, {W}: a message of it, {n}: a number, {h}: hex, {ip}, {t}: a time, {p}: a path, {u}: a user
# agent, {q}: a query string, {x}: a person's text, or a harmless phrase
FRAMES = (
    '{t} [{w}-{n}] {W} - {w} {w} took {n} ms', 'Step {n}/{n} : COPY {w} {p}', 'COPY {w}/{w} {p}', '#{n} [{n}/{n}] COPY --from={w} {p} {p}', '{t} {w}/{w}[{n}]: {W} {w}={n} {w}={w}', '{ip} - {w} [{t}] "GET {p} HTTP/2.0" {n} {n} "-" "{u}"',
    '{ip} {t} POST {p}{q} {n} {n} {u}', '{t} {w} sshd({n}): session {w} for user {w} from {ip}', 'level=info ts={t} caller={w}.go:{n} msg="{W} {w}" {w}={n}',
    '{{"time":"{t}","severity":"INFO","logger":"{w}.{w}","message":"{W} {w} {n}"}}', '{{"timestamp":{n},"host":"{w}-{n}","event":"{w}_{w}","duration_ms":{n},"ok":true}}',
    'I{n} {t} {n} {w}.cc:{n}] {W} {w}', '{t} UTC [{n}] LOG:  {w} of table "{w}.{w}": index scans: {n}', '{t} UTC [{n}] ERROR:  relation "{w}" does not exist at character {n}',
    'Traceback (most recent call last):\n  File "{p}.py", line {n}, in {w}\n    {w}({w})\n{W}Error: {w}', '\tat com.{w}.{w}.{w}({w}.java:{n})', 'Caused by: java.lang.IllegalStateException: {W} {w}',
    '{w}: {w}.c:{n}: warning: unused variable {w}', '[{n}/{n}] Building {w}/{w}.o', '#{n} [{w} {n}/{n}] RUN make {w}', 'commit {h}\nAuthor: {w} <{w}@example.org>\n    {W} {w}',
    '{t} {w} kernel: {w}: {W}', '{w},{n},{n},{w},{t}', '{n}\t{w}\t{w}\t{h}', '{t} WARN {w} retry {n}/{n} for {w}://{w}.example.net{p}', 'E{n} {w} controller.go:{n}] {W} {w} "{w}"',
    '{t} DEBUG [{w}] SELECT {w}, {w} FROM {w} WHERE {w} = {n} LIMIT {n}', '{t} {w} dhcpd: DHCPACK on {ip} to {h} via eth{n}', 'audit: type={n} audit({n}:{n}): pid={n} uid={n} comm="{w}" exe="{p}"',
    '{ip}:{n} [{t}] {w}~ {w}/{w} {n}/{n}/{n} {n} {n} - - ---- "GET {p} HTTP/1.1"', '{t} level=warn component={w} err="{w} {w}: {w}" attempt={n}', 'npm WARN {w} {w}@{n} {w}',
    '{ip} - - [{t}] "GET {p}{q} HTTP/1.1" {n} {n} "https://{w}.example.com{p}" "{u}"', '<{n}>{t} {w} {w}[{n}]: {W} {w}', 'ok {n} - {W} {w}', 'FAILED tests/{w}.py::{w}_{w} - {w}: {n} != {n}',
    '{w}_{w}_total{{{w}="{w}",code="{n}"}} {n}', '{t}|{w}|{n}|{w}|{w}|{h}', '{t} {w} postfix/smtp[{n}]: {h}: to=<{w}@example.com>, relay={w}, delay={n}, status=sent', 'type: {w}\nname: {w}-{w}\nreplicas: {n}',
    '{t} [{w}] {w} {w}: {W}, {n} {w} left, {n} {w} done', '{t} {w} CRON[{n}]: ({w}) CMD ({p} --{w} {n})', '-> {w} {n}.{n} ({w}) [{n} kB]', '{t} ERROR {w} {w} failed: {W} ({n})',
)  # fmt: skip
SPOKEN = (
    '{t} {w} message from {w}: {x}', '{{"ts":"{t}","role":"user","content":"{x}"}}', '{t} INFO {w} prompt="{x}" tokens={n}', '[{t}] <{w}> {x}', '{t} {w} chat session={h} input={x}',
    '{ip} - - [{t}] "GET /find?text={x} HTTP/1.1" {n} {n} "-" "{u}"', '{w},{n},"{x}",{t}', 'level=debug msg="received question" text="{x}" id={h}', '{w}: {x}', '{t} ticket {n} opened by {w}: {x}',
    '{{"id":{n},"comment":"{x}","lang":"{w}"}}', '{t} {w} search for "{x}" gave {n} results',
)  # fmt: skip
AGENTS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14.2; rv:121.0) Gecko/20100101 Firefox/121.0", "Wget/1.21", "python-requests/2.31", "Googlebot/2.1",
    "Go-http-client/1.1", "okhttp/4.9", "PostmanRuntime/7.36", "ELB-HealthChecker/2.0", "Prometheus/2.48", "-",
)  # fmt: skip
PHRASES = (
    "hello", "thanks", "ok", "what time is it", "please call me back", "my order has not arrived", "where is my invoice",
    "good morning", "reset my password", "can you help me with this form", "see you tomorrow", "the page is blank",
)  # fmt: skip
MESSAGE = re.compile(r"[A-Za-z][\w',;:/()%-]*(?: [\w',;:/()%-]+){1,9}")
SLOT = re.compile(r"\{(\w+)\}")
LEET = str.maketrans("aeiost", "431057")
CYRILLIC = str.maketrans("aeopcx", "аеорсх")


class Source:
    """Python's own library as words, code and prose."""

    def __init__(self) -> None:
        self.code: list[str] = []
        self.prose: list[str] = []
        self.messages: list[str] = []
        words: dict[str, None] = {}
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace")
            words.update(dict.fromkeys(re.findall(r"\b[a-z]{3,12}\b", text)))
            lines = text.split("\n")
            for at in range(0, len(lines), 9):
                block = "\n".join(lines[at : at + 1 + at % 6]).strip("\n")
                if len(block) > 8:
                    self.code.append(block)
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and MESSAGE.fullmatch(node.value):
                    self.messages.append(node.value)
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (said := ast.get_docstring(node)):
                    self.prose += [part.strip() for part in said.split("\n\n") if len(part) > 30]
        self.words = list(words)


def fill(rng: random.Random, words: list[str], messages: list[str], frame: str, said: str | None = None) -> str:
    def word() -> str:
        return rng.choice(words)

    def path() -> str:
        return "/" + "/".join(word() for _ in range(rng.randint(1, 4))) + rng.choice(("", "", ".js", "/", ".html"))

    def one(match: re.Match[str]) -> str:
        match match[1]:
            case "w":
                return rng.choice((word(), word(), word().title(), f"{word()}-{word()}", f"{word()}_{word()}"))
            case "W":
                return rng.choice(messages)
            case "n":
                return str(rng.choice((rng.randint(0, 9), rng.randint(10, 999), rng.randint(1000, 9999999))))
            case "h":
                return f"{rng.getrandbits(rng.choice((32, 48, 64))):x}"
            case "ip":
                return ".".join(str(rng.randint(1, 254)) for _ in range(4))
            case "t":
                clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:{rng.randint(0, 59):02d}"
                return rng.choice((f"2024-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}T{clock}Z", clock,
                                   f"{rng.randint(1, 28):02d}/Mar/2023:{clock} +0000", f"Oct {rng.randint(10, 28)} {clock}"))  # fmt: skip
            case "p":
                return path()
            case "q":
                return "?" + "&".join(f"{word()}={rng.choice((word(), str(rng.randint(1, 999))))}" for _ in range(2))
            case "u":
                return rng.choice(AGENTS)
            case "x":
                return said or rng.choice((rng.choice(PHRASES), rng.choice(messages)))
        return match[0]

    return SLOT.sub(one, frame.replace("{{", "\0").replace("}}", "\1")).replace("\0", "{").replace("\1", "}")


def disguised(rng: random.Random, text: str) -> str:
    """A text as one might hide it."""
    match rng.randrange(8):
        case 0:
            return text.translate(LEET)
        case 1:
            return " ".join(text)
        case 2:
            return text.translate(CYRILLIC)
        case 3:
            return "\u200b".join(text)
        case 4:
            return base64.b64encode(text.encode()).decode()
        case 5:
            return text.upper()
        case 6:
            return "".join(c + rng.choice(("", "", ".", "-")) if c in string.ascii_letters else c for c in text)
        case _:
            return text[::-1]


def rows(path: Path) -> list[tuple[str, bool]]:
    """The prompts of a prepared file, and whether each is labelled as not safe."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        found = [(r["prompt"], r["severity"] != "safe") for r in map(json.loads, lines) if r["kind"] == "prompt"]
    return list(dict.fromkeys(found))


def texts(path: Path, most: int, dev: bool, seed: int) -> Iterator[Text]:
    """At most `most` of the file's prompts, and as many other texts. dev: from frames, words, files and seeds that
    training does not see."""
    rng = random.Random(f"{seed}:{dev}")
    prompts = rows(path)
    rng.shuffle(prompts)
    yield from (("prompts", text) for text, _ in prompts[:most])
    harmful = [text for text, bad in prompts if bad]
    harmless = [text for text, bad in prompts if not bad]
    source = Source()

    def half(all_: tuple[str, ...] | list[str]) -> list[str]:
        """What training sees (four fifths), or what it does not."""
        return [x for i, x in enumerate(all_) if (i % 5 == 4) == dev]

    parts = source.words, source.code, source.prose, source.messages, FRAMES, SPOKEN
    words, code, prose, messages, frames, spoken = map(half, parts)
    lines = [fill(rng, words, messages, rng.choice(frames)) for _ in range(most // 4)]
    yield from (("logs", line) for line in lines)
    yield from (("logs", "\n".join(rng.sample(lines, rng.randint(2, 5)))) for _ in range(most // 20))
    yield from (("spoken logs", fill(rng, words, messages, rng.choice(spoken))) for _ in range(most // 20))
    for _ in range(most // 20):
        yield "spoken logs", fill(rng, words, messages, rng.choice(spoken), rng.choice(harmless))
    for _ in range(most // 8):
        yield "harm in logs", fill(rng, words, messages, rng.choice(spoken), rng.choice(harmful))
    for _ in range(most // 20):
        some = [*rng.sample(lines, rng.randint(1, 3)), rng.choice(harmful)]
        rng.shuffle(some)
        yield "harm in logs", "\n".join(some)
    for _ in range(most // 12):
        around = [rng.choice(rng.choice((prose, code, harmless))) for _ in range(rng.randint(1, 2))] + [
            rng.choice(harmful)
        ]
        rng.shuffle(around)
        yield "harm in other text", rng.choice((" ", "\n\n", "\n")).join(around)
    for _ in range(most // 10):
        yield "disguised", disguised(rng, rng.choice(harmful))
    for _ in range(most // 50):
        yield "disguised", disguised(rng, rng.choice(harmless))
    yield from (("code", text) for text in rng.sample(code, min(len(code), most // 10)))
    yield from (("prose", text) for text in rng.sample(prose, min(len(prose), most // 10)))
    made = [r for r in synthetic.rows(seed + 100 + dev) if r["source"] != "synthetic_contrast"]
    for row in rng.sample(made, min(len(made), most // 4)):
        yield row["source"].removeprefix("synthetic_").replace("logs", "logs, synthetic"), row["prompt"]
