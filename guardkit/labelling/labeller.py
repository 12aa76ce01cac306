"""A callable for batches of rows, for pipelines of one's own.

ds.map_batches(Labeller, fn_constructor_kwargs={"model": "nano"}, compute=ray.data.ActorPoolStrategy(size=4))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardkit.errors import LabelError
from guardkit.guard import Guard
from guardkit.labelling.judging import Judge, Limit
from guardkit.labelling.labels import COLUMN, Label
from guardkit.labelling.rows import BATCH_ROWS, Reading, Row, batches, present
from guardkit.models.registry import DEFAULT_MODEL
from guardkit.policy import DEFAULT_POLICY

if TYPE_CHECKING:
    from guardkit.policy import Policy


class Labeller:
    """Gives a batch of rows back with a column of labels.

    model: a name, folder or server's address, loaded where the first batch arrives (so an object of this class is
    small and can be pickled), or a `Guard`. vote: further models; the label is then that of most (see
    `labels.voted`). field, shape, judge, stage: what is judged of a row, as in `guard label`. column: of the labels.
    batch_rows, batch_tokens: of what is judged at once, whatever the batch holds (a token counts as 4 characters).
    limit: a rate to keep. load: further settings of `Guard.load`.
    """

    def __init__(
        self,
        model: str | Path | Guard = DEFAULT_MODEL,
        policy: str | Path | Policy | Mapping[str, Any] = DEFAULT_POLICY,
        *,
        vote: Sequence[str | Path | Guard] = (),
        field: str | None = None,
        shape: str | None = None,
        judge: str = "last",
        stage: str | None = None,
        column: str = COLUMN,
        batch_rows: int = BATCH_ROWS,
        batch_tokens: int | None = None,
        limit: Limit | None = None,
        **load: Any,
    ):
        self._models = [model, *vote]
        self._policy, self._load = policy, load
        self._reading = Reading(field, shape, judge)
        self._stage, self._limit = stage, limit
        self.column, self.batch_rows, self.batch_tokens = column, batch_rows, batch_tokens
        self._judge: Judge | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_judge": None}  # loaded anew where it arrives

    @property
    def judge(self) -> Judge:
        """What judges; loaded when it is first asked for."""
        if self._judge is None:
            guards = [
                m if isinstance(m, Guard) else Guard.load(m, policy=self._policy, **{"exact": True, **self._load})
                for m in self._models
            ]
            names = [m.model.name if isinstance(m, Guard) else str(m) for m in self._models]
            self._judge = Judge(guards, names, stage=self._stage, limit=self._limit)
        return self._judge

    def labels(self, records: Sequence[Any]) -> list[Label]:
        """The label of each record: an object, a text, a list of messages."""
        rows = [self._reading.row(i, record) for i, record in enumerate(records)]
        return [label for batch in self._batches(rows) for label in self.judge.labels(batch)]

    def _batches(self, rows: list[Row]) -> list[list[Row]]:
        return list(batches([rows], lambda: self.batch_rows, self.batch_tokens))

    def __call__(self, batch: Any) -> Any:
        """batch: columns of one length by their names (NumPy arrays, lists, Arrow arrays), or an Arrow table or record
        batch. Gives the same with the labels as one column more: Arrow's structs, or dicts in an array or a list.
        Raises `LabelError` for columns of different lengths, or where the column is there already."""
        names = batch.schema.names if hasattr(batch, "schema") else list(batch)
        if self.column in names:
            raise LabelError(f"there is a column '{self.column}' already; Labeller(column=...) names another")
        if hasattr(batch, "schema"):
            from guardkit.labelling.tables import label_array

            labels = label_array(self.labels([present(record) for record in batch.to_pylist()]))
            return batch.append_column(self.column, labels)
        columns = {name: _values(column) for name, column in batch.items()}
        lengths = {len(values) for values in columns.values()}
        if len(lengths) > 1:
            raise LabelError(f"columns of different lengths: {', '.join(f'{k}: {len(v)}' for k, v in columns.items())}")
        records = [present(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        return {**batch, self.column: _like(next(iter(batch.values()), []), self.labels(records))}


def _values(column: Any) -> list[Any]:
    """A column as Python values."""
    if hasattr(column, "to_pylist"):
        return list(column.to_pylist())
    return [_value(v) for v in column.tolist()] if hasattr(column, "tolist") else list(column)


def _value(value: Any) -> Any:
    """What an array of objects may hold: arrays inside, and NaN for what is missing."""
    if hasattr(value, "tolist"):
        return _value(value.tolist())
    if isinstance(value, Mapping):
        return {k: _value(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_value(v) for v in value]
    return None if isinstance(value, float) and value != value else value


def _like(column: Any, labels: Sequence[Label]) -> Any:
    """Labels in the kind of column that the batch has."""
    if hasattr(column, "to_pylist"):
        from guardkit.labelling.tables import label_array

        return label_array(labels)
    if isinstance(column, list | tuple):
        return list(labels)
    import numpy as np

    found = np.empty(len(labels), dtype=object)
    found[:] = list(labels)
    return found
