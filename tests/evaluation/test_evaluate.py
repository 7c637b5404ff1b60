"""The whole evaluation: its numbers are those of its parts, its files are there."""

from __future__ import annotations

import importlib
import json
import math
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mmtransfer.cli import main
from mmtransfer.encoders.base import build_encoder
from mmtransfer.evaluation.calibration import calibration_error
from mmtransfer.evaluation.command import default_output, print_summary, summary
from mmtransfer.evaluation.encoded import decide, encode_rows
from mmtransfer.evaluation.evaluate import Options, evaluate
from mmtransfer.fusion.base import build_fusion
from mmtransfer.model import TransferModel
from mmtransfer.report.collect import read_run
from mmtransfer.tasks.classification import Classification
from mmtransfer.temperature import Temperature
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import run
from mmtransfer.training.surroundings import versions
from mmtransfer.transfer.base import Phase, Strategy

MODALITIES = ("image", "sound", "text")


QUICK = Options(resamples=100, mapped=40)


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for part in value.values() for n in numbers_in(part)]
    if isinstance(value, list | tuple):
        return [n for part in value for n in numbers_in(part)]
    return [value] if isinstance(value, int | float) else []


@pytest.fixture(scope="module")
def found(trained, tmp_path_factory, rows_of) -> tuple[dict[str, Any], Path]:
    rows = rows_of(150, 3)
    rows[4]["label"] = None
    strange = [{n: [20.0, -20.0, 20.0, -20.0] for n in MODALITIES} for _ in range(9)]
    run = {"history": [{"train_loss": 1.0, "phase": 1}, {"train_loss": 0.5, "phase": 1}]}
    output = tmp_path_factory.mktemp("evaluation") / "out"
    results = evaluate(
        trained,
        rows,
        calibrate_on=rows_of(200, 4),
        outliers=strange,
        run=run,
        output=output,
        options=QUICK,
    )
    return results, output


def test_the_numbers_are_those_of_predictions(found, trained, rows_of, monkeypatch) -> None:
    results, _ = found
    rows = rows_of(150, 3)
    monkeypatch.setattr(trained, "temperature", Temperature(results["temperature"]))
    answers = trained.predict(rows)
    right = [a["label"]["label"] == r["label"] for a, r in zip(answers, rows, strict=True)]
    right.pop(4)
    task = results["tasks"]["label"]
    assert (results["rows"], task["labelled"]) == (150, 149)
    assert task["metrics"]["accuracy"] == pytest.approx(sum(right) / 149)
    assert task["intervals"]["accuracy"]["value"] == pytest.approx(sum(right) / 149)
    assert results["robustness"]["subsets"]["image + sound + text"]["label"] == pytest.approx(
        sum(right) / 149
    )
    shares = task["contributions"]["accuracy"]
    total = sum(share["value"] for share in shares["of_modalities"].values())
    assert total == pytest.approx(shares["all"] - shares["none"], abs=1e-12)
    assert len(task["contributions"]["predictions"]["predicted"]) == 150
    assert abs(results["temperature"]["label"] - 1) > 0.05
    explained = task["contributions"]["predictions"]["all"]
    expected = [answer["label"]["probability"] for answer in answers]
    assert explained == pytest.approx(expected, abs=1e-5)
    for pair in task["confusion"]["pairs"]:
        for example in pair["examples"]:
            assert answers[example["row"]]["label"]["label"] == pair["predicted"]
            assert expected[example["row"]] == pytest.approx(example["probability"], abs=1e-5)
    for mistake in task["confusion"]["mistakes"]:
        assert rows[mistake["row"]]["label"] == mistake["truth"] != mistake["predicted"]
        answer = answers[mistake["row"]]["label"]
        assert answer["label"] == mistake["predicted"]
        assert answer["probability"] == pytest.approx(mistake["probability"], abs=1e-5)


def test_the_temperature_comes_from_the_other_rows(found, trained, rows_of) -> None:
    results, _ = found
    t = results["temperature"]["label"]
    examples, _ = encode_rows(trained, rows_of(150, 3))
    known = torch.arange(150) != 4
    logits = decide(trained, examples).logits["label"][known] / t
    stages = results["tasks"]["label"]["calibration"]
    error = calibration_error(logits, examples.targets["label"][known])
    assert stages["after"]["ece"] == pytest.approx(error)
    assert stages["after"]["loss"] != stages["before"]["loss"]


def test_outliers_are_told_from_rows(found) -> None:
    results, _ = found
    scores = results["tasks"]["label"]["outliers"]
    assert scores.keys() == {"max_softmax", "energy", "mahalanobis"}
    assert scores["mahalanobis"]["auroc"] > 0.99
    assert scores["mahalanobis"]["fpr95"] == 0


def test_everything_is_written_and_every_number_is_one(found) -> None:
    results, output = found
    read = json.loads((output / "evaluation.json").read_text())
    assert read == json.loads(json.dumps(results))
    numbers = numbers_in(read)
    assert len(numbers) > 500
    assert all(math.isfinite(n) for n in numbers)
    assert len(results["pictures"]) == 4 + 2 + 2 + 1
    for name in results["pictures"]:
        with Image.open(output / name) as picture:
            assert min(picture.size) > 200


def test_rows_without_labels_or_a_modality_are_judged_as_far_as_they_go(trained, rows_of) -> None:
    rows = [{**row, "label": None, "text": None} for row in rows_of(6, 3)]
    results = evaluate(trained, rows, options=QUICK)
    assert results["modalities"]["text"] == 0
    assert results["tasks"]["label"] == {
        "labelled": 0,
        "score": "accuracy",
        "metrics": {"rows": 0},
    }
    assert set(results["robustness"]["noise"]) == {"image", "sound"}


def test_numbers_of_classes_that_the_data_names_are_these_classes(trained, rows_of) -> None:
    rows = rows_of(30, 3)
    names = datasets.ClassLabel(names=["c", "b", "a"])  # not the order of the model
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["label"] = ["cba".index(label) for label in columns["label"]]
    kinds = {n: datasets.List(datasets.Value("float32")) for n in MODALITIES} | {"label": names}
    data = datasets.Dataset.from_dict(columns, datasets.Features(kinds))
    found, expected = encode_rows(trained, data)[0], encode_rows(trained, rows)[0]
    assert torch.equal(found.targets["label"], expected.targets["label"])


@pytest.mark.filterwarnings("error:No artists:UserWarning")
def test_odd_names_and_rows_without_labels_are_drawn_and_printed(tmp_path, rows_of, capsys) -> None:
    torch.manual_seed(0)
    encoders = {name: build_encoder("mlp", shape=[4], widths=[8]) for name in MODALITIES}
    joined = build_fusion("concat", dict.fromkeys(MODALITIES, 8), 8)
    odd = ["$b_$", "[/red]", "c"]  # as formulas of matplotlib and markup of rich both are errors
    names = ("a$b_$", "größe", "grüße", "gr_ße", "[/]")
    model = TransferModel(encoders, joined, {n: Classification(odd) for n in names})
    rows = [{**row, **dict.fromkeys(names, odd[0])} for row in rows_of(9, 3)]
    results = evaluate(model, rows, output=tmp_path, options=QUICK)
    assert len(set(results["pictures"])) == len(results["pictures"]) == 4 * len(names) + 2 + 2
    assert {path.name for path in tmp_path.glob("*.png")} == set(results["pictures"])
    print_summary(results)
    assert "left out: [/red], c" in capsys.readouterr().out
    unlabelled = [dict(row, **dict.fromkeys(names)) for row in rows]
    drawn = evaluate(model, unlabelled, output=tmp_path, options=QUICK)["pictures"]
    assert drawn == ["pca.png", "tsne.png"]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Path]:
    """A model of texts and numbers in a run's directory, and data of two splits."""
    torch.manual_seed(0)
    widths = {"text": 16, "table": 8}
    table = build_encoder("vector", numbers={"x": [0, 1]}, width=8, hidden=[])
    encoders = {"text": build_encoder("tiny-bert?width=16&layers=1"), "table": table}
    tasks = {"label": Classification(["apple", "pear", "plum"])}
    model = TransferModel(encoders, build_fusion("gated", widths, 8), tasks)
    model.save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "metrics.json").write_text('{"history": [{"train_loss": 1.0}]}')
    data = tmp_path / "data"
    data.mkdir()
    labels = ["apple", "pear"] * 10
    for split in ("test", "val"):
        columns = {"text": labels, "table": [{"x": 1.0}] * 20, "label": labels}
        pq.write_table(pa.table(columns), data / f"{split}.parquet")
    return tmp_path / "run" / "model", data


def test_the_command_prints_writes_and_calibrates(saved, tmp_path, capsys) -> None:
    model, data = saved
    output = tmp_path / "out"
    given = ["evaluate", str(model), str(data), "--output", str(output), "--resamples", "50"]
    main([*given, "--json"])
    said = json.loads(capsys.readouterr().out)
    written = json.loads((output / "evaluation.json").read_text())
    assert said["tasks"]["label"]["metrics"] == written["tasks"]["label"]["metrics"]
    assert said["tasks"]["label"]["without_rows"] == ["plum"]
    assert written["learning"] == {"train_loss": [1.0]}
    about = written["about"]
    assert about.pop("versions") == versions()
    assert about == {
        "model": str(model),
        "data": str(data),
        "split": "test",
        "calibrate_on": "validation",
        "outliers": None,
        "seed": 0,
    }
    assert not (model / "temperature.json").exists()
    with pytest.raises(SystemExit):
        main(given)
    assert "already holds an evaluation" in capsys.readouterr().err
    main([*given, "--overwrite", "--save_temperature"])
    out = capsys.readouterr().out
    assert "label: 20 labelled of 20 rows" in out
    assert "left out: plum" in out
    t = TransferModel.from_pretrained(model).temperature.by_task
    assert t == pytest.approx(written["temperature"])


def test_an_evaluation_goes_where_the_report_of_its_run_looks(
    saved, tmp_path, monkeypatch, capsys
) -> None:
    model, data = saved
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    main(["evaluate", str(model), str(data), "--resamples", "20"])
    assert f"pictures are in {model.parent / 'evaluation'}" in capsys.readouterr().out
    assert read_run(model.parent).evaluation is not None
    assert list(elsewhere.iterdir()) == []
    monkeypatch.chdir(model)
    assert default_output(".") == model.parent / "evaluation"
    (model.parent / "metrics.json").rename(model.parent / "run.json")
    assert default_output(".") == model.parent / "evaluation"
    (model.parent / "run.json").unlink()
    assert default_output(str(model)) == default_output("some/hub-id") == Path("evaluation")


def test_a_temperature_stays_where_none_can_be_fitted(saved, tmp_path, capsys) -> None:
    model, data = saved
    Temperature({"label": 2.5}).save(model)
    rows = pq.read_table(data / "val.parquet")
    unlabelled = rows.set_column(2, "label", pa.nulls(len(rows), pa.string()))
    pq.write_table(unlabelled, data / "val.parquet")
    given = ["evaluate", str(model), str(data), "--output", str(tmp_path / "out"), "--json"]
    main([*given, "--save_temperature", "--resamples", "20"])
    task = json.loads(capsys.readouterr().out)["tasks"]["label"]
    assert task["temperature"] == 2.5
    assert task["ece"].keys() == {"before", "after"}
    assert TransferModel.from_pretrained(model).temperature.by_task == {"label": 2.5}


def test_wrong_splits_are_named(saved, tmp_path, capsys) -> None:
    model, data = saved
    given = ["evaluate", str(model), str(data), "--output", str(tmp_path / "out")]
    for more, told in (
        (["--split", "tst"], "no split 'tst'.*'test'"),
        (["--calibrate_on", "train", "--save_temperature"], "has no 'train'"),
        (["--calibrate_on", "test", "--save_temperature"], "'test', which is judged"),
    ):
        with pytest.raises(SystemExit):
            main([*given, *more])
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert re.search(told, err), err


def test_training_drops_a_temperature_that_was_fitted_to_other_weights(
    small_model, rows_of
) -> None:
    model = small_model()
    model.temperature = Temperature({"label": 2.0})
    data = {"train": rows_of(8, 0)}
    run(model, data, Strategy([Phase(1, 1e-3)]), TrainingOptions(progress=False))
    assert model.temperature == Temperature()


def test_a_drawing_that_fails_loses_no_numbers(trained, rows_of, tmp_path, monkeypatch) -> None:
    def broken(results: Any, folder: Path) -> list[str]:
        raise OSError("no space left")

    module = importlib.import_module("mmtransfer.evaluation.evaluate")
    monkeypatch.setattr(module, "draw", broken)
    with pytest.raises(OSError, match="no space"):
        evaluate(trained, rows_of(9, 3), output=tmp_path, options=QUICK)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["tasks"]["label"]["labelled"] == 9
    assert written["pictures"] == []


def test_what_is_not_finite_is_null_in_the_file(trained, rows_of, tmp_path) -> None:
    record = {"train_loss": math.nan, "validation": {"label": {"loss": math.inf}}}
    run = {"history": [record, record | {"train_loss": 1.0}]}
    results = evaluate(trained, rows_of(9, 3), run=run, output=tmp_path, options=QUICK)

    def refused(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = (tmp_path / "evaluation.json").read_text()
    curves = json.loads(text, parse_constant=refused)["learning"]
    assert curves == {"train_loss": [None, 1.0], "label/loss": [None, None]}
    results["tasks"]["label"]["metrics"]["accuracy"] = math.nan
    assert summary(results)["tasks"]["label"]["metrics"]["accuracy"] is None
