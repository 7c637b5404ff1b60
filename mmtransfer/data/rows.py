"""Where rows come from, and the checks that they pass before any work begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from mmtransfer.data.collate import Row, Stored
from mmtransfer.data.store import FeatureStore, StoredViews
from mmtransfer.data.stream import Stream, as_stream, finer, is_stream, undecoded_rows
from mmtransfer.data.values import digest_of_values
from mmtransfer.encoders.base import Encoder
from mmtransfer.features import row_number
from mmtransfer.registry import nearest
from mmtransfer.tasks.base import Task

#: a `datasets.Dataset`, a list of dictionaries, or anything else indexed by row number; where it
#: says so also a stream: a `datasets.IterableDataset`, or a `Stream` of one
Rows = Sequence[Mapping[str, Any]]
#: beside the usual three: rows of the target whose labels nobody reads, and labelled rows of the
#: source, on which forgetting is measured
SPLITS = {
    "train": ("train",),
    "validation": ("validation", "val", "dev"),
    "test": ("test",),
    "unlabelled": ("unlabelled", "unlabeled"),
    "source": ("source",),
}


def load_rows(source: str | Path, streaming: bool = False) -> dict[str, Rows]:
    """Splits of a directory or hub id, those of `SPLITS` that there are.

    A directory holds `train.parquet`, `val.parquet`, `test.parquet` (or `train-*.parquet` shards)
    and perhaps `unlabelled.parquet` and `source.parquet`, or is laid out for datasets' imagefolder.
    Pictures and sounds stay undecoded.

    streaming: rows that are only read in order, in particular from the hub without a download
    Raises `FileNotFoundError` when the source is a path and nothing is there.
    """
    directory = Path(source).expanduser()
    if not directory.exists():
        if str(source)[:1] in "./~" or str(source).count("/") > 1:
            raise FileNotFoundError(f"no such data directory: {source}")
        return _loaded(str(source), streaming)
    found = {"train": [directory]} if directory.is_file() else parquet_files(directory)
    if not found:
        return _loaded("imagefolder", streaming, data_dir=str(directory))
    read = stream_parquet if streaming else read_parquet
    return {split: read(files) for split, files in found.items()}


def parquet_files(directory: Path) -> dict[str, list[Path]]:
    """The parquet files of each split that a directory has."""
    found: dict[str, list[Path]] = {}
    for split, names in SPLITS.items():
        for name in names:
            files = [
                *sorted(directory.glob(f"{name}.parquet")),
                *sorted(directory.glob(f"{name}-*.parquet")),
            ]
            if files and split not in found:
                found[split] = files
    return found


def read_parquet(files: list[Path]) -> Rows:
    """One data set out of parquet files, pictures and sounds undecoded."""
    from mmtransfer.data.parquet import ParquetRows

    return ParquetRows(files)


def stream_parquet(files: list[Path]) -> Any:
    """A `Stream` of the rows, columns and kinds that `read_parquet` gives."""
    import datasets

    from mmtransfer.data.parquet import STREAMED, ParquetRows

    rows = ParquetRows(files)
    pairs = list(zip(rows.files, rows.metadata, strict=True))
    used = [(file, footer) for file, footer in pairs if footer.num_rows] or pairs[:1]
    data = datasets.load_dataset(
        "parquet",
        split="train",
        streaming=True,
        data_files=[escape(str(file)) for file, _ in used],
        features=datasets.Features(rows.features),
        batch_size=STREAMED,  # by default that of the first row group, which may be empty
    )
    shards, sizes = data, [footer.num_rows for _, footer in used]
    if len(rows):
        shards = finer(data)
    if shards is not data:
        sizes = [f.row_group(k).num_rows for _, f in used for k in range(f.num_row_groups)]
    return Stream(shards, sizes=sizes)


def _loaded(source: str, streaming: bool, **options: Any) -> dict[str, Any]:
    """The splits that datasets finds, under our names, undecoded."""
    import datasets

    found = datasets.load_dataset(source, streaming=streaming, **options)
    splits: dict[str, Any] = {}
    for split, names in SPLITS.items():
        for name in names:
            if name in found:
                data = found[name]
                splits[split] = Stream(finer(data)) if streaming else undecoded_rows(data)
                break
    return splits


def columns_of(rows: Rows) -> list[str]:
    names = as_stream(rows).column_names if is_stream(rows) else getattr(rows, "column_names", None)
    return list(names) if names is not None else list(dict.fromkeys(k for row in rows for k in row))


def column(rows: Rows, name: str) -> Iterable[Any]:
    """The values of one column, in order, without reading the others where rows allow that."""
    if hasattr(rows, "select_columns"):
        return (row[name] for row in rows.select_columns([name]))
    return (row.get(name) for row in rows)


def class_names(rows: Rows, name: str) -> list[str] | None:
    """The label names of a datasets ClassLabel column, None for any other column."""
    return getattr((getattr(rows, "features", None) or {}).get(name), "names", None)


def with_label_names(rows: Rows, name: str) -> Rows:
    """The same rows with a ClassLabel column as its names instead of numbers."""
    names = class_names(rows, name)
    if names is None:
        return rows
    data: Any = as_stream(rows) if is_stream(rows) else rows
    if hasattr(data, "with_label_names"):  # translated as they are read
        return data.with_label_names(name)
    import datasets

    values = [names[v] if v is not None and v >= 0 else None for v in column(rows, name)]
    aside = f"{name} as names"  # a data set that lost its only column would lose its length too
    data = data.add_column(aside, values, feature=datasets.Value("string"))
    return data.remove_columns(name).rename_column(aside, name)


def check_rows(
    rows: Rows,
    encoders: Mapping[str, Encoder],
    tasks: Mapping[str, Task],
    split: str,
    training: bool = False,
) -> None:
    """Raise a `ValueError` that says what is wrong with a split before anything is computed.

    Checks: rows at all, the columns, a readable kind of value, labels among the classes and, for
    training, at least one value in each input column.  Of a stream only the first rows are read.
    """
    whole, rows = rows, as_stream(rows).head() if is_stream(rows) else rows
    if len(rows) == 0:
        raise ValueError(f"the {split} data has no rows")
    found = columns_of(rows)
    for name in (*encoders, *tasks):
        if name not in found:
            raise ValueError(f"the {split} data has no column {name!r}.{nearest(name, found)}")
    for name, encoder in encoders.items():
        # A Stored value was read before and needs no look.
        first = next((v for v in column(rows, name) if v is not None), None)
        if first is None and training and whole is rows:
            raise ValueError(
                f"column {name!r} is missing in all {len(rows)} {split} rows: "
                f"drop {name!r} from the encoders"
            )
        if first is not None and not isinstance(first, Stored):
            check_kind(name, encoder, first, split)
    for name, task in tasks.items():
        try:
            if training:
                fit_task(task, whole, name)
            else:
                task.encode(list(column(rows, name)))
        except ValueError as error:
            raise ValueError(f"{split} column {name!r}: {error}") from error


def fit_task(task: Task, rows: Rows, name: str) -> None:
    """Let a task learn what it needs from its training column."""
    if is_stream(rows):
        as_stream(rows).fit(task, name)
    else:
        task.fit(list(column(rows, name)))


def check_kind(name: str, encoder: Encoder, value: Any, split: str) -> None:
    """Raise `ValueError` if a column's type is none that its encoder reads."""
    try:
        encoder.collate([value])
    except TypeError as error:
        raise ValueError(f"{split} column {name!r} has the wrong type: {error}") from error
    except Exception:
        pass


class NumberedRows:
    """Rows with their numbers, only the columns in use, stored features in place of raw values."""

    def __init__(
        self,
        rows: Rows,
        columns: list[str],
        stored: Mapping[str, FeatureStore | StoredViews] | None = None,
    ) -> None:
        self.stored = dict(stored or {})
        kept = [name for name in columns if name not in self.stored]
        select = getattr(rows, "select_columns", None)
        self.rows: Rows = select(kept) if select is not None and kept else rows
        self.kept = kept

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Row]:
        number = row_number(index)
        found = self.rows[number] if self.kept else {}
        row = {name: found.get(name) for name in self.kept}
        for name, store in self.stored.items():
            tokens = store[number]
            row[name] = None if tokens is None else Stored(tokens, store.depth)
        return index, row


def fingerprint_column(rows: Rows, name: str) -> str:
    """Digest of all values of a column, whatever file they come from.

    Raises `ValueError` for values that nothing tells apart, such as open files.
    """
    try:
        return digest_of_values(column(rows, name))
    except ValueError as error:
        raise ValueError(f"column {name!r}: {error}") from error
