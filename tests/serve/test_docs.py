"""What docs/serve.md says is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from guardkit import Category
from guardkit_serve.app import _judging, _routes
from guardkit_serve.moderations import MAPPING
from guardkit_serve.plan import read_config
from guardkit_serve.settings import Settings

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")


def test_the_table_of_categories_is_the_one_in_use() -> None:
    section = PAGE.split("## Moderations: the categories")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", section, re.MULTILINE)
    told = {
        name: tuple(re.findall(r"`([a-z/-]+)`", there)) for here, there in rows for name in re.findall(r"`(\w+)`", here)
    }
    told = {name: () if names == ("flagged",) else names for name, names in told.items()}
    assert told == {category.value: MAPPING[category] for category in Category}


def test_the_config_file_in_it_is_valid(tmp_path: Path) -> None:
    text = re.search(r"^```yaml\n(host:.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert text is not None
    (tmp_path / "kids.yaml").write_text("name: kids\n")
    config = tmp_path / "guard.yaml"
    config.write_text(re.sub(r"sha256: \w+…", f"sha256: {'a' * 64}", text[1]))
    plan = read_config(config)
    defaults = Settings()
    for name in ("host", "port", "on_violation", "message", "judge_s", "max_request_bytes", "max_requests", "grace_s"):
        assert getattr(plan.settings, name) == getattr(defaults, name), name


def test_every_path_is_in_it() -> None:
    paths = set(re.findall(r"`?(/[a-z0-9_/]+)`?", PAGE.split("## Paths")[1].split("\n## ")[0]))
    assert {route.path for route in (*_judging(), *_routes())} <= paths  # type: ignore[attr-defined]


def test_the_image_is_given_all_that_the_package_is_made_of() -> None:
    root = Path(__file__).resolve().parents[2]
    made = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    kept = set(re.findall(r"^!(.+)$", (root / "serve/docker/Dockerfile.dockerignore").read_text(), re.MULTILINE))
    project, find = made["project"], made["tool"]["setuptools"]["packages"]["find"]
    needed = {"pyproject.toml", "guardkit", project["readme"], *project["license-files"], *find["where"]} - {"."}
    assert needed <= kept
    assert all((root / name).exists() for name in kept)
