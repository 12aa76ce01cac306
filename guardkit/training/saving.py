"""A trained guard in the layout of the published checkpoints: config.json with the label maps, safetensors, the
tokenizer's files, the chat template, and training.json, which says what it was made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from guardkit.engine.checkpoint import Checkpoint
from guardkit.engine.setup import DTYPES
from guardkit.training.categories import CategorySet
from guardkit.training.examples import RISKS
from guardkit.training.modules import GuardModule, StreamModule

COPIED = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
          "added_tokens.json", "generation_config.json")  # fmt: skip
_ARCHITECTURES = {"stream": "Qwen3ForGuardModel", "gen": "Qwen3ForCausalLM"}
_SHARD = "5GB"


def save(
    kind: str,
    base: Checkpoint,
    module: GuardModule,
    categories: CategorySet,
    template: str,
    out: Path,
    record: dict[str, Any],
) -> None:
    """Write the folder. Weights keep the dtype that the base was saved in."""
    from huggingface_hub import save_torch_state_dict

    out.mkdir(parents=True, exist_ok=True)
    dtype = DTYPES.get(base.config.dtype or "", torch.float32)
    tensors = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in module.published().items()}
    save_torch_state_dict(tensors, str(out), max_shard_size=_SHARD, metadata={"format": "pt"})
    for file in out.glob("*.safetensors"):
        file.chmod(0o644)  # the library makes them the owner's alone
    for name in COPIED:
        if (base.folder / name).is_file():
            shutil.copyfile(base.folder / name, out / name)
    _write(out / "tokenizer_config.json", _without_template(out / "tokenizer_config.json"))
    (out / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write(out / "training.json", record)
    _write(out / "config.json", _config(kind, base, module, categories))  # last: with it the folder is a model


def _config(kind: str, base: Checkpoint, module: GuardModule, categories: CategorySet) -> dict[str, Any]:
    config = {k: v for k, v in base.raw.items() if k != "auto_map" and not k.startswith(("guard_", "num_risk"))}
    maps = ("response_risk_level_map", "query_risk_level_map", "response_category_map", "query_category_map")
    for key in (*maps, "num_category", "num_query_risk_level", "num_query_category"):
        config.pop(key, None)
    config["architectures"] = [_ARCHITECTURES[kind]]
    by_id = _numbered([c.label for c in categories.response]), _numbered([c.label for c in categories.query])
    if isinstance(module, StreamModule):
        risks = _numbered([severity.value.capitalize() for severity in RISKS])
        config |= {
            "guard_inner_size": module.get_submodule("risk_level_category_pre").out_features,
            "num_risk_level": len(RISKS),
            "num_category": len(categories.response),
            "num_query_risk_level": len(RISKS),
            "num_query_category": len(categories.query),
            "response_risk_level_map": risks,
            "query_risk_level_map": risks,
            "response_category_map": by_id[0],
            "query_category_map": by_id[1],
        }
    elif categories.is_own:
        config |= {"response_category_map": by_id[0], "query_category_map": by_id[1]}
    return config


def _numbered(labels: Sequence[str]) -> dict[str, str]:
    return {str(i): label for i, label in enumerate(labels)}


def _without_template(path: Path) -> dict[str, Any]:
    """The tokenizer's settings; its template stands in a file of its own."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    data.pop("chat_template", None)
    return data


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
