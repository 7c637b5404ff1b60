"""Choosing: the sets that know most come first, and what is said of them is so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.utils import set_seed

from mmtransfer.encoders.base import build_encoder
from mmtransfer.selection.candidates import Pool, by_column, label_of, sets_of
from mmtransfer.selection.choose import Choice, choose
from mmtransfer.selection.joined import Standard, joined
from mmtransfer.selection.ranking import Candidate, recommend
from mmtransfer.selection.report import draw, show
from mmtransfer.selection.scores.probe import found_unseen, linear_probe
from mmtransfer.training.options import TrainingOptions

WIDE, NARROW = "mlp?shape=[3]&widths=[16]", "mlp?shape=[3]&widths=[1]"
TASKS = {"kind": "classification"}
QUIET = TrainingOptions(progress=False)


def rows(count: int, seed: int, shift: float = 0.0) -> list[dict[str, Any]]:
    """Four kinds: `a` tells two halves apart, `b` two others, `noise` nothing; some are missing."""
    generator = np.random.default_rng(seed)
    found = []
    for k in range(count):
        code = k % 4
        values = {
            "a": generator.normal(3 * (code // 2) + shift, 1, 3),
            "b": generator.normal(3 * (code % 2) + shift, 1, 3),
            "noise": generator.normal(0, 1, 3),
        }
        row: dict[str, Any] = {name: value.tolist() for name, value in values.items()}
        if k % 7 == 0:
            row["b"] = None
        found.append({**row, "kind": None if k % 11 == 0 else "wxyz"[code]})
    return found


@pytest.fixture(scope="module")
def data() -> dict[str, list[dict[str, Any]]]:
    return {"train": rows(160, 0), "validation": rows(40, 1), "test": rows(80, 2)}


@pytest.fixture(scope="module")
def choice(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Choice:
    encoders = {"a": WIDE, "b": WIDE, "noise": WIDE}
    training = TrainingOptions(progress=False, cache=str(tmp_path_factory.mktemp("cache")))
    return choose(
        data,
        encoders,
        TASKS,
        verify=100,
        model_options={"fusion": "concat", "width": 16},
        strategy_options={"epochs": 4, "lr": 3e-2},
        training=training,
    )


def test_all_sets_are_tried_and_the_telling_ones_come_first(choice: Choice) -> None:
    assert len(choice.candidates) == 7
    assert [c.score for c in choice.candidates] == sorted(
        (c.score for c in choice.candidates), reverse=True
    )
    assert {"a", "b"} <= set(choice.candidates[0].encoders)
    assert set(choice.chosen.encoders) in ({"a", "b"}, {"a", "b", "noise"})
    assert choice.candidates[-1].score < 0.45
    assert (choice.labels, choice.classes) == (145, 4)


def test_a_gain_is_what_an_encoder_adds(choice: Choice) -> None:
    found = {tuple(sorted(c.encoders)): c for c in choice.candidates}
    both = found["a", "b"]
    assert both.gain == pytest.approx(both.score - max(found["a",].score, found["b",].score))
    assert both.gain > 0.2
    assert abs(found["a", "noise"].gain or 0) < 0.1
    assert found["noise",].gain is None


def test_prediction_and_truth_agree_after_training(choice: Choice) -> None:
    assert all(c.trained is not None for c in choice.candidates)
    assert choice.correlation is not None
    assert choice.correlation["weighted"] > 0.6
    assert choice.correlation["trained"] == 7


@pytest.mark.parametrize("validation", [0, 20, 60])
def test_scores_are_those_of_the_features_that_a_model_would_get(
    data: dict[str, Any], validation: int
) -> None:
    splits = {"train": data["train"], "validation": rows(validation, 1)}
    if not validation:
        del splits["validation"]
    chosen = {"a": WIDE, "b": WIDE}
    found = choose(splits, chosen, TASKS, training=QUIET).candidates
    (found,) = (c for c in found if c.encoders == chosen)
    sides, labels = [], []
    for split in splits.values():
        kept = [row for row in split if row["kind"] is not None]
        blocks, present = {}, {}
        for name in chosen:
            set_seed(0)
            encoder = build_encoder(WIDE)
            mask = np.array([row[name] is not None for row in kept])
            values = encoder.collate([row[name] for row in kept if row[name] is not None])
            block = np.zeros((len(kept), 16))
            block[mask] = encoder(**values).tokens[:, 0].detach().numpy()
            blocks[name], present[name] = block, mask
        sides.append((blocks, present))
        labels.append(np.array(["wxyz".index(row["kind"]) for row in kept]))
    if validation < 50:
        expected = linear_probe(joined(*sides[0]), labels[0])
    else:
        pieces = []
        for blocks, present in sides:
            each = [
                Standard.of(sides[0][0][n], sides[0][1][n])(blocks[n], present[n]) for n in chosen
            ]
            pieces.append(np.concatenate(each, 1))
        expected = found_unseen(pieces[0], labels[0], pieces[1], labels[1]).mean()
    assert found.score == pytest.approx(expected)


def test_of_equally_good_sets_the_cheapest_is_recommended() -> None:
    told = np.arange(100) % 10 > 1
    candidates, known = [], {}
    for name, cost, correct in (
        ("dear", 9.0, told ^ np.isin(np.arange(100), [2, 10, 20])),
        ("cheap", 2.0, told),
        ("worse", 1.0, told & (np.arange(100) > 15)),
    ):
        candidate = Candidate({name: name}, name, float(correct.mean()), None, 1, cost, 0.0)
        candidates.append(candidate)
        known[id(candidate)] = correct
    assert recommend(candidates, known).label == "cheap"
    assert recommend(candidates, {}).label == "dear"


def test_table_json_and_picture(
    choice: Choice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(choice)
    told = capsys.readouterr().out
    assert "weighted tau" in told
    assert choice.advice.strategy in told
    assert choice.command in told
    for reason in choice.reasons:
        assert reason in told
    summary = json.loads(json.dumps(choice.summary()))
    assert len(summary["candidates"]) == 7
    draw(choice, tmp_path / "choice.png")
    assert (tmp_path / "choice.png").stat().st_size > 10_000


def test_sources_are_ordered_by_distance(data: dict[str, Any], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, shift in (("far", 30.0), ("near", 0.0)):
        (tmp_path / name).mkdir()
        table = pa.Table.from_pylist(rows(120, 5, shift))
        pq.write_table(table, tmp_path / name / "train.parquet")
    sources = [str(tmp_path / "far"), str(tmp_path / "near")]
    found = choose(data, {"a": WIDE, "b": WIDE}, TASKS, source=sources, training=QUIET)
    assert list(found.distances) == sources[::-1]
    near, far = found.distances.values()
    for column in ("a", "b"):
        for name, value in near[column].items():
            assert value < far[column][name], name
    assert far["a"]["proxy_a"] == 2
    assert any("nearest first" in reason for reason in found.reasons)


@pytest.mark.parametrize("there", [0, 3])
def test_a_source_without_values_is_told_before_anything_is_encoded(
    data: dict[str, Any], tmp_path: Path, there: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = rows(40, 5)
    for row in found[there:]:
        row["b"] = None
    values = pa.list_(pa.float64())
    schema = pa.schema([*((name, values) for name in ("a", "b", "noise")), ("kind", pa.string())])
    pq.write_table(pa.Table.from_pylist(found, schema), tmp_path / "train.parquet")
    monkeypatch.setattr(Pool, "encode", lambda *_: pytest.fail("encoded"))
    with pytest.raises(ValueError, match=f"{tmp_path} has 'b' in {there - bool(there)} rows"):
        choose(data, {"a": WIDE, "b": WIDE}, TASKS, source=str(tmp_path), training=QUIET)


def test_scores_can_be_chosen_and_the_count_of_sets_capped(data: dict[str, Any]) -> None:
    encoders = {"a": [WIDE, NARROW], "b": WIDE, "noise": WIDE}
    found = choose(data, encoders, TASKS, "logme", most_sets=5, most_rows=60, training=QUIET)
    assert len(found.candidates) == 5
    assert found.untried == 6
    assert found.score == "logme"
    assert found.chosen is found.candidates[0]
    assert found.correlation is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "logmee"}, "unknown score 'logmee'.*mean 'logme'"),
        ({"score": "leep"}, "'leep' is not of features"),
        ({"tasks": {"kid": "classification"}}, "no column 'kid'.*mean 'kind'"),
        ({"tasks": {}}, "no task"),
        ({"encoders": {"c": WIDE}}, "no column 'c'"),
        ({"encoders": {"a": "mpl"}}, "unknown encoder 'mpl'.*mean 'mlp'"),
        ({"encoders": {}}, "no encoder"),
        ({"encoders": ["tiny-vit"]}, "'tiny-vit' reads no column of a, b, noise.*a=tiny-vit"),
        ({"verify": -1}, "verify must not be negative"),
        ({"strategy_options": {"lrr": 1}}, "no option 'lrr'.*mean 'lr'"),
        ({"most_rows": 1}, "most_rows must be at least 2, found 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_encoded(
    data: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    given = {"encoders": {"a": WIDE}, "tasks": TASKS} | change
    with pytest.raises(ValueError, match=message):
        choose(data, training=QUIET, **given)


def test_verification_needs_rows_to_verify_on(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="verify needs test or validation rows; found train"):
        choose({"train": data["train"]}, {"a": WIDE}, TASKS, verify=1, training=QUIET)


def test_encoders_find_the_columns_that_they_read(picture: Any, clip: Any) -> None:
    shop = [{"photo": picture(0), "label": None, "sound": clip(), "kind": "x"}]
    shop.append({**shop[0], "label": "an apple"})
    given = ["tiny-vit?width=16", "tiny-bert?width=16", "label=tiny-bert?width=32"]
    found = by_column([*given, "spectrogram-cnn"], shop, ["kind"])
    assert found == {
        "photo": [given[0]],
        "label": [given[1], "tiny-bert?width=32"],
        "sound": ["spectrogram-cnn"],
    }


def test_a_column_of_labels_is_no_input_by_itself() -> None:
    shop = [{"text": "an apple", "product": "apple", "category": "fruit"}]
    with pytest.raises(
        ValueError, match=r"reads text and category: write text=tiny-bert\?width=16 or"
    ):
        by_column(["tiny-bert?width=16"], shop, ["product"])
    assert by_column(["tiny-bert"], shop, ["product", "category"]) == {"text": ["tiny-bert"]}
    assert by_column(["text=tiny-bert"], shop, ["product"]) == {"text": ["tiny-bert"]}
    with pytest.raises(ValueError, match="'product' is what is to be learned"):
        by_column(["product=tiny-bert"], shop, ["product"])
    with pytest.raises(ValueError, match="all columns are targets"):
        by_column(["tiny-bert"], shop, list(shop[0]))


def test_columns_of_any_name_take_encoders() -> None:
    odd = ("a:b", "a:b=c", "why?", "x/y")
    shop = [dict.fromkeys((*odd, "kind"), "an apple")]
    given = [f"{name}=tiny-bert?width=16" for name in odd]
    assert by_column(given, shop, ["kind"]) == {name: ["tiny-bert?width=16"] for name in odd}
    with pytest.raises(ValueError, match=r"unknown encoder 'a'.*mean 'a:b'.*JSON.*\{\"a:b\": "):
        by_column(["a:d=tiny-bert"], shop, ["kind"])


def test_a_column_with_a_colon_is_ranked_and_trained(data: dict[str, Any]) -> None:
    renamed = {
        split: [{"a:b": row["a"], "kind": row["kind"]} for row in of] for split, of in data.items()
    }
    brief = {"strategy_options": {"epochs": 1}, "training": QUIET}
    found = choose(renamed, [f"a:b={WIDE}"], TASKS, verify=1, **brief)
    assert found.chosen.encoders == {"a:b": WIDE}
    assert found.chosen.trained is not None


def test_sets_have_one_encoder_per_column_small_ones_first() -> None:
    found = sets_of({"image": ["p", "q"], "text": ["r"]})
    assert found == [
        {"image": "p"},
        {"image": "q"},
        {"text": "r"},
        {"image": "p", "text": "r"},
        {"image": "q", "text": "r"},
    ]
    assert sets_of({"image": ["p", "q"], "text": ["r"]}, 3) == found[:3]


def test_labels_name_columns_and_encoders() -> None:
    found = label_of({"image": "hf:some/where/net?size=3", "text": "tiny-bert"})
    assert found == "image: net + text: tiny-bert"
    assert label_of({"image": "hf:runs/first/model"}) == "image: first/model"


def test_the_same_encoder_of_two_columns_is_told_apart(choice: Choice) -> None:
    labels = {candidate.label for candidate in choice.candidates}
    assert {"a: mlp", "b: mlp", "noise: mlp", "a: mlp + b: mlp"} < labels
    assert len(labels) == 7


def test_a_single_class_is_refused(data: dict[str, Any]) -> None:
    same = {split: [{**row, "kind": "a"} for row in of] for split, of in data.items()}
    with pytest.raises(ValueError, match="one class in 'kind'"):
        choose(same, {"a": WIDE}, TASKS, training=QUIET)
