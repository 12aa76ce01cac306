"""What each of two processes runs: a Stream and a Gen, and what each saw of it, for test_two_processes.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from guardkit.training.run import Settings, train


def main(root: Path, out: Path) -> None:
    torch.set_num_threads(1)
    seen = {"world": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 0}
    for kind, told in (
        ("stream", {"backbone": "full", "rate": 3e-3, "batch": 8, "epochs": 2}),
        (
            "gen",
            {
                "backbone": "lora",
                "checkpointing": True,
                "batch": 2,
                "steps": 2,
                "every": 2,
                "max_rows": 40,
                "max_tokens": 512,
            },
        ),
    ):
        settings = Settings(
            str(root / "base"), (root / "rows.jsonl",), out / kind, precision="fp32", cpu=True,
            **{"max_rows": 320, **told},  # type: ignore[arg-type]
        )  # fmt: skip
        result = train(kind, settings)
        seen[kind] = {"steps": result.steps, "dev": result.dev, "rates": [r.get("learning_rate") for r in result.log]}
    seen["world"] = torch.distributed.get_world_size()
    seen["backend"] = torch.distributed.get_backend()
    (out / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
