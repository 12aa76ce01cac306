"""The categories that a guard is trained on: Qwen3Guard's nine, or a list of one's own.

A file is YAML or JSON: a list of names, or of mappings with `name`, and where wanted `description` (shown to Gen in
its prompt) and `prompts_only: true` (for what only a request can be, such as a jailbreak).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardkit.errors import TrainingError, did_you_mean
from guardkit.verdict import MAX_OWN, MIN_OWN, Category

_KEYS = ("name", "description", "prompts_only")


@dataclass(frozen=True)
class Entry:
    """A category, what it means, and whether responses are never of it."""

    category: Category
    description: str = ""
    prompts_only: bool = False


@dataclass(frozen=True)
class CategorySet:
    """Categories in the order of their class ids; those of prompts alone last."""

    entries: tuple[Entry, ...]

    @property
    def query(self) -> tuple[Category, ...]:
        return tuple(e.category for e in self.entries)

    @property
    def response(self) -> tuple[Category, ...]:
        return tuple(e.category for e in self.entries if not e.prompts_only)

    @property
    def is_own(self) -> bool:
        """Whether this is another set than Qwen3Guard's."""
        return set(self.query) != set(PUBLISHED.query) or set(self.response) != set(PUBLISHED.response)

    def find(self, name: str) -> Category:
        """By value or label. Raises ValueError that names what is known."""
        known = {c.value: c for c in self.query} | {c.label: c for c in self.query}
        found = known.get(name)
        if found is None:
            try:
                found = known.get(Category.named(name).value)
            except ValueError:
                pass
        if found is None:
            values = [c.value for c in self.query]
            raise ValueError(f"unknown category '{name[:100]}'; known: {', '.join(values)}{did_you_mean(name, values)}")
        return found


# Qwen3Guard's own class ids.
PUBLISHED = CategorySet(
    tuple(
        Entry(category, prompts_only=category is Category.jailbreak)
        for category in (
            Category.violent, Category.sexual, Category.self_harm, Category.political, Category.pii,
            Category.copyright, Category.non_violent_illegal, Category.unethical, Category.jailbreak,
        )
    )
)  # fmt: skip


def read_categories(path: Path) -> CategorySet:
    """Read a file of 2 to 50 categories. Raises `TrainingError` with its line."""
    import yaml

    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        data: Any = None if root is None else yaml.SafeLoader("").construct_document(root)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise TrainingError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise TrainingError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if isinstance(root, yaml.MappingNode) and isinstance(data, dict) and [*data] == ["categories"]:
        root, data = root.value[0][1], data["categories"]
    if not isinstance(root, yaml.SequenceNode) or not isinstance(data, list):
        raise TrainingError(f"{path}: a list of categories is needed: names, or mappings with {', '.join(_KEYS)}")
    lines = [node.start_mark.line + 1 for node in root.value]
    return _checked(
        [(_entry(item, f"{path}:{line}"), f"{path}:{line}") for item, line in zip(data, lines, strict=True)]
    )


def of_names(names: Iterable[str]) -> CategorySet:
    """A set of plain names. Raises `TrainingError`."""
    return _checked([(_entry(name, f"category {i}"), f"category {i}") for i, name in enumerate(names, 1)])


def _entry(item: Any, where: str) -> Entry:
    given = item if isinstance(item, dict) else {"name": item}
    for key in given:
        if key not in _KEYS:
            raise TrainingError(f"{where}: unknown key '{key}'; known: {', '.join(_KEYS)}")
    name, about, prompts_only = given.get("name"), given.get("description") or "", given.get("prompts_only", False)
    if not isinstance(name, str):
        raise TrainingError(f"{where}: a category needs a name, a text (in quotes where YAML reads it otherwise)")
    if not isinstance(about, str) or not isinstance(prompts_only, bool):
        raise TrainingError(f"{where}: 'description' is a text, 'prompts_only' true or false")
    if "<|" in name + about:
        raise TrainingError(f"{where}: '<|' begins a special token: leave it out")
    try:
        return Entry(Category.named(name), " ".join(about.split()), prompts_only)
    except ValueError as error:
        raise TrainingError(f"{where}: {error}") from error


def _checked(found: list[tuple[Entry, str]]) -> CategorySet:
    seen: dict[Category, str] = {}
    for entry, where in found:
        if entry.category in seen:
            raise TrainingError(f"{where}: '{entry.category.value}' stands twice (first at {seen[entry.category]})")
        seen[entry.category] = where
    entries = sorted((entry for entry, _ in found), key=lambda entry: entry.prompts_only)
    n = sum(not entry.prompts_only for entry in entries)
    if n < MIN_OWN or len(entries) > MAX_OWN:
        raise TrainingError(
            f"{len(entries)} categories, {n} of them for responses: {MIN_OWN} for responses at least, "
            f"{MAX_OWN} in all at most"
        )
    return CategorySet(tuple(entries))
