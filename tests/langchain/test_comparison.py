"""The table in the docs is what the matrix gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.langchain import comparison

DOCS = Path(__file__).parents[2] / "docs" / "langchain.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_table_in_the_docs_is_what_the_matrix_gives() -> None:
    table = comparison.table(comparison.CONTENDERS)
    assert table in DOCS.read_text(encoding="utf-8"), table
    assert all(row.endswith("| clean |") for row in table.splitlines()[2:])
