"""How much an engine may do, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """step_tokens: the most tokens of one step. mixed_tokens: the most tokens of long texts in a step that has short
    pieces too, which would otherwise wait for them. max_sequences: open at a time. host_tokens: evicted tokens whose
    keys and values are kept in host memory. kept_tokens: of closed sequences, that stay in the cache for others that
    begin alike (0: only pinned beginnings are shared). threads: CPU threads, None for torch's own choice.
    step_sequences: the most sequences of one of several steps in a row on a device that computes beside the host."""

    step_tokens: int
    mixed_tokens: int
    max_sequences: int = 4096
    host_tokens: int = 0
    kept_tokens: int = 0
    threads: int | None = None
    step_sequences: int = 512


@dataclass
class Counters:
    """What was done so far, for benchmarks and tests. tokens: computed; shared: that another sequence had computed."""

    steps: int = 0
    tokens: int = 0
    shared: int = 0
    evicted: int = 0
    restored: int = 0
    recomputed_tokens: int = 0
