"""How long OpenMP's threads, which torch computes with on a CPU, look for more work before they sleep.

GNU's look for several milliseconds. Where another program has one of the cores, all others wait that long at the end of
every product for a thread that is not running; a small model then took forty times as long.
"""

from __future__ import annotations

import os

SPINS = "4000"  # turns of about 50 ns: what lies between two products, and not much more (docs/engine.md)


def bound_spinning() -> None:
    """Let them sleep soon, here and in child processes. For processes that are guardkit's own, before torch is loaded;
    what the environment says already stands."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
