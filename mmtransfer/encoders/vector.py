"""Tables: numbers and categories, each possibly missing, to one vector per row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmtransfer.encoders.base import Encoder
from mmtransfer.encoders.numbers import check_count, check_share, check_widths
from mmtransfer.features import Features
from mmtransfer.registry import nearest, register_encoder

MISSING = 0  # code of a missing or unknown category
LARGEST = 1e9  # deviations from the mean; of more the features would not be finite


@register_encoder("vector")
class VectorEncoder(Encoder):
    """Numbers and categories of a table, missing values included, through dense layers.

    A value is a mapping of columns, `{"age": 31, "town": "Ulm", "income": None}`, or a list of
    numbers, whose columns are called "0", "1" ...  `None` and NaN are missing.

    numbers: `{column: [mean, deviation]}` for standardisation, or the names of the columns
    categories: `{column: [its categories]}`, or the names of the columns
    width: D of the features
    hidden: widths of the layers before the last one
    dropout: after each of them
    max_categories: the most frequent so many of a column are kept

    What is not given, columns included, is learned by `fit` from the training column, which
    `build_model` calls.  A missing number counts as the mean and sets an indicator; a category
    that is missing, or that training did not have, has an embedding of its own.  A column without
    any value is left out.
    Raises `ValueError` for a column with both numbers and text, with infinite numbers or with
    other values (dates, lists), `TypeError` for what is no row.
    """

    def __init__(
        self,
        numbers: Mapping[str, Sequence[float]] | Sequence[str] | None = None,
        categories: Mapping[str, Sequence[Any]] | Sequence[str] | None = None,
        width: int = 64,
        hidden: Sequence[int] = (128,),
        dropout: float = 0.0,
        max_categories: int = 1000,
    ) -> None:
        super().__init__()
        check_count("width", width)
        check_widths("hidden", hidden, least=0)
        check_share("dropout", dropout)
        check_count("max_categories", max_categories)
        self.numbers, self.categories = numbers, categories
        self.width, self.hidden, self.dropout = width, list(hidden), dropout
        self.max_categories = max_categories
        self.collate = TableCollate(None, None)
        self.embeddings = nn.ModuleList()
        self.layers = nn.ModuleList()
        known = [isinstance(given, Mapping) for given in (numbers, categories) if given is not None]
        if known and all(known):
            self._build(numbers or {}, categories or {})  # type: ignore[arg-type]

    def fit(self, values: Iterable[Any]) -> None:
        if len(self.layers):
            return
        rows = [as_row(value) for value in values if value is not None]
        if not rows:
            raise ValueError("the table column has no value to learn its columns from")
        numbers, categories = self.numbers, self.categories
        open_ended = numbers is None and categories is None
        found = list(dict.fromkeys(name for row in rows for name in row))
        for name in [*(numbers or ()), *(categories or ())]:
            if name not in found:
                raise ValueError(f"no row has a column {name!r}.{nearest(name, found)}")
        names = found if open_ended else [*(numbers or ()), *(categories or ())]
        statistics: dict[str, Sequence[float]] = {}
        vocabularies: dict[str, Sequence[Any]] = {}
        for name in names:
            present = [v for row in rows if not missing(v := row.get(name))]
            if isinstance(numbers, Mapping) and name in numbers:
                statistics[name] = numbers[name]
            elif isinstance(categories, Mapping) and name in categories:
                vocabularies[name] = categories[name]
            elif name in (categories or ()):
                vocabularies[name] = frequent(name, present, self.max_categories)
            elif not present and name not in (numbers or ()):
                continue  # neither numbers nor categories
            elif name in (numbers or ()) or is_numeric(name, present):
                statistics[name] = mean_and_deviation(name, present)
            else:
                vocabularies[name] = frequent(name, present, self.max_categories)
        self._build(statistics, vocabularies)

    def _build(
        self, numbers: Mapping[str, Sequence[float]], categories: Mapping[str, Sequence[Any]]
    ) -> None:
        self.numbers = {name: as_statistics(name, pair) for name, pair in numbers.items()}
        self.categories = {
            name: [as_category(name, v) for v in valid] for name, valid in categories.items()
        }
        if not self.numbers and not self.categories:
            raise ValueError("the table has no columns")
        self.collate = TableCollate(self.numbers, self.categories)
        sizes = [len(valid) + 1 for valid in self.categories.values()]
        # The usual rule of thumb for categories (fastai).
        dims = [min(50, math.ceil(1.6 * size**0.56)) for size in sizes]
        for size, dim in zip(sizes, dims, strict=True):
            self.embeddings.append(nn.Embedding(size, dim))
        width = 2 * len(self.numbers) + sum(dims)
        for hidden in self.hidden:
            self.layers.append(
                nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(self.dropout))
            )
            width = hidden
        self.layers.append(nn.Linear(width, self.width))

    @property
    def stages(self) -> list[nn.Module]:
        if not len(self.layers):
            return []
        first, *later = self.layers
        return [nn.ModuleList([*self.embeddings, first]), *later]

    @property
    def cuts(self) -> Sequence[int]:
        return range(1, len(self.layers))

    def forward(self, numbers: Tensor, missing: Tensor, codes: Tensor) -> Features:
        """numbers, missing (B, N), codes (B, C) -> tokens (B, 1, width)."""
        return Features.of(self._run(numbers, missing, codes, len(self.layers)))

    def below(self, depth: int, **inputs: Tensor) -> Features:
        return Features.of(self._run(**inputs, depth=depth))

    def above(self, depth: int, activations: Features) -> Features:
        x = activations.tokens[:, 0]
        for layer in list(self.layers)[depth:]:
            x = layer(x)
        return Features.of(x)

    def _run(self, numbers: Tensor, missing: Tensor, codes: Tensor, depth: int) -> Tensor:
        embedded = [table(codes[:, c]) for c, table in enumerate(self.embeddings)]
        x = torch.cat([numbers, missing, *embedded], 1)
        for layer in list(self.layers)[:depth]:
            x = layer(x)
        return x


class TableCollate:
    """Values to standardised `numbers (B, N)`, `missing (B, N)` indicators and `codes (B, C)`."""

    def __init__(
        self,
        numbers: Mapping[str, Sequence[float]] | None,
        categories: Mapping[str, Sequence[Any]] | None,
    ) -> None:
        self.numbers = numbers
        self.codes = {
            name: {value: code for code, value in enumerate(valid, start=1)}
            for name, valid in (categories or {}).items()
        }

    def __call__(self, values: list[Any]) -> dict[str, Tensor]:
        if self.numbers is None:
            raise ValueError(
                "the columns of the table are not known yet: call fit(values), or give numbers "
                "and categories as mappings"
            )
        rows = [as_row(value) for value in values]
        known = [*self.numbers, *self.codes]
        for row in rows:
            if not any(name in row for name in known):
                found = [str(name) for name in row]
                raise ValueError(f"a row has none of the columns {known[:20]}, found {found[:20]}")
        numbers = [[self._number(n, row.get(n)) for n in self.numbers] for row in rows]
        array = np.array(numbers, dtype=np.float64).reshape(len(rows), len(self.numbers))
        gone = np.isnan(array)
        codes = [[self._code(n, row.get(n)) for n in self.codes] for row in rows]
        return {
            "numbers": torch.from_numpy(np.where(gone, 0, array).clip(-LARGEST, LARGEST)).float(),
            "missing": torch.from_numpy(gone).float(),
            "codes": torch.tensor(codes, dtype=torch.int64).reshape(len(rows), len(self.codes)),
        }

    def _number(self, name: str, value: Any) -> float:
        if missing(value):
            return math.nan
        mean, deviation = self.numbers[name]  # type: ignore[index]
        return (as_number(name, value) - mean) / (deviation or 1.0)

    def _code(self, name: str, value: Any) -> int:
        return (
            MISSING if missing(value) else self.codes[name].get(as_category(name, value), MISSING)
        )


def as_row(value: Any) -> Mapping[str, Any]:
    """A mapping of columns; a list of numbers has the columns "0", "1" ..."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Tensor | np.ndarray):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return {str(number): item for number, item in enumerate(value)}
    raise TypeError(
        f"expected a mapping of columns or a list of numbers, found {type(value).__name__}"
    )


def missing(value: Any) -> bool:
    if value is None or type(value).__name__ == "NAType":  # of pandas
        return True
    return not getattr(value, "ndim", 0) and bool(value != value)  # NaN of any float type


def as_number(name: str, value: Any) -> float:
    try:
        number = math.inf if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"column {name!r} holds numbers, found {value!r}")
    return number


def as_category(name: str, value: Any) -> Any:
    """What a saved model can hold: text, a number or a truth value."""
    if getattr(value, "ndim", None) == 0:  # scalars of NumPy and torch
        value = value.item()
    if not isinstance(value, str | int | float):
        raise ValueError(
            f"column {name!r}: a category is a text or a number, found {value!r}; "
            "give others as texts"
        )
    return value


def as_statistics(name: str, pair: Any) -> list[float]:
    valid = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
    found = [as_number(name, value) for value in pair] if valid else []
    if not valid or found[1] < 0:
        raise ValueError(f"numbers: {name!r} needs [mean, deviation], found {pair!r}")
    return found


def is_numeric(name: str, values: Sequence[Any]) -> bool:
    """Whether a column holds numbers.  Raises `ValueError` where only some of its values are."""
    texts = [value for value in values if isinstance(value, str)]
    if texts and len(texts) < len(values):
        other = next(value for value in values if not isinstance(value, str))
        raise ValueError(
            f"column {name!r} holds both text ({texts[0]!r}) and numbers ({other!r}): "
            "name it in categories"
        )
    return not texts


def mean_and_deviation(name: str, values: Sequence[Any]) -> list[float]:
    if not len(values):
        return [0.0, 1.0]
    array = np.array([as_number(name, value) for value in values], dtype=np.float64)
    with np.errstate(over="ignore"):
        mean, deviation = float(array.mean()), float(array.std())
    if not math.isfinite(deviation):
        raise ValueError(f"column {name!r} is too large to standardise, up to {abs(array).max():g}")
    # Of a constant, rounding may leave some 1e-17.
    return [mean, 1.0 if deviation <= 1e-8 * abs(mean) else deviation]


def frequent(name: str, values: Sequence[Any], count: int) -> list[Any]:
    """The most frequent categories, in an order that does not depend on that of the rows."""
    counts = Counter(as_category(name, value) for value in values)
    return sorted(counts, key=lambda value: (-counts[value], str(value)))[:count]
