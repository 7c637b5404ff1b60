"""Whatever is registered resumes exactly and gives the same losses on one process and on two."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from ..methods.test_alignment import Interrupt
from ..training.test_processes import launched
from .every_strategy import PLANS, fit, plan, prepare

SCRIPT = Path(__file__).with_name("every_strategy.py")
#: they compare or mix the rows that are on a process together
OF_A_BATCH = ("mmd", "coral", "bss", "rkd", "mixup", "cutmix")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("every")
    prepare(found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_a_run_that_broke_off_ends_as_if_it_had_not(name: str, folder: Path, tmp_path: Path):
    interrupt = Interrupt(4)
    used = plan(name, folder, interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(used, tmp_path / "broken")
    resumed = fit(plan(name, folder, Interrupt(0)), tmp_path / "broken", resume=True)
    interrupt.at = 0
    whole = fit(used, tmp_path / "whole")  # what its methods know of the other run must not show
    assert resumed.losses == whole.losses
    assert len(whole.losses) >= 6
    expected = whole.model.state_dict()
    for key, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[key]), key
    for trainer in (whole, resumed):
        trainer.close()


@pytest.fixture(scope="module")
def losses(folder: Path) -> dict[int, dict[str, list[float]]]:
    found = {}
    for processes in (1, 2):
        output = folder / f"{processes}.json"
        launched(processes, SCRIPT, folder, output)
        found[processes] = json.loads(output.read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_two_processes_give_the_losses_of_one(name: str, losses: dict):
    one, two = (losses[processes][name] for processes in (1, 2))
    assert len(one) == len(two) >= 6
    if name.endswith(OF_A_BATCH):
        assert all(map(math.isfinite, two))
    else:
        assert two == pytest.approx(one, abs=1e-4)
