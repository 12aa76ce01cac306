"""Policy files: YAML to plain data with the line of every value, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from guardkit.errors import PolicyError

Lines = dict[tuple[str | int, ...], int]


def read(path: Path) -> tuple[dict[str, Any], Lines]:
    """The file's mapping, and the 1-based line of each path in it. Raises `PolicyError` with the line."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"cannot be read: {error}", source=str(path)) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise PolicyError(
            f"not valid YAML: {problem}", source=str(path), line=mark.line + 1 if mark else None
        ) from error
    except RecursionError as error:
        raise PolicyError("nested too deeply", source=str(path)) from error
    if node is None:
        return {}, {(): 1}
    if not isinstance(node, yaml.MappingNode):
        raise PolicyError("a policy file holds a mapping (name, extends, on_error, rules)", source=str(path), line=1)
    lines: Lines = {}
    data = _plain(node, (), lines, str(path), set())
    return data, lines


def _plain(node: yaml.Node, path: tuple[str | int, ...], lines: Lines, source: str, seen: set[int]) -> Any:
    line = lines[path] = node.start_mark.line + 1
    if id(node) in seen:
        raise PolicyError("aliases (*name) are not supported", source=source, line=line)
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in out:
                raise PolicyError(f"'{key}' stands twice", source=source, line=key_node.start_mark.line + 1)
            out[key] = _plain(value_node, (*path, key), lines, source, seen)
            lines[(*path, key)] = key_node.start_mark.line + 1
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, i), lines, source, seen) for i, item in enumerate(node.value)]
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        raise PolicyError(f"not a plain value: {node.value!r}", source=source, line=line) from error


def write(data: dict[str, Any]) -> str:
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
