"""Cells and sums of benchmarks/transfer.py on few made-up rows; the benchmark is run by hand."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mmtransfer import build_encoder
from mmtransfer.methods.base import build_method

FILE = Path(__file__).parents[2] / "benchmarks" / "transfer.py"
PARTS = ("few_labels", "off_distribution", "shift", "digits", "adapters", "tasks")
CLASSES = 3


@pytest.fixture(scope="module")
def benchmark():
    """The script and, by name, its parts."""
    sys.path.insert(0, str(FILE.parent))
    spec = importlib.util.spec_from_file_location("benchmark_transfer", FILE)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = (*PARTS, "mnist", "members", "retail", "training", "report", "cells", "page")
    parts = {name: importlib.import_module(f"transferring.{name}") for name in names}
    yield SimpleNamespace(main=module, **parts)
    sys.path.remove(str(FILE.parent))


@pytest.fixture(scope="module")
def work(benchmark, tmp_path_factory):
    """Arrays as `prepare` writes them, of three products that every column tells apart."""
    folder = tmp_path_factory.mktemp("work")
    rng, size = np.random.default_rng(0), benchmark.retail.SIZE
    for split, count in (("train", 36), ("validation", 9), ("test", 12)):
        labels = np.arange(count) % CLASSES
        arrays = {
            "product": labels,
            "category": labels // 2,
            "label": np.array(list("ab "))[labels],
        }
        for name in ("photo", "shifted"):
            shades = 40 + 80 * labels[:, None, None, None] + (20 if name == "shifted" else 0)
            arrays[name] = (shades + rng.integers(0, 30, (count, size, size, 3))).astype(np.uint8)
        for name in ("photo_features", "shifted_features", "text", "audio"):
            vectors = rng.normal(3 * np.eye(CLASSES)[labels], 0.3)
            arrays[name] = vectors.astype(np.float32)
            arrays[f"{name}_adabn"] = arrays[name]
        arrays["text"][0] = np.nan
        for name, array in arrays.items():
            np.save(folder / f"{split}.{name}.npy", array)
    (folder / benchmark.retail.DONE).touch()
    return folder


@pytest.fixture
def small(benchmark, monkeypatch):
    """A tiny network in place of MobileNetV2."""

    def encoder():
        found = build_encoder(
            f"small-cnn?size={benchmark.retail.SIZE}&channels=3&widths=[4,8]&pool=mean"
        )
        found.pretrained = True
        return found

    monkeypatch.setattr(benchmark.few_labels, "photo_encoder", encoder)


def cell_of(part, member, seed=0, **changes):
    (found, *_) = [c for c in part.cells(range(seed, seed + 1), 12, 100) if c.member == member]
    return type(found)(
        found.part, found.setting, member, seed, {**found.spec, **changes}, found.judged
    )


@pytest.mark.parametrize("member", ["from scratch", "full", "linear_probe", "l2_sp", "bss"])
def test_photos_are_judged_in_distribution_and_off_it(benchmark, work, small, member):
    found = benchmark.few_labels.run(cell_of(benchmark.few_labels, member), work)
    assert found.keys() == {"accuracy", "shifted"}


def test_wise_ft_is_told_by_alpha(benchmark, work, small):
    found = benchmark.few_labels.run(cell_of(benchmark.few_labels, "wise_ft"), work)
    assert found["curve"].keys() == {str(alpha) for alpha in benchmark.few_labels.ALPHAS}
    assert found["accuracy"] == found["curve"]["0.5"]["accuracy"]


def test_other_columns_stay_frozen_vectors(benchmark, work, small):
    cell = cell_of(benchmark.few_labels, "full", inputs=benchmark.few_labels.ALL)
    assert benchmark.few_labels.run(cell, work).keys() == {"accuracy"}


@pytest.mark.parametrize("member", ["features, svm", "features, pca + logistic"])
def test_classical_heads_know_vectors_that_tell_all(benchmark, work, member):
    found = benchmark.few_labels.run(cell_of(benchmark.few_labels, member, components=3), work)
    assert found["accuracy"] == 1.0


@pytest.mark.parametrize("member", ["source only", "mmd", "importance_weights", "adabn"])
def test_labels_of_the_target_are_not_needed(benchmark, work, member):
    found = benchmark.shift.run(cell_of(benchmark.shift, member, epochs=40), work)
    assert found["accuracy"] == found["source"] == 1.0


@pytest.fixture
def few_digits(benchmark, monkeypatch):
    """Stripes in place of digits: ten kinds that any network tells apart."""
    rng, kinds = np.random.default_rng(0), np.arange(400) % 10
    pictures = rng.integers(0, 30, (400, 28, 28)).astype(np.uint8)
    for picture, kind in zip(pictures, kinds, strict=True):
        picture[2 * kind + 2 : 2 * kind + 6] += 200
    monkeypatch.setattr(benchmark.mnist, "JUDGED", 40)
    for part in (benchmark.mnist, benchmark.digits):
        monkeypatch.setattr(part, "digits", lambda: (pictures, kinds))
    for name, count in {"LEARNED": 100, "MANY": 100, "TAUGHT": 100, "FEW": 60}.items():
        monkeypatch.setattr(benchmark.digits, name, count)


@pytest.mark.parametrize(
    ("setting", "member"),
    [
        ("clear to hazy", "adabn"),
        ("some labelled, most not", "self_training"),
        ("0 to 4, then 5 to 9", "ewc"),
        ("0 to 4, then 5 to 9", "lwf"),
        ("a teacher", "plain"),
        ("a teacher", "distillation"),
        ("clear, then misty, six times", "greedy soup"),
        ("few right, many by another rule", "tradaboost"),
        ("many labels", "knn"),
    ],
)
def test_digits_that_are_easily_told_apart_are(benchmark, few_digits, tmp_path, setting, member):
    part = benchmark.digits
    (cell,) = [c for c in part.cells(range(1), 12) if (c.setting, c.member) == (setting, member)]
    found = part.run(cell, tmp_path)
    assert found["accuracy"] > 0.7
    assert found.keys() <= {"accuracy", "source"}


@pytest.mark.parametrize("member", ["category alone", "pcgrad", "cross_stitch"])
def test_tasks_are_judged_one_by_one(benchmark, work, member):
    found = benchmark.tasks.run(cell_of(benchmark.tasks, member, epochs=20), work)
    assert found.keys() == {"category"} if "alone" in member else {"product", "category"}
    assert found["category"] == 1.0


@pytest.mark.parametrize("tune", [False, True])
@pytest.mark.parametrize("name", PARTS)
def test_no_two_cells_share_a_file(benchmark, name, tune):
    cells = getattr(benchmark, name).cells(range(2), 12, tune=tune)
    assert len({cell.key for cell in cells}) == len(cells)


def test_merging_adapters_changes_nothing(benchmark, work, monkeypatch):
    texts = ["milk", "bread", "tea"]
    labels = {s: np.load(work / f"{s}.product.npy") for s in ("train", "test")}
    for split, of in labels.items():
        np.save(work / f"{split}.label.npy", np.array(texts)[of])
    tiny = build_encoder("tiny-bert?width=16&max_tokens=8")
    monkeypatch.setattr(benchmark.adapters, "pretrained", lambda: tiny)
    found = benchmark.adapters.run(cell_of(benchmark.adapters, "lora"), work)
    assert 0 < found["share"] < 1
    assert found["merged"] < 1e-5


def test_gains_are_between_members_of_one_seed(benchmark):
    accuracies = {"full": (0.5, 0.7, 0.6), "better": (0.6, 0.8, 0.71)}
    results = [
        (benchmark.cells.Cell("few_labels", "one", name, seed, {}), {"accuracy": value, "cpu": 1.0})
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    summary = benchmark.report.summarise(results, {"accuracy": "full"}, list(accuracies))["one"]
    told = summary["better"]["accuracy"]
    assert told["gain"] == pytest.approx(0.31 / 3)
    deviation = np.std([0.1, 0.1, 0.11], ddof=1)
    assert told["gain_interval"] == pytest.approx(4.3027 * deviation / math.sqrt(3), rel=1e-4)
    assert benchmark.report.better(summary, "accuracy") == ["better"]


def test_every_member_can_be_built_and_each_is_tuned_by_as_many_values(benchmark):
    grid, members = benchmark.members.GRID, benchmark.members.MEMBERS
    assert grid.keys() == members.keys()
    assert {len(values) for _, values in grid.values()} == {3}
    for name, spec in members.items():
        tried = [made for _, made in benchmark.members.variants(name, spec)]
        assert len({json.dumps(made) for made in tried}) == 3
        for made in (spec, *tried) if "strategy" in spec else ():
            made = {**made, "epochs": 6, "probe_epochs": 10}
            strategy = benchmark.training.strategy_of(
                benchmark.few_labels.scheduled(made), "image", ("image", "text")
            )
            epochs = sum(phase.epochs for phase in strategy.phases if phase.encoder_lr)
            expected = {"linear_probe": 0, "from scratch": 18, "full, twice the epochs": 12}
            assert epochs == expected.get(name, 6)
    for methods in benchmark.shift.MEMBERS.values():
        for method in methods:
            build_method(method)


def test_a_corrupted_photo_is_always_the_same_and_darker(benchmark):
    photo = np.full((64, 64, 3), 180, np.uint8)
    made = [benchmark.retail.corrupted(photo, np.random.default_rng(3)) for _ in range(2)]
    assert np.array_equal(*made)
    red, green, blue = made[0].reshape(-1, 3).mean(0)
    assert red > green > blue
    assert (red + green + blue) / 3 < 165


def test_photos_are_cropped_as_the_processor_does(benchmark):
    rng = np.random.default_rng(0)
    photo = np.kron(rng.integers(0, 255, (24, 32, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    found = benchmark.retail.crop(photo)
    size = benchmark.retail.SIZE
    assert found.shape == (size, size, 3)
    whole = benchmark.retail.Photos(size)([found])["pixel_values"]
    assert np.allclose(whole[0].permute(1, 2, 0).numpy(), found / 127.5 - 1, atol=1e-6)


def test_figures_of_the_page_are_those_of_the_results(benchmark):
    page = benchmark.page.PAGE.read_text()
    assert benchmark.page.fill(page, benchmark.main.RESULTS / "transfer") == page


def test_a_page_is_filled_with_what_was_measured(benchmark, tmp_path):
    page = "| a | <!--shift/one/mmd/accuracy-->?<!----> |\n<!--table shift/one-->\n<!--end-->\n"
    assert "not measured yet" in benchmark.page.fill(page, tmp_path)
    told = {"mean": 0.5, "interval": 0.01, "gain": 0.04, "gain_interval": 0.02, "seeds": 5}
    summary = {"one": {"mmd": {"accuracy": told, "cpu": {"mean": 3.0}}}}
    (tmp_path / "shift.json").write_text(json.dumps({"summary": summary}))
    filled = benchmark.page.fill(page, tmp_path)
    assert filled.count("50.0 ± 1.0") == filled.count("+4.0 ± 2.0") == 2
    assert benchmark.page.fill(filled, tmp_path) == filled
