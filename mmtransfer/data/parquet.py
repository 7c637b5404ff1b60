"""Rows of parquet files, read one row group at a time: memory does not grow with the data."""

from __future__ import annotations

import hashlib
import operator
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import Any, SupportsIndex

import pyarrow as pa
import pyarrow.parquet as pq

from mmtransfer.features import Row
from mmtransfer.registry import nearest

CACHE = 64 * 2**20  # bytes of decoded row groups that each process keeps
STREAMED = 64  # rows decoded at a time when all are read in order


class ParquetRows(Sequence[Row]):
    """The rows of parquet files, one file after the other; pictures and sounds stay undecoded.

    A row is read with its whole row group, and the groups read last are kept: reading is quick in
    order, or in any order that stays among a few groups (see `blocks` and `resident`).

    cache: bytes of decoded row groups to keep; one group is kept whatever its size
    Raises `ValueError` for a file that is no parquet file, or whose columns are not those of the
    first file.
    """

    def __init__(self, files: Sequence[str | Path], cache: int = CACHE) -> None:
        self.files = [Path(file) for file in files]
        self.cache = cache
        self.metadata, schemas = [], []
        for file in self.files:
            with opened(file) as parquet:
                self.metadata.append(parquet.metadata)
                schemas.append(parquet.schema_arrow)
        self.schema = common_schema(self.files, schemas)
        self.column_names: list[str] = list(self.schema.names)
        #: columns of class numbers that are given as names
        self.label_names: dict[str, list[str]] = {}
        #: numbers of the first row of each row group, and of the row behind the last group
        self.blocks = [0]
        self.groups: list[tuple[int, int]] = []  # (file, row group) of each block
        for number, metadata in enumerate(self.metadata):
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                if rows:
                    self.groups.append((number, group))
                    self.blocks.append(self.blocks[-1] + rows)
        self.kept: OrderedDict[int, pa.Table] = OrderedDict()
        self.held = 0  # bytes of the tables in `kept`

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "kept": OrderedDict(), "held": 0}  # workers read for themselves

    def __len__(self) -> int:
        return self.blocks[-1]

    def __getitem__(self, index: SupportsIndex) -> Row:  # type: ignore[override]
        number = operator.index(index)
        number += len(self) if number < 0 else 0
        if not 0 <= number < len(self):
            raise IndexError(f"row {index} of {len(self)} rows")
        block = bisect_right(self.blocks, number) - 1
        table = self._block(block).slice(number - self.blocks[block], 1)
        return self._named(table.to_pylist()[0])

    def __iter__(self) -> Iterator[Row]:
        """All rows in order, a few at a time, past the cache."""
        for number in range(len(self.files)):
            with opened(self.files[number], self.metadata[number]) as parquet:
                for batch in parquet.iter_batches(
                    STREAMED, columns=self.column_names, use_threads=False
                ):
                    yield from map(
                        self._named, self._cast(pa.Table.from_batches([batch])).to_pylist()
                    )

    @property
    def resident(self) -> int:
        """How many row groups the cache holds at once, judged by the first one."""
        if not self.groups:
            return 1
        first = self._block(0)
        largest = max(end - start for start, end in pairwise(self.blocks))
        return max(1, int(self.cache * first.num_rows / max(1, first.nbytes * largest)))

    @property
    def features(self) -> Mapping[str, Any]:
        """The kinds of the columns, as `datasets` describes them."""
        return features_of(self._chosen()) | {n: _text() for n in self.label_names}

    def select_columns(self, names: str | Sequence[str]) -> ParquetRows:
        """The same rows with these columns only; nothing else is read from the files."""
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            if name not in self.column_names:
                raise ValueError(f"no column {name!r}.{nearest(name, self.column_names)}")
        return self._changed(
            column_names=names,
            label_names={n: c for n, c in self.label_names.items() if n in names},
        )

    def with_label_names(self, name: str) -> ParquetRows:
        """The same rows with a column of class numbers as their names."""
        names = list(self.features[name].names)
        return self._changed(label_names={**self.label_names, name: names})

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(file.stat().st_size for file in self.files)

    def outline(self) -> str:
        """Digest of the files' footers: count, size and statistics of every part of each column.

        It takes no time whatever the size of the files, and new content hardly ever keeps it.
        """
        footers = [str(metadata.to_dict()) for metadata in self.metadata]
        return hashlib.blake2b("".join(footers).encode(), digest_size=16).hexdigest()

    def _changed(self, **attributes: Any) -> ParquetRows:
        rows = copy(self)  # by __getstate__: with an empty cache of its own
        vars(rows).update(attributes)
        return rows

    def _block(self, block: int) -> pa.Table:
        if block not in self.kept:
            number, group = self.groups[block]
            with opened(self.files[number], self.metadata[number]) as parquet:
                read = parquet.read_row_group(group, columns=self.column_names, use_threads=False)
            table = self._cast(read)
            self.kept[block] = table
            self.held += table.nbytes
            while self.held > self.cache and len(self.kept) > 1:
                _, oldest = self.kept.popitem(last=False)
                self.held -= oldest.nbytes
        self.kept.move_to_end(block)
        return self.kept[block]

    def _chosen(self) -> pa.Schema:
        fields = [self.schema.field(name) for name in self.column_names]
        return pa.schema(fields, metadata=self.schema.metadata)

    def _cast(self, table: pa.Table) -> pa.Table:
        # By name: a file may have its columns in another order, or others that begin alike.
        table, chosen = table.select(self.column_names), self._chosen()
        return table if table.schema.types == chosen.types else table.cast(chosen)

    def _named(self, row: Row) -> Row:
        for name, names in self.label_names.items():
            code = row[name]
            row[name] = names[code] if code is not None and code >= 0 else None
        return row


@contextmanager
def opened(file: Path, metadata: Any = None) -> Iterator[pq.ParquetFile]:
    """An open parquet file, for no longer than one reading: forked workers must not share it."""
    try:
        # Without threads and read-ahead, both of which are at odds with forked workers.
        with pq.ParquetFile(
            file, metadata=metadata, pre_buffer=False, buffer_size=2**20
        ) as parquet:
            yield parquet
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is no readable parquet file: {error}") from error


def common_schema(files: Sequence[Path], schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The schema that all files can be read with.  Raises `ValueError` where there is none."""
    if not files:
        raise ValueError("no parquet file is given")
    first = schemas[0]
    fields = {field.name: field for field in first}
    for file, schema in zip(files[1:], schemas[1:], strict=True):
        if schema.equals(first, check_metadata=True):
            continue
        pairs = [(file, schema, files[0], first), (files[0], first, file, schema)]
        for where, found, other, expected in pairs:
            for name in expected.names:
                if name not in found.names:
                    near = nearest(name, found.names)
                    raise ValueError(f"{where} has no column {name!r}, unlike {other.name}.{near}")
        for name, field in fields.items():
            both = [pa.schema([field]), pa.schema([schema.field(name)])]
            try:
                fields[name] = pa.unify_schemas(both, promote_options="permissive").field(0)
            except pa.ArrowException as error:
                raise ValueError(
                    f"{file}, column {name!r} holds {schema.field(name).type}, expected "
                    f"{field.type} as in {files[0].name}"
                ) from error
        _check_labels(file, schema, files[0], first)
    return pa.schema(fields.values(), metadata=first.metadata)


def _check_labels(file: Path, schema: pa.Schema, other: Path, expected: pa.Schema) -> None:
    """Raise `ValueError` if the class numbers of two files do not mean the same."""
    if schema.metadata == expected.metadata:
        return
    found = features_of(schema)
    for name, feature in features_of(expected).items():
        names, others = getattr(feature, "names", None), getattr(found[name], "names", None)
        if names != others:
            raise ValueError(
                f"{file}, column {name!r} has the labels {others}, expected {names} as in "
                f"{other.name}"
            )


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """What `datasets` makes of an arrow schema, pictures and sounds left undecoded."""
    import datasets

    plain = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in schema
    ]
    found = datasets.Features.from_arrow_schema(pa.schema(plain, metadata=schema.metadata))
    return {name: undecoded(feature) for name, feature in found.items()}


def undecoded(feature: Any) -> Any:
    """The feature with the values as they lie in the data.

    Decoding is the encoder's work: it knows rate and size, and its errors name the row.
    """
    import datasets

    image_or_audio = isinstance(feature, datasets.Image | datasets.Audio)
    return type(feature)(decode=False) if image_or_audio and feature.decode else feature


def _text() -> Any:
    import datasets

    return datasets.Value("string")
