"""Small data and models on which training is quick."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmtransfer.data.products import product_rows

TASKS = {"product": "classification", "category": "classification"}
TINY = {"image": "tiny-vit", "text": "tiny-bert"}


@pytest.fixture(scope="session")
def products():
    """Few rows of the embedded target set, some values missing, one label unknown."""
    rows = {
        "train": product_rows("target/train", rows=40),
        "validation": product_rows("target/validation", rows=19),
        "test": product_rows("target/test", rows=21),
    }
    classes = {r["product"] for r in rows["train"]}
    for split in ("validation", "test"):
        assert {r["product"] for r in rows[split]} <= classes
    rows["train"][3]["product"] = None
    rows["train"][5]["category"] = float("nan")
    return rows


@pytest.fixture(scope="session")
def launched(tmp_path_factory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs launched_script.py by a prefix of the command line: an interpreter or a launcher."""
    cache = tmp_path_factory.mktemp("launched-cache")
    script = Path(__file__).with_name("launched_script.py")

    def launch(
        *prefix: str,
        output: Path,
        given: tuple[str, ...] = (),
        stop_when: Callable[[], bool] | None = None,
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        """stop_when: SIGTERM to what was started, as soon as this is so"""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MMTRANSFER_CACHE": str(cache)}
        command = [*prefix, str(script), "--output", str(output), *given]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment | variables, **pipes) as started:
            while stop_when and started.poll() is None:
                if stop_when():
                    started.terminate()
                    break
                time.sleep(0.05)
            told = started.communicate(timeout=300)
            return subprocess.CompletedProcess(command, started.returncode, *told)

    return launch


@pytest.fixture(scope="session")
def cpu_run(launched, tmp_path_factory) -> Path:
    """The directory of a run of two processes, started with the CPU configuration."""
    output = tmp_path_factory.mktemp("cpu") / "out"
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--config_file")
    config = Path(__file__).parents[2] / "recipes" / "configs" / "accelerate" / "cpu.yaml"
    done = launched(*launcher, str(config), output=output, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    return output
