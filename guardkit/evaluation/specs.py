"""The named data sets, read from `datasets.yaml`: data, not code, so that adding one is adding a row."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from guardkit.errors import EvaluationError

METRICS = ("f1", "recall", "fpr", "refusal", "locations")


@dataclass(frozen=True)
class Labels:
    """How a label is read from a record (see the head of `datasets.yaml`). Without a column it is `constant`."""

    constant: str | None = None
    column: str | None = None
    columns: tuple[str, ...] = ()
    majority: bool = False
    above: float | None = None
    map: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None

    @property
    def read(self) -> tuple[str, ...]:
        """The columns that are read."""
        return self.columns or ((self.column,) if self.column is not None else ())

    @classmethod
    def of(cls, data: str | Mapping[str, Any] | None) -> Labels | None:
        if data is None:
            return None
        if isinstance(data, str):
            return cls(constant=data)
        return cls(
            column=data.get("column"),
            columns=tuple(data.get("columns", ())),
            majority=bool(data.get("majority", False)),
            above=data.get("above"),
            map={str(k).lower(): str(v) for k, v in data.get("map", {}).items()},
            default=data.get("default"),
        )


@dataclass(frozen=True)
class Fields:
    """Where a record's fields are. columns: guardkit's field to the record's own name."""

    columns: Mapping[str, str] = field(default_factory=dict)
    severity: Labels | None = None
    refusal: Labels | None = None


@dataclass(frozen=True)
class Hub:
    """Where the `datasets` library finds a set: a hub's path (and configuration `name`), or the `url` of a CSV."""

    split: str
    revision: str
    path: str | None = None
    name: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """A data set: where it is, how its columns and labels are read, how it is scored, under which licence."""

    name: str
    title: str
    kind: str
    metric: str
    licence: str
    version: int = 1
    file: str | None = None
    hub: Hub | None = None
    mappings: tuple[Fields, ...] = (Fields(),)
    local: Fields = Fields()
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def has_locations(self) -> bool:
        return self.metric == "locations"

    @functools.cached_property
    def label_columns(self) -> frozenset[str]:
        """The columns in which its authors keep labels."""
        found = (labels for m in self.mappings for labels in (m.severity, m.refusal) if labels is not None)
        return frozenset(column for labels in found for column in labels.read)

    @functools.cached_property
    def text_columns(self) -> frozenset[str]:
        """The columns in which its authors keep texts."""
        fields = ("prompt", "response", "messages")
        return frozenset(name for m in self.mappings for field, name in m.columns.items() if field in fields)


@dataclass(frozen=True)
class Published:
    """A figure that others have published for a set, in percent. mode: strict, loose, refusal, hit or within."""

    source: str
    model: str
    mode: str
    value: float


@dataclass(frozen=True)
class Table:
    datasets: Mapping[str, DatasetSpec]
    suites: Mapping[str, tuple[str, ...]]
    published: Mapping[str, tuple[Published, ...]]

    def resolve(self, name: str) -> list[DatasetSpec]:
        """The sets of a suite, or the one set of that name; "all" is every set. Raises `EvaluationError`."""
        if name == "all":
            return list(self.datasets.values())
        if name in self.suites:
            return [self.datasets[n] for n in self.suites[name]]
        if name in self.datasets:
            return [self.datasets[name]]
        known = ", ".join(["all", *self.suites, *self.datasets])
        raise EvaluationError(f"unknown suite '{name}'; known: {known}")

    def of_file(self, stem: str) -> DatasetSpec | None:
        """The (first) set whose local file is called `stem`."""
        return next((s for s in self.datasets.values() if s.file == stem), None)


@functools.cache
def load_table() -> Table:
    """The table in the package."""
    import yaml

    text = resources.files("guardkit.evaluation").joinpath("datasets.yaml").read_text(encoding="utf-8")
    return read_table(yaml.safe_load(text))


def read_table(data: Mapping[str, Any]) -> Table:
    version = int(data["version"])
    datasets = {name: _spec(name, row, version) for name, row in data["datasets"].items()}
    published: dict[str, list[Published]] = {}
    for entry in data.get("published", ()):
        for model, modes in entry["figures"].items():
            for mode, values in modes.items():
                for name, value in values.items():
                    published.setdefault(name, []).append(Published(entry["source"], model, mode, float(value)))
    suites = {name: tuple(members) for name, members in data.get("suites", {}).items()}
    return Table(datasets, suites, {name: tuple(rows) for name, rows in published.items()})


def _spec(name: str, row: Mapping[str, Any], version: int) -> DatasetSpec:
    hub = Hub(**row["hub"]) if "hub" in row else None
    base = {k: row.get(k) for k in ("columns", "severity", "refusal")}
    return DatasetSpec(
        name=name,
        title=row["title"],
        kind=row["kind"],
        metric=row["metric"],
        licence=row["licence"],
        version=version,
        file=row.get("file"),
        hub=hub,
        mappings=tuple(_mapping(base, more) for more in row.get("each", ({},))),
        local=_mapping(row.get("local", {}), {}),
        where={column: tuple(str(v).lower() for v in values) for column, values in row.get("where", {}).items()},
    )


def _mapping(base: Mapping[str, Any], more: Mapping[str, Any]) -> Fields:
    columns = {**(base.get("columns") or {}), **more.get("columns", {})}
    return Fields(
        columns,
        Labels.of(more.get("severity", base.get("severity"))),
        Labels.of(more.get("refusal", base.get("refusal"))),
    )


def names(specs: Sequence[DatasetSpec]) -> str:
    return ", ".join(s.name for s in specs)
