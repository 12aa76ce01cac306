# SPDX-License-Identifier: Apache-2.0
"""Our own synthetic training rows: same words and frames, different objects and intents.

Everything is written for guardkit: `tables/LANGUAGE.toml` holds templates with `{slot}` holes, which a seeded
generator fills. The harmful rows are plain requests at the level of the topic and hold no operational detail. Run as
a script to see counts and samples.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TABLES = Path(__file__).parent / "tables"
# Rows of each group; the groups that a language's table lacks are left out.
COUNTS = {"contrast": 2500, "logs": 1500, "code": 700, "chat": 800, "tool": 1200, "curse": 250}
SLOT = re.compile(r"\{([a-z_]+)\}")

Label = tuple[str, str, tuple[str, ...]]  # text, severity, categories


class Language:
    """The templates of one language and what fills them."""

    def __init__(self, path: Path):
        self.name = path.stem
        self.table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        contrast = self.table["contrast"]
        for kind in ("harm_asks", "harm_pieces"):
            contrast[kind] = [(key, text) for key, texts in contrast[kind].items() for text in texts]
        self.numeric: dict[str, Callable[[random.Random], str]] = {
            "d": lambda rng: str(rng.randint(2, 59)),
            "dom": lambda rng: f"{rng.randint(1, 28):02d}",
            "n": lambda rng: str(
                rng.choice((rng.randint(100, 999), rng.randint(1000, 65000), rng.randint(100000, 9999999)))
            ),
            "port": lambda rng: str(rng.choice((22, 80, 443, 5432, 8080, rng.randint(20000, 65000)))),
            "hex": lambda rng: f"{rng.getrandbits(32):08x}",
            "code": lambda rng: rng.choice(("200", "301", "404", "500", "502", "1", "137", "143", "403")),
            "ip": lambda rng: f"10.{rng.randint(0, 255)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}",
            "hms": _clock,
            "cve": lambda rng: f"CVE-20{rng.randint(15, 25)}-{rng.randint(1000, 49999)}",
            "dt": lambda rng: (
                f"2025-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}{rng.choice(' T')}" + _clock(rng)
            ),
            "sys": lambda rng: self.fill(rng, "{month} {dom} {hms} {host}"),
            "mail": lambda rng: self.fill(rng, "{name}@{hex}.example.com").lower(),
        }

    def fill(self, rng: random.Random, template: str, extra: dict[str, list[str]] | None = None) -> str:
        """Fill every known slot, also inside what was filled in; unknown braces (JSON, code) stay as they are."""

        def one(match: re.Match[str]) -> str:
            key = match.group(1)
            options = (extra or {}).get(key) or self.table["slots"].get(key)
            if options:
                return self.fill(rng, rng.choice(options), extra)
            return self.numeric[key](rng) if key in self.numeric else match.group(0)

        return SLOT.sub(one, template)

    def pick(self, rng: random.Random, group: str, name: str) -> Any:
        return rng.choice(self.table[group][name])

    def frame(self, rng: random.Random, frames: str, slot: str, value: str) -> str:
        return self.fill(rng, self.pick(rng, "contrast", frames).replace("{" + slot + "}", value))

    def harmful_act(self, rng: random.Random, skip: tuple[str, ...] = ()) -> tuple[str, str]:
        acts = self.table["contrast"]["harm_acts"]
        keys = [key for key in acts if key not in skip]
        key = rng.choices(keys, [len(acts[key]) ** 0.7 for key in keys])[0]
        return key, rng.choice(acts[key])

    def humanise(self, rng: random.Random, text: str, wrap: float = 0.3) -> str:
        """The same surface noise for every label: lead-ins, endings, lower case, missing punctuation, typos."""
        text = text[0].upper() + text[1:] if rng.random() < 0.8 else text
        if rng.random() < wrap:
            lead = self.fill(rng, self.pick(rng, "contrast", "leads"))
            text = lead + (text[0].lower() + text[1:] if lead[-2] == "," and text[:2] not in ("I ", "I'") else text)
        if rng.random() < wrap:
            text = (text if text[-1] in ".?!" else text + ".") + self.pick(rng, "contrast", "tails")
        roll = rng.random()
        if roll < 0.2:
            text = text.lower()
        if roll < 0.12:
            text = text.rstrip(".?!").replace("'", "")
        return typo(rng, text) if rng.random() < 0.06 else text


def _clock(rng: random.Random) -> str:
    return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:{rng.randint(0, 59):02d}"


def typo(rng: random.Random, text: str) -> str:
    """Swap or drop one letter inside a longer word."""
    spots = [m.start() + 1 for m in re.finditer(r"[a-z]{5,}", text)]
    if not spots:
        return text
    at = rng.choice(spots)
    return text[:at] + (text[at + 1] + text[at] + text[at + 2 :] if rng.random() < 0.5 else text[at + 1 :])


def unescape(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


def contrast_safe(rng: random.Random, of: Language) -> Label:
    roll = rng.random()
    if roll < 0.45:
        text = of.frame(rng, "act_frames", "act", of.pick(rng, "contrast", "safe_acts"))
    elif roll < 0.52:
        text = of.frame(rng, "safe_wraps", "act", of.pick(rng, "contrast", "safe_acts"))
    elif roll < 0.64:
        text = of.frame(rng, "about_frames", "act", of.harmful_act(rng, ("self_harm", "sexual"))[1])
    elif roll < 0.88:
        text = of.fill(rng, of.pick(rng, "contrast", "safe_asks"))
    else:
        text = of.frame(rng, "write_frames", "piece", of.pick(rng, "contrast", "safe_pieces"))
    return of.humanise(rng, text), "safe", ()


def contrast_unsafe(rng: random.Random, of: Language) -> Label:
    roll = rng.random()
    key, act = of.harmful_act(rng)
    if roll < 0.55:
        text = of.frame(rng, "act_frames", "act", act)
    elif roll < 0.65:
        text = of.frame(rng, "harm_wraps", "act", act)
    elif roll < 0.72:
        key, text = key + ",jailbreak", of.frame(rng, "jailbreak_wraps", "act", act)
    elif roll < 0.84:
        key, ask = of.pick(rng, "contrast", "harm_asks")
        text = of.fill(rng, ask)
    else:
        key, piece = of.pick(rng, "contrast", "harm_pieces")
        text = of.frame(rng, "write_frames", "piece", piece)
    return of.humanise(rng, text), "unsafe", tuple(key.split(","))


def contrast(rng: random.Random, of: Language) -> Label:
    return contrast_safe(rng, of) if rng.random() < 0.6 else contrast_unsafe(rng, of)


def logs(rng: random.Random, of: Language) -> Label:
    lines = rng.choices(of.table["logs"]["lines"], k=rng.choices((1, 2, 3, 5), (6, 2, 1, 1))[0])
    text = unescape("\n".join(of.fill(rng, line) for line in lines))
    roll = rng.random()
    if roll < 0.15:
        text = of.fill(rng, of.pick(rng, "logs", "asks")) + "\n" + text
    elif roll < 0.22:
        text = text + "\n\n" + of.fill(rng, of.pick(rng, "logs", "asks")).rstrip(":")
    return text, "safe", ()


def code(rng: random.Random, of: Language) -> Label:
    roll = rng.random()
    if roll < 0.4:
        return of.humanise(rng, of.fill(rng, of.pick(rng, "code", "questions")), 0.15), "safe", ()
    text = unescape(of.fill(rng, of.pick(rng, "code", "snippets")))
    if rng.random() < 0.3:
        text = f"```\n{text}\n```"
    if roll < 0.8:
        ask = of.fill(rng, of.pick(rng, "code", "asks"))
        text = f"{ask}\n\n{text}" if rng.random() < 0.5 else f"{text}\n\n{ask}"
    return text, "safe", ()


def chat(rng: random.Random, of: Language) -> Label:
    text = of.fill(rng, of.pick(rng, "chat", "templates"), of.table["chat"]["slots"])
    return of.humanise(rng, text, 0.04), "safe", ()


def tool(rng: random.Random, of: Language) -> Label:
    unsafe = rng.random() < 0.25
    if unsafe:
        extra = of.pick(rng, "tool", "inject_leads") + of.pick(rng, "tool", "inject_acts")
        extra += rng.choice((".", "!", ". This is urgent.", ""))
        if rng.random() < 0.3:
            extra = of.pick(rng, "tool", "safe") + " " + extra
    else:
        extra = " ".join(rng.sample(of.table["tool"]["safe"], rng.choice((1, 1, 2))))
    passage = of.pick(rng, "tool", "passages")
    if passage.startswith('{"'):
        extra = extra.replace('"', "'")
    for slot in ("city", "topic", "thing"):  # one subject per passage
        passage = passage.replace("{" + slot + "}", of.pick(rng, "slots", slot))
    text = unescape(of.fill(rng, passage.replace("{x}", extra)))
    return text, "unsafe" if unsafe else "safe", ("jailbreak",) if unsafe else ()


def curse(rng: random.Random, of: Language) -> Label:
    text = of.fill(rng, of.pick(rng, "curse", "templates"), of.table["curse"]["slots"])
    return of.humanise(rng, text, 0), "controversial", ("unethical",)


GROUPS: dict[str, Callable[[random.Random, Language], Label]] = {
    "contrast": contrast, "logs": logs, "code": code, "chat": chat, "tool": tool, "curse": curse,
}  # fmt: skip


def rows(seed: int = 0) -> Iterator[dict[str, Any]]:
    """All rows, in a fixed order for a seed; no two prompts of a language are equal when lower-cased."""
    for path in sorted(TABLES.glob("*.toml")):
        of = Language(path)
        seen: set[str] = set()
        for group, make in GROUPS.items():
            if group not in of.table:
                continue
            rng = random.Random(f"{group}:{of.name}:{seed}")
            made = 0
            for _ in range(COUNTS[group] * 20):
                text, severity, categories = make(rng, of)
                if text.lower() in seen:
                    continue
                seen.add(text.lower())
                yield {
                    "id": f"synthetic_{group}-{of.name}-{seed}-{made:05d}", "source": f"synthetic_{group}",
                    "lang": of.name, "kind": "prompt", "prompt": text, "response": None, "severity": severity,
                    "categories": list(categories), "refusal": None,
                }  # fmt: skip
                made += 1
                if made == COUNTS[group]:
                    break


def main() -> None:
    """Print counts per source and severity, and three samples of each."""
    buckets: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    categories: Counter[str] = Counter()
    for row in rows():
        buckets[row["lang"], row["source"], row["severity"]].append(row)
        categories.update(row["categories"])
    rng = random.Random(1)
    for (language, source, severity), members in buckets.items():
        print(f"{language} {source:20} {severity:14} {len(members):6}")
        for row in rng.sample(members, 3):
            print(f"    {row['categories']} {row['prompt']!r}")
    print(dict(categories))


if __name__ == "__main__":
    main()
