"""Where a default comes from: an option, then the environment, then the user's config file, then the program.

The file is ``config.toml`` in the folder for settings of the user's system, with the keys of `KEYS`:

    model = "nano"
    policy = "~/policy.yaml"
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

DEFAULTS = {"model": "nano", "policy": "balanced"}
KEYS = tuple(DEFAULTS)
POLICIES = ("strict", "balanced", "loose")


class ConfigError(click.UsageError):
    """The config file is not valid; the message names the file and the line."""


@dataclass(frozen=True)
class Setting:
    """A default, and where it comes from: "default", an environment variable, or the config file."""

    value: str
    source: str


def config_path() -> Path:
    return Path(click.get_app_dir("guardkit")) / "config.toml"


def read_config() -> dict[str, str]:
    """The config file's values; empty where there is no file. Raises `ConfigError`."""
    path = config_path()
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    import tomllib

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        where = line[1] if line else str(text.count("\n") + 1)
        raise ConfigError(f"{path}:{where}: not valid TOML: {error}") from None
    for key, value in data.items():
        where = f"{path}:{_line_of(key, text)}"
        if key not in KEYS:
            raise ConfigError(f"{where}: unknown key '{key}'; known: {', '.join(KEYS)}")
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{where}: '{key}' must be a string that is not empty")
    return data


def _line_of(key: str, text: str) -> int:
    found = re.search(rf"^\s*[\[\"']*{re.escape(key)}\b", text, re.MULTILINE)
    return text.count("\n", 0, found.end()) + 1 if found else 1


def setting(name: str) -> Setting:
    """The default of `name`, one of `KEYS`. Raises `ConfigError`."""
    variable = f"GUARDKIT_{name.upper()}"
    if value := os.environ.get(variable):
        return Setting(value, variable)
    config = read_config()
    if name in config:
        return Setting(config[name], str(config_path()))
    return Setting(DEFAULTS[name], "default")


def option(name: str, help: str, **more: Any) -> Callable[[Any], Any]:
    """`--model` or `--policy`, with its default from the environment or the config file, and completion. The value is
    a tuple where the option may be repeated (``multiple=True``)."""

    def chosen(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if value or value == "" or context.resilient_parsing:
            return value
        return (setting(name).value,) if parameter.multiple else setting(name).value

    complete = complete_model if name == "model" else complete_policy
    shown = f"{help} Default: {DEFAULTS[name]}, or GUARDKIT_{name.upper()}, or the config file."
    return click.option(f"--{name}", callback=chosen, shell_complete=complete, help=shown, **more)


def complete_model(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from guardkit.models import list_models

    names = [m.name for m in list_models() if m.kind != "remote"]
    found = [CompletionItem(name) for name in names if name.startswith(begun)]
    return found or [CompletionItem(begun, type="dir")]


def complete_policy(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    found = [CompletionItem(name) for name in POLICIES if name.startswith(begun)]
    return found or [CompletionItem(begun, type="file")]
