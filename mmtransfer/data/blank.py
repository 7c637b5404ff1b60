"""Rows with further columns that are empty: labels of tasks that only other rows have."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

from mmtransfer.data.rows import Rows, columns_of


class WithBlank(Sequence[Mapping[str, Any]]):
    """The same rows with `None` in the columns `names` that they lack."""

    def __init__(self, rows: Rows, names: Sequence[str]) -> None:
        self.rows, self.names = rows, list(names)
        own = columns_of(rows)
        self.column_names = [*own, *(name for name in self.names if name not in own)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:  # type: ignore[override]
        return dict.fromkeys(self.names) | dict(self.rows[operator.index(index)])

    def select_columns(self, names: str | Sequence[str]) -> WithBlank:
        """The same rows with these columns only, where the rows below allow that."""
        names = [names] if isinstance(names, str) else list(names)
        own = [name for name in names if name in columns_of(self.rows)]
        blank = [name for name in names if name not in own]
        if hasattr(self.rows, "select_columns"):
            return WithBlank(self.rows.select_columns(own), blank)
        return WithBlank([{name: row.get(name) for name in own} for row in self.rows], blank)


def with_blank(data: Mapping[str, Rows], *names: str) -> dict[str, Rows]:
    """Every split with these columns, empty where it lacks them."""
    return {split: WithBlank(rows, names) for split, rows in data.items()}
