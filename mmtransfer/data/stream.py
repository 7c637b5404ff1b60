"""Rows that are only read in order: streams of `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from math import sqrt
from statistics import fmean, pstdev
from typing import Any

from mmtransfer.features import Row
from mmtransfer.tasks.base import Task

READ = 16  # rows converted at a time
LOOKED_AT = 64  # rows at the beginning that are checked before training
EVEN = 8  # parts that differ by one in so many are even enough
FEW = 64  # shards; of more it takes too long to look at each file for its parts
MIXED = 4  # shards in the shuffle buffer that are enough
SIDE_BY_SIDE = 10  # shards that are read in turn where they are larger


class Stream:
    """The rows of a `datasets.IterableDataset`, pictures and sounds undecoded.

    length: rows of one pass, or None where it is not known
    label_names: columns of class numbers that are given as these names
    sizes: rows of each shard, where they are known
    Raises `ValueError` for rows without a length that are no such data set.
    """

    def __init__(
        self,
        data: Any,
        length: int | None = None,
        label_names: Mapping[str, Sequence[str]] | None = None,
        sizes: Sequence[int] | None = None,
    ) -> None:
        if not hasattr(data, "shuffle") or not hasattr(data, "num_shards"):
            raise ValueError(
                "rows without a length must be a datasets.IterableDataset, found "
                f"{type(data).__name__}"
            )
        self.data = undecoded_rows(data)
        splits = data.info.splits or {}
        known = splits.get(str(data.split))
        self.length = length or (known.num_examples or None if known is not None else None)
        self.sizes = list(sizes) if sizes is not None else None
        if sizes is not None:
            self.length = sum(sizes)
        self.label_names = {name: list(names) for name, names in (label_names or {}).items()}

    @property
    def column_names(self) -> list[str]:
        names = self.data.column_names
        return list(names) if names is not None else list(next(iter(self), {}))

    @property
    def features(self) -> dict[str, Any]:
        """The kinds of the columns as far as they are known, but of those given as names."""
        known = self.data.features or {}
        return {name: kind for name, kind in known.items() if name not in self.label_names}

    def classes(self, name: str) -> list[Any] | None:
        """The labels of a column in order, or None where the data does not say."""
        if name in self.label_names:
            return list(self.label_names[name])
        names = getattr(self.features.get(name), "names", None)
        return list(range(len(names))) if names is not None else None

    def select_columns(self, names: Sequence[str]) -> Stream:
        """The same rows with these columns only."""
        labels = {n: c for n, c in self.label_names.items() if n in names}
        return Stream(self.data.select_columns(list(names)), self.length, labels, self.sizes)

    def with_label_names(self, name: str) -> Stream:
        """The same rows with a column of class numbers as their names."""
        names = {**self.label_names, name: self.features[name].names}
        return Stream(self.data, self.length, names, self.sizes)

    def __iter__(self) -> Iterator[Row]:
        return self._rows(self.data)

    def head(self) -> list[Row]:
        """The first rows."""
        return list(islice(self, LOOKED_AT))

    def part(self, number: int, parts: int, seed: int, epoch: int, buffer: int) -> Iterator[Row]:
        """The rows of one of several parts, which together hold every row once.

        Shards in an order of this seed and epoch, rows shuffled within a buffer.  Parts are whole
        shards where these come out even, or nearly so; else each part reads all and keeps its own.
        """
        from datasets.distributed import split_dataset_by_node

        shards = self.data.num_shards
        whole = shards % parts == 0 or shards >= EVEN * parts
        if self.sizes is not None:
            whole = whole and nearly_even(self.sizes, parts)
        # Shards read side by side mix better, but cost threads, and seconds at the end of each pass
        # (datasets 5.2, parquet): a buffer that holds several shards has no need of it.
        small = self.length is not None and shards * buffer >= MIXED * self.length
        data = self.data.shuffle(
            seed=seed, buffer_size=buffer, max_buffer_input_shards=1 if small else SIDE_BY_SIDE
        )
        data = split_dataset_by_node(data, number, parts, "shards" if whole else "examples")
        data.set_epoch(epoch)
        return self._rows(data)

    def _rows(self, data: Any) -> Iterator[Row]:
        # Not iter(data), which would share the rows out among loader workers in its own way.
        for batch in data.iter(READ):
            for values in zip(*batch.values(), strict=True):
                row = dict(zip(batch, values, strict=True))
                for name, names in self.label_names.items():
                    code = row[name]
                    row[name] = names[code] if code is not None and code >= 0 else None
                yield row

    def fit(self, task: Task, name: str) -> None:
        """Tell a task its classes.  Raises `ValueError` where neither data nor options name them.

        A task that has no classes is fitted to the first rows.
        """
        values = [row.get(name) for row in self.head()]
        if not hasattr(task, "classes"):
            task.fit(values)
            return
        if task.classes is None:
            task.classes = self.classes(name)
        if task.classes is None:
            raise ValueError(
                "a stream does not show all its labels beforehand: name them in the task, as "
                "{'name': 'classification', 'classes': [...]}, or make the column a ClassLabel"
            )
        task.loss_weight(task.encode(values))  # a bad label, or unknown weights, show now


def nearly_even(sizes: Sequence[int], parts: int) -> bool:
    """Whether parts of whole shards, dealt at random, hold about as many rows each.

    That is, whether their sizes deviate by no more than one part in `EVEN`.
    """
    dealt = len(sizes) / parts  # shards of a part
    if sizes.count(0) >= dealt:  # a part might get no row
        return False
    drawn = dealt * (len(sizes) - dealt) / max(1, len(sizes) - 1)  # without replacement
    return pstdev(sizes) * sqrt(drawn) <= fmean(sizes) * dealt / EVEN


def is_stream(rows: Any) -> bool:
    """Whether rows can only be read in order."""
    return not hasattr(rows, "__len__")


def as_stream(rows: Any) -> Stream:
    return rows if isinstance(rows, Stream) else Stream(rows)


def undecoded_rows(data: Any) -> Any:
    """A data set of `datasets` with pictures and sounds as they lie in the data."""
    from mmtransfer.data.parquet import undecoded

    for name, feature in (data.features or {}).items():
        plain = undecoded(feature)
        if plain is not feature:
            data = data.cast_column(name, plain)
    return data


def finer(data: Any) -> Any:
    """A stream of few shards in smaller ones, where its files can be read in parts."""
    return data.reshard() if data.num_shards < FEW else data
