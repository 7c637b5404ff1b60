"""Tables: standardised numbers, categories, and missing values that stay missing."""

import datetime
import math
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmtransfer.encoders.base import Encoder, build_encoder
from mmtransfer.encoders.vector import VectorEncoder
from mmtransfer.model import TransferModel
from mmtransfer.testing import check_encoder
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, run
from mmtransfer.transfer.base import build_strategy

ROWS: list[Any] = [
    {"age": 20, "income": 1000.0, "town": "Ulm"},
    {"age": 40, "income": None, "town": "Bonn"},
    None,
    {"age": math.nan, "income": 3000.0, "town": "Ulm"},
    {"age": 60, "income": 2000.0, "town": None},
]


def fitted(**options: Any) -> VectorEncoder:
    torch.manual_seed(0)
    encoder = VectorEncoder(**options)
    encoder.fit(ROWS)
    return encoder.eval()


def test_columns_statistics_and_categories_are_learned_from_the_rows() -> None:
    encoder = fitted()
    assert encoder.numbers == {
        "age": [40.0, pytest.approx(np.std([20, 40, 60]))],
        "income": [2000.0, pytest.approx(np.std([1000, 3000, 2000]))],
    }
    assert encoder.categories == {"town": ["Ulm", "Bonn"]}  # the frequent one first
    inputs = pickle.loads(pickle.dumps(encoder.collate))([r for r in ROWS if r])
    spread = np.std([20, 40, 60])
    np.testing.assert_allclose(inputs["numbers"][:, 0], [-20 / spread, 0, 0, 20 / spread], 1e-6)
    assert inputs["missing"].tolist() == [[0, 0], [0, 1], [1, 0], [0, 0]]
    assert inputs["codes"].tolist() == [[1], [2], [1], [0]]


def test_the_order_of_the_rows_does_not_matter() -> None:
    other = VectorEncoder()
    other.fit(ROWS[::-1])
    assert other.categories == fitted().categories


def test_the_contract_is_kept() -> None:
    encoder = fitted(hidden=[12, 10], width=6)
    assert list(encoder.cuts) == [1, 2]
    check_encoder(encoder, [r for r in ROWS if r])
    covered = [id(p) for stage in encoder.stages for p in stage.parameters()]
    assert sorted(covered) == sorted(map(id, encoder.parameters()))


def test_a_missing_number_differs_from_the_mean_and_a_key_left_out_is_missing() -> None:
    encoder = fitted()

    def features(row: dict[str, Any]) -> torch.Tensor:
        return encoder(**encoder.collate([row])).tokens

    mean = features({"age": 40, "income": 2000, "town": "Ulm"})
    gone = features({"age": None, "income": 2000, "town": "Ulm"})
    assert (mean - gone).abs().max() > 1e-3
    assert torch.equal(gone, features({"income": 2000, "town": "Ulm"}))
    assert torch.equal(gone, features({"age": float("nan"), "income": 2000.0, "town": "Ulm"}))
    # A category that training did not have counts as missing.
    unknown = features({"age": 40, "income": 2000, "town": "Paris"})
    assert torch.equal(unknown, features({"age": 40, "income": 2000}))
    assert (unknown - mean).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_lists_of_numbers_are_tables_too(kind: Any) -> None:
    encoder = VectorEncoder(width=4)
    encoder.fit([kind([1.0, 10.0]), kind([3.0, 10.0])])
    assert encoder.numbers == {"0": [2.0, 1.0], "1": [10.0, 1.0]}  # a constant is divided by 1
    assert encoder.collate([kind([5.0, 10.0])])["numbers"].tolist() == [[3.0, 0.0]]


def test_given_columns_need_no_rows_and_are_not_learned_again() -> None:
    encoder = build_encoder('vector?numbers={"age":[40,20]}&categories={"town":["Ulm","Bonn"]}')
    config = encoder.config()
    encoder.fit([{"age": 1, "town": "Paris"}])
    assert encoder.config() == config
    assert encoder.collate([{"age": 60, "town": "Bonn"}])["codes"].tolist() == [[2]]


def test_names_choose_columns_and_numbers_may_be_categories() -> None:
    encoder = VectorEncoder(numbers=["age"], categories=["zip"], max_categories=2)
    rows = [{"age": 1, "zip": z, "note": "x"} for z in (7, 7, 7, 8, 8, 9)]
    encoder.fit(rows)
    assert list(encoder.numbers) == ["age"]
    assert encoder.categories == {"zip": [7, 8]}
    assert encoder.collate([{"zip": np.int64(8)}, {"zip": 9}])["codes"].tolist() == [[2], [0]]


def test_a_saved_encoder_comes_back(tmp_path: Path) -> None:
    encoder = fitted()
    encoder.save(tmp_path)
    twin = Encoder.load(tmp_path)
    twin.load_state_dict(encoder.state_dict())
    assert twin.fingerprint() == encoder.fingerprint()
    other = fitted(numbers={"age": [0, 1], "income": [0, 1]}, categories={"town": ["Ulm", "Bonn"]})
    other.load_state_dict(encoder.state_dict())
    assert other.fingerprint() != encoder.fingerprint()  # standardised otherwise


@pytest.mark.parametrize("strategy", ["linear_probe", "full"])
def test_a_recipe_learns_the_columns_from_its_training_rows(strategy: str, tmp_path: Path) -> None:
    table = [
        {"size": k % 7, "colour": "red" if k % 2 else "blue", "weight": None if k % 3 else 5.0}
        for k in range(40)
    ]
    rows: list[dict[str, Any]] = [
        {"table": value, "kind": "a" if k % 2 else "b"} for k, value in enumerate(table)
    ]
    rows[5]["table"] = None
    model = build_model({"table": "vector?width=16"}, {"kind": "classification"}, rows, width=16)
    before = {n: p.clone() for n, p in model.encoders.named_parameters()}
    plan = build_strategy(strategy, epochs=8, lr=0.02)
    options = TrainingOptions(batch_size=8, workers=0)
    metrics = run(model, {"train": rows, "test": rows}, plan, options)
    assert metrics["test"]["kind"]["accuracy"] > 0.9
    moved = [n for n, p in model.encoders.named_parameters() if not torch.equal(p, before[n])]
    assert bool(moved) == (strategy == "full")
    model.save_pretrained(tmp_path)
    again = TransferModel.from_pretrained(tmp_path)
    assert again.predict(rows[:4]) == model.predict(rows[:4])


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="columns of the table are not known yet"):
        VectorEncoder().collate([{"age": 1}])
    with pytest.raises(ValueError, match="'age' holds both text .*'old'.* and numbers .*1.*"):
        VectorEncoder().fit([{"age": 1}, {"age": "old"}])
    with pytest.raises(ValueError, match="no column 'agee'.*mean 'age'|has a column 'agee'"):
        VectorEncoder(numbers=["agee"]).fit(ROWS)
    with pytest.raises(ValueError, match="none of the columns .*'age'.*found .*'years'"):
        fitted().collate([{"years": 3}])
    with pytest.raises(ValueError, match="'age' holds numbers, found 'old'"):
        fitted().collate([{"age": "old"}])
    with pytest.raises(TypeError, match="a mapping of columns or a list of numbers, found str"):
        fitted().collate(["text"])
    with pytest.raises(ValueError, match="no value to learn its columns from"):
        VectorEncoder().fit([None, None])
    with pytest.raises(ValueError, match="the data has no column 'tabel'.*mean 'table'"):
        build_model({"tabel": "vector"}, {"k": "classification"}, [{"table": [1.0], "k": "a"}])


def test_features_are_finite_whatever_the_number() -> None:
    encoder = fitted()
    rows = [{"age": 1e300}, {"age": -1e300}, {"age": np.float32(3e38), "income": 10**30}]
    assert torch.isfinite(encoder(**encoder.collate(rows)).tokens).all()


def test_a_constant_is_divided_by_one_and_small_units_are_not() -> None:
    encoder = VectorEncoder()
    encoder.fit([{"fixed": 0.1, "farad": 1e-12 * k} for k in (1, 2, 3)])
    assert encoder.collate([{"fixed": 0.2}])["numbers"][0, 0] == pytest.approx(0.1)
    assert encoder.collate([{"farad": 3e-12}])["numbers"][0, 1] == pytest.approx(1.5**0.5)


def test_a_column_without_values_is_left_out_unless_it_is_named() -> None:
    encoder = VectorEncoder()
    encoder.fit([{"a": 1, "b": None}, {"a": 2, "b": None}])
    assert list(encoder.numbers) == ["a"]
    assert encoder.collate([{"a": 1, "b": "text"}])["codes"].shape == (1, 0)
    named = VectorEncoder(numbers=["b"])
    named.fit([{"b": None}])
    assert named.numbers == {"b": [0.0, 1.0]}


@pytest.mark.parametrize(
    "value",
    [
        math.inf,
        datetime.date(2020, 1, 1),
        [1, 2],
        np.array([1, 2]),
        pytest.param(10**400, id="huge"),
    ],
)
def test_what_is_no_number_is_refused_with_its_column(value: Any) -> None:
    with pytest.raises(ValueError, match="column 'age' holds numbers, found"):
        VectorEncoder().fit([{"age": value}, {"age": value}])
    with pytest.raises(ValueError, match="column 'age' holds numbers, found"):
        fitted().collate([{"age": value}])


@pytest.mark.parametrize("value", [datetime.date(2020, 1, 1), Decimal("1.5"), [1], np.zeros(2)])
def test_what_cannot_be_saved_is_no_category(value: Any) -> None:
    for make in (
        lambda: VectorEncoder(categories=["day"]).fit([{"day": value}]),
        lambda: VectorEncoder(categories={"day": [value]}),
        lambda: fitted().collate([{"town": value}]),
    ):
        with pytest.raises(ValueError, match="column '(day|town)': a category is a text or"):
            make()


@pytest.mark.parametrize("pair", [3, [1], [0, -1], "ab", [0, math.nan]])
def test_bad_statistics_are_refused(pair: Any) -> None:
    with pytest.raises(ValueError, match=r"'age'.*found"):
        VectorEncoder(numbers={"age": pair}, categories={})


def test_missing_values_of_pandas_are_missing() -> None:
    pandas = pytest.importorskip("pandas")
    encoder = VectorEncoder()
    encoder.fit([{"age": 1}, {"age": pandas.NA}, {"age": pandas.NaT}, {"age": 3}])
    assert encoder.numbers == {"age": [2.0, 1.0]}
    assert encoder.collate([{"age": pandas.NA}])["missing"].tolist() == [[1.0]]


def test_numbers_that_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match="column 'age' is too large to standardise"):
        VectorEncoder().fit([{"age": 1e300}, {"age": -1e300}])
