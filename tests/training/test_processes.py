"""One process and several give the same losses and the same evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmtransfer.data.products import product_rows
from mmtransfer.training.run import build_model

SCRIPT = Path(__file__).with_name("process_script.py")
TASKS = {"product": "classification", "category": "classification"}
FSDP = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "NO_WRAP"]
FSDP += ["--fsdp_cpu_ram_efficient_loading", "false"]
TINY = {"image": "tiny-vit", "text": "tiny-bert", "audio": "tiny-wav2vec2"}


def launch(processes: int, saved: Path, output: Path, fsdp: bool = False) -> dict:
    launched(processes, SCRIPT, saved, output, fsdp)
    return json.loads(output.read_text())


def launched(processes: int, script: Path, given: Path, output: Path, fsdp: bool = False) -> None:
    """The plain `--cpu` form starts one process silently; this one starts as many as asked."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher += FSDP if fsdp else ["--multi_gpu"]
    launcher += ["--num_processes", str(processes)]
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "MMTRANSFER_CACHE": str(output.parent / f"cache-{processes}-{fsdp}"),
    }
    start = launcher if processes > 1 else [sys.executable]
    done = subprocess.run(
        [*start, str(script), str(given), str(output)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    train = product_rows("target/train", rows=37)
    build_model(TINY, TASKS, train, "gated", 16, seed=3).save_pretrained(root / "model")
    save_file({"weight": torch.eye(5, 64), "bias": torch.zeros(5)}, root / "head.safetensors")
    found = {n: launch(n, root / "model", root / f"{n}.json") for n in (1, 2, 3)}
    return found | {"fsdp": launch(2, root / "model", root / "fsdp.json", fsdp=True)}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, "fsdp"])
def test_evaluation_of_the_same_weights_is_exactly_the_same(results, processes):
    assert results[processes]["processes"] == (2 if processes == "fsdp" else processes)
    assert results[processes]["sharded"] == (processes == "fsdp")
    assert results[processes]["evaluation"] == results[1]["evaluation"]
    assert results[processes]["logits"] == results[1]["logits"]
    assert results[processes]["targets"] == results[1]["targets"]
    assert results[1]["evaluation"]["product"]["rows"] == 23
    assert results[processes]["streamed"] == results[1]["streamed"] == results[1]["evaluation"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, "fsdp"])
@pytest.mark.parametrize("strategy", ["linear_probe", "top_stages"])
def test_stored_features_are_exactly_the_same(results, processes, strategy):
    stored = results[1][strategy]["stored"]
    assert set(stored) == {"image", "text", "audio"}
    assert len(stored["text"]) == 37
    assert results[processes][strategy]["stored"] == stored


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, "fsdp"])
def test_fusions_of_all_kinds_train_alike(results, processes):
    assert len(results[1]["fusions"]) == 4
    for name, losses in results[1]["fusions"].items():
        assert results[processes]["fusions"][name] == pytest.approx(losses, abs=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, "fsdp"])
@pytest.mark.parametrize(
    "strategy", ["linear_probe", "lp_ft", "top_stages", "balance", "alignment", "near_start"]
)
def test_the_loss_curve_is_the_same(results, processes, strategy):
    """Uneven last batches, unlabelled rows, processes without sound: nothing may shift the loss.

    Nor what methods of balance measure, the noise that they draw, and what others keep near to.
    """
    found = results[processes][strategy]["losses"]
    assert found == pytest.approx(results[1][strategy]["losses"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize(("strategy", "steps"), [("adapters", 8), ("tasks", 4)])
def test_adapters_and_weights_of_tasks_train_alike(results, processes, strategy, steps):
    found = results[processes][strategy]["losses"]
    assert len(found) == steps
    assert found == pytest.approx(results[1][strategy]["losses"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3, "fsdp"])
def test_processes_stop_early_together_and_draw_for_themselves(results, processes):
    count = 2 if processes == "fsdp" else processes
    assert results[processes]["epochs"] == [3] * count
    assert len(set(results[processes]["drawn"])) == count


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_steps_of_a_stream_of_one_shard_are_the_same(results, processes):
    found = results[processes]["stream_losses"]
    assert len(found) == 6
    assert found == pytest.approx(results[1]["stream_losses"], abs=1e-4)
