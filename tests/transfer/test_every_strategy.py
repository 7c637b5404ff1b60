"""Whatever is registered resumes exactly, on one process and on two, which give the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ..training.test_processes import launched
from .every_strategy import PLANS, BrokenOff, fit, plan, prepare, result

SCRIPT = Path(__file__).with_name("every_strategy.py")
#: they compare or mix the rows that are on a process together
OF_A_BATCH = ("mmd", "coral", "bss", "rkd", "mixup", "cutmix")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("every")
    prepare(found)
    return found


def check_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["losses"] == expected["losses"]
    assert found["weights"].keys() == expected["weights"].keys()
    for key, value in found["weights"].items():
        assert torch.equal(value, expected["weights"][key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_a_run_that_broke_off_ends_as_if_it_had_not(name: str, folder: Path, tmp_path: Path):
    used = plan(name, folder)
    with pytest.raises(KeyboardInterrupt):
        fit(used, tmp_path / "broken", kind=BrokenOff)
    resumed = result(fit(plan(name, folder), tmp_path / "broken", resume=True))
    whole = result(fit(used, tmp_path / "whole"))  # what was learned before must not show
    assert len(whole["losses"]) >= 6
    check_same(resumed, whole)


@pytest.fixture(scope="module")
def launches(folder: Path) -> dict[int, dict[str, Any]]:
    found = {}
    for processes in (1, 2):
        output = folder / f"{processes}.pt"
        launched(processes, SCRIPT, folder, output)
        found[processes] = torch.load(output, weights_only=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_two_processes_give_what_one_gives(name: str, launches: dict[int, dict[str, Any]]):
    one, two = (launches[processes]["whole"][name] for processes in (1, 2))
    assert len(one["losses"]) == len(two["losses"]) >= 6
    if name.endswith(OF_A_BATCH):
        assert all(map(math.isfinite, two["losses"]))
        assert all(value.isfinite().all() for value in two["weights"].values())
    else:
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-4)
        for key, value in two["weights"].items():
            # The statistics of adabn are means over batches, of which each process has its own.
            close = 0.02 if name.endswith("adabn") and "running" in key else 1e-4
            torch.testing.assert_close(value, one["weights"][key], atol=close, rtol=0)


@pytest.mark.slow
def test_two_processes_that_broke_off_end_as_if_they_had_not(launches: dict[int, dict[str, Any]]):
    resumed = launches[2]["resumed"]
    assert {"full and adabn", "full and ema", "full and dann", "wise_ft"} <= set(resumed)
    for name, found in resumed.items():
        check_same(found, launches[2]["whole"][name])
