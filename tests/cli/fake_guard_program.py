"""The real `guard` program around a scripted guard: BAD is unsafe, HMM controversial, BOOM a model fault.

SLOW_MS in the environment makes every model call take that long.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from guardkit_cli import loading, main


def load_guard(model: str, *, policy: str | None = None, on_error: str | None = None, **_: Any) -> Any:
    from guardkit.testing import FakeGuard

    script = {"BAD": "unsafe", "HMM": "controversial", "BOOM": RuntimeError("boom")}
    delay = float(os.environ.get("SLOW_MS", "0")) / 1e3
    return FakeGuard(script, policy=policy or "balanced", on_error=on_error, delay=delay)


if __name__ == "__main__":
    loading.load_guard = load_guard
    if os.environ.get("LIST_MODULES"):
        from guardkit_cli import run

        code = run(sys.argv[1:])
        print("\n".join(sorted(sys.modules)))
        sys.exit(code)
    main()
