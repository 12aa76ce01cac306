"""A pandas UDF for Spark: a column of texts in, a column of labels out.

    df.withColumn("guardkit", guard_udf("nano")(df.text)).where("guardkit.severity = 'safe'")

The guard is loaded once a Python worker, and reused for all batches that it gets.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

from guardkit.labelling import Labeller
from guardkit.labelling.labels import complete

FIELDS = {
    "severity": "string",
    "categories": "array<string>",
    "scores": "struct<safe: double, controversial: double, unsafe: double>",
    "refusal": "boolean",
    "stage": "string",
    "action": "string",
    "model": "string",
    "policy": "string",
    "char_start": "bigint",
    "char_end": "bigint",
    "coverage": "string",
    "error": "string",
}
_LABELLERS: dict[bytes, Labeller] = {}


def guard_udf(model: Any = "nano", **settings: Any) -> Callable[..., Any]:
    """The UDF. settings: of `Labeller`; texts count as documents unless `stage` says otherwise. What is null is not
    judged."""
    from pyspark.sql.functions import pandas_udf

    made = pickle.dumps(Labeller(model, **{"stage": "document", **settings}))

    def labels(batches: Iterator[Any]) -> Iterator[Any]:
        import pandas as pd

        if made not in _LABELLERS:
            _LABELLERS[made] = pickle.loads(made)
        for texts in batches:
            rows = [complete(label) for label in _LABELLERS[made].labels(texts.tolist())]
            yield pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=object) for name in FIELDS})

    # Spark reads the kind of UDF from these, and takes no postponed annotations.
    import pandas as pd

    labels.__annotations__ = {"batches": Iterator[pd.Series], "return": Iterator[pd.DataFrame]}
    return pandas_udf(labels, ", ".join(f"{name} {kind}" for name, kind in FIELDS.items()))  # type: ignore[no-any-return]
