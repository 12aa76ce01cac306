"""Operators of Data-Juicer: `guard_filter` keeps samples by their label, `guard_mapper` puts the label beside them.

    import guardkit_pipelines.juicer_ops        # registers both; in a recipe: custom_operator_paths

    process:
      - guard_filter: {model: nano, where: [safe]}

An operator that raises can cost Data-Juicer a whole batch (`skip_op_error`), so these never do: a sample that could not
be judged has "not_judged" for its severity, and is not kept where only what is safe is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_juicer.ops.base_op import OPERATORS, Filter, Mapper
from data_juicer.utils.constant import Fields

from guardkit.labelling import Labeller
from guardkit.labelling.choosing import Where
from guardkit.labelling.labels import COLUMN, complete

SEVERITY, KEPT = "guardkit_severity", "guardkit_kept"


@OPERATORS.register_module("guard_filter")
class GuardFilter(Filter):  # type: ignore[misc]
    """Keeps the samples whose label meets all of `where` (as `guard label --where`). The severity is kept in the
    sample's stats. guard: settings of `Labeller`."""

    _batched_op = True

    def __init__(
        self,
        model: Any = "nano",
        where: Sequence[str] = ("safe",),
        guard: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.where = Where.parse(list(where))
        self.labeller = Labeller(model, **{"stage": "document", **(guard or {})})

    def compute_stats_batched(self, samples: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        stats = samples[Fields.stats]
        new = [i for i, stat in enumerate(stats) if SEVERITY not in stat]
        labels = self.labeller.labels([samples[self.text_key][i] for i in new])
        for i, label in zip(new, labels, strict=True):
            stats[i][SEVERITY] = label["severity"] or "not_judged"
            stats[i][KEPT] = self.where is None or self.where.keeps(label)
        return samples

    def process_batched(self, samples: dict[str, Any]) -> list[bool]:
        return [bool(stat[KEPT]) for stat in samples[Fields.stats]]


@OPERATORS.register_module("guard_mapper")
class GuardMapper(Mapper):  # type: ignore[misc]
    """Puts a label beside each sample, in `column`. guard: settings of `Labeller`."""

    _batched_op = True

    def __init__(
        self,
        model: Any = "nano",
        column: str = COLUMN,
        guard: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.column = column
        self.labeller = Labeller(model, **{"stage": "document", **(guard or {})})

    def process_batched(self, samples: dict[str, Any]) -> dict[str, Any]:
        samples[self.column] = [complete(label) for label in self.labeller.labels(samples[self.text_key])]
        return samples
