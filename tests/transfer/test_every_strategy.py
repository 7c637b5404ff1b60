"""Whatever is registered resumes exactly, on one process and on two, which give the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

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
