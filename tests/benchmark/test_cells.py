"""Cells are kept, found again, and fail alone; the comparison tunes on validation rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtransfer.benchmark.cells import Cell, run_cell, save_split
from mmtransfer.benchmark.ensemble import Recipe
from mmtransfer.benchmark.fusion import Plan, compare, members_of
from mmtransfer.benchmark.report import draw, removal, show, summarise
from mmtransfer.benchmark.running import run_cells
from mmtransfer.data.examples import Examples
from mmtransfer.evaluation.robustness import noisy, subsets, without
from mmtransfer.features import Features
from mmtransfer.tasks.classification import Classification

TASKS = {"digit": Classification([0, 1, 2]).config()}
RECIPE = Recipe(epochs=4, lr=1e-2, batch_size=16)


def examples(rows: int, seed: int) -> Examples:
    """Each modality says the class, with noise."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(3, (rows,), generator=generator)
    features = {}
    for name, width in (("image", 5), ("sound", 4)):
        tokens = torch.randn(rows, 2, width, generator=generator)
        tokens[..., :3] += 2 * torch.nn.functional.one_hot(target, 3)[:, None]
        mask = torch.ones(rows, 2, dtype=torch.bool)
        mask[:, 1] = torch.rand(rows, generator=generator) < 0.5
        mask[torch.rand(rows, generator=generator) < 0.1] = False
        features[name] = Features(tokens, mask)
    return Examples(features, {"digit": target})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    directory = tmp_path / "features"
    for seed, split in enumerate(("train", "validation", "test")):
        save_split(examples(64, seed), directory, split)
    return directory


def cell(folder: Path, **changes: Any) -> Cell:
    usual = Cell(
        "concat", {"name": "concat"}, 8, RECIPE, (0,), ("image", "sound"), TASKS, str(folder), "m"
    )
    return replace(usual, **changes)


def results_of(found: Iterable[tuple[Cell, list[dict[str, Any]]]]) -> dict[str, Any]:
    return {one.key: results for one, results in found}


def test_examples_are_saved_and_loaded_as_they_are(folder: Path) -> None:
    loaded, made = Examples.load(folder / "test.safetensors"), examples(64, 2)
    assert torch.equal(loaded.targets["digit"], made.targets["digit"])
    for name, features in made.features.items():
        assert torch.equal(loaded.features[name].tokens, features.tokens)
        assert torch.equal(loaded.features[name].mask, features.mask)


def test_pooling_and_statistics_are_those_of_the_features() -> None:
    rows = examples(64, 0)
    pooled = rows.pooled()
    for name, features in rows.features.items():
        assert torch.equal(pooled.features[name].tokens[:, 0], features.pooled())
        real = features.pooled()[features.present]
        mean, deviation = rows.statistics()[name]
        torch.testing.assert_close(mean, real.mean(0))
        torch.testing.assert_close(deviation, real.std(0, correction=0))


def test_a_cell_has_the_scores_of_each_subset_and_of_noise(folder: Path) -> None:
    found = run_cell(cell(folder))[0]
    assert list(found["subsets"]) == ["image + sound", "image", "sound"]
    assert found["subsets"]["image + sound"] == found["test"]
    assert found["noise"]["image"]["0.0"] == found["test"]
    assert found["test"]["digit"] > 0.6
    assert found["noise"]["image"]["2.0"]["digit"] < found["test"]["digit"]
    assert 0 <= found["test"]["digit ece"] <= 1
    assert "subsets" not in run_cell(cell(folder, tuning=True))[0]


def test_the_subset_of_a_model_of_one_modality_is_the_whole(folder: Path) -> None:
    found = run_cell(cell(folder, modalities=("image",)))[0]
    assert list(found["subsets"]) == ["image"]


def test_what_is_done_is_read_and_not_run_again(folder: Path, tmp_path: Path) -> None:
    wanted = [cell(folder, seeds=(seed,)) for seed in range(3)]
    first = results_of(run_cells(wanted, run_cell, tmp_path / "cells", 1))
    ran: list[Cell] = []
    (tmp_path / "cells" / f"{wanted[1].key}.json").unlink()

    def run(one: Cell) -> list[dict[str, Any]]:
        ran.append(one)
        return run_cell(one)

    again = results_of(run_cells(wanted, run, tmp_path / "cells", 1))
    assert ran == [wanted[1]]
    for one in wanted:
        assert again[one.key][0]["test"] == first[one.key][0]["test"]


@pytest.mark.parametrize(
    "change",
    [
        {"mark": "other"},
        {"width": 4},
        {"seeds": (1,)},
        {"spec": {"name": "concat", "dropout": 0.1}},
        {"recipe": replace(RECIPE, lr=1e-3)},
        {"modalities": ("image",)},
        {"tuning": True},
    ],
)
def test_another_cell_has_another_key(change: dict[str, Any], folder: Path) -> None:
    assert cell(folder, **change).key != cell(folder).key


def test_neither_label_nor_place_is_part_of_the_key(folder: Path) -> None:
    assert cell(folder, member="mine", features="/elsewhere").key == cell(folder).key


@pytest.mark.slow
def test_processes_give_what_one_gives_and_a_failing_cell_stops_no_other(
    folder: Path, tmp_path: Path
) -> None:
    wanted = [
        cell(folder),
        cell(folder, member="bad", spec={"name": "transformer", "heads": 3}),
        cell(folder, seeds=(1,)),
    ]
    failures: dict[str, str] = {}

    def tell(one: Cell, failure: str | None) -> None:
        if failure:
            failures[one.member] = failure

    alone = results_of(run_cells(wanted, run_cell, tmp_path / "one", 1, tell))
    assert list(failures) == ["bad"]
    assert "heads must divide" in failures.pop("bad")
    several = results_of(run_cells(wanted, run_cell, tmp_path / "two", 2, tell))
    assert list(failures) == ["bad"]
    assert set(alone) == set(several) == {wanted[0].key, wanted[2].key}
    for key, results in alone.items():
        assert several[key][0]["test"] == results[0]["test"]


def test_a_comparison_tunes_each_member_and_reports_the_failing_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = members_of(["concat", "late"]) | {"bad": {"name": "gated", "dropout": 2}}
    plan = Plan(
        members,
        TASKS,
        ("image", "sound"),
        folder,
        "m",
        width=8,
        rates=(1e-5, 1e-2),
        seeds=2,
        pooled=RECIPE,
    )
    results = compare(plan, tmp_path, jobs=1)
    assert list(results["failures"]) == ["bad"]
    labels = {"concat", "late (mean)", "late (weighted)", "late (product)", "late (stacking)"}
    assert set(results["members"]) == labels
    assert set(results["rates"].values()) == {1e-2}  # the other rate trains nothing
    assert [run["seed"] for run in results["members"]["concat"]] == [0, 1]
    assert set(results["trained without"]) == {results["best"], "concat"}
    assert set(results["trained without"]["concat"]) == {"image", "sound"}
    rows = summarise(results)
    assert [row["accuracy"] for row in rows] == sorted((r["accuracy"] for r in rows), reverse=True)
    assert next(row for row in rows if row["fusion"] == "concat")["p"] is None
    assert set(removal(results)["concat"]["image"]) == {"removed at test", "trained without"}
    show(results)
    assert "late (stacking)" in capsys.readouterr().out
    for path in draw(results, tmp_path):
        assert path.stat().st_size > 10_000
    json.dumps(results)


def test_subsets_are_all_that_are_not_empty() -> None:
    assert [len(list(subsets(list("abc"[:m])))) for m in (1, 2, 3)] == [1, 3, 7]


def test_what_is_left_out_is_absent_and_noise_is_of_the_level_that_is_said() -> None:
    rows = examples(64, 0)
    kept = without(rows, ("sound",))
    assert not kept.features["image"].present.any()
    assert torch.equal(kept.features["sound"].mask, rows.features["sound"].mask)
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0])
    disturbed = noisy(rows, "sound", 0.5, scale)
    change = (disturbed.features["sound"].tokens - rows.features["sound"].tokens).flatten(0, 1)
    torch.testing.assert_close(change.std(0), 0.5 * scale, rtol=0.2, atol=0)
    assert torch.equal(
        noisy(rows, "sound", 0.5, scale).features["sound"].tokens,
        disturbed.features["sound"].tokens,
    )


def test_options_follow_the_name_of_a_fusion():
    found = members_of(["concat", "bottleneck?bottlenecks=9"], dropout=0.2)
    assert found["bottleneck?bottlenecks=9"]["bottlenecks"] == 9
    assert found["concat"] == {"name": "concat", "dropout": 0.2}
    with pytest.raises(ValueError, match="bottleneks.*mean 'bottlenecks'"):
        members_of(["bottleneck?bottleneks=9"])
