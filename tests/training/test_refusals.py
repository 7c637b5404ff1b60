"""What is refused is refused before anything is written: an earlier run stays as it was."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mmtransfer.training.run as run_module
from mmtransfer.methods.base import build_method
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, run
from mmtransfer.training.stop import Stopped
from mmtransfer.transfer.base import Phase, Strategy, build_strategy

TINY = {"image": "tiny-vit?width=8&layers=1", "text": "tiny-bert?width=8&layers=1"}
OPTIONS = TrainingOptions(batch_size=20, progress=False, track=[])
PROBE = build_strategy("linear_probe", epochs=1)


def start(data, output, strategy=PROBE, resume=False, overwrite=False, task="product", **changed):
    model = build_model(TINY, {task: "classification"}, data["train"], "concat", 8)
    chosen = replace(OPTIONS, **changed)
    return run(model, data, strategy, chosen, output, "", {"started": changed}, resume, overwrite)


def content(directory: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(products, tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """A finished run, and all that it left; each refusal below has to leave it alone."""
    directory = tmp_path_factory.mktemp("finished") / "out"
    start(products, directory, track=["tensorboard"])
    return directory, content(directory)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param(
            {"precision": "fp16"},
            "needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works on a GPU"),
        ),
        ({"track": ["comet_ml"]}, "'comet_ml' is not installed"),
        ({"batch_size": 2, "accumulation": 4}, "batch_size 2 is the rows of one step"),
        ({"order": "balanced", "balance_by": "prodct"}, "Did you mean 'product'"),
        ({"steps_per_epoch": 3}, "steps_per_epoch is for streams"),
    ],
)
def test_options_that_cannot_be_leave_the_run_that_would_be_replaced(
    products, finished, changed, message
):
    directory, before = finished
    with pytest.raises(ValueError, match=message):
        start(products, directory, overwrite=True, **changed)
    assert content(directory) == before


def test_augmentation_of_no_column_leaves_the_run_that_would_be_replaced(products, finished):
    directory, before = finished
    with pytest.raises(ValueError, match="imag"):
        start(products, directory, overwrite=True, augment={"imag": True})
    assert content(directory) == before


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Strategy([Phase(1), Phase(1, encoder_lr={"txt": 1e-3})]), "Did you mean 'text'"),
        (Strategy([Phase(1), Phase(1, lr=0.0)]), "the phase trains nothing"),
        (Strategy([Phase(1), Phase(1, 1e-3, 1e-3, top_stages=99)]), "top_stages is 99"),
        (
            build_strategy("full", [{"name": "modality_dropout", "rate": {"txt": 0.5}}], epochs=1),
            "Did you mean 'text'",
        ),
        (build_strategy("full", [{"name": "mixup", "column": "imag"}], epochs=1), "no column of"),
        (
            Strategy([Phase(1, 1e-3), Phase(1, 0.0, 1e-3)], [build_method("uncertainty")]),
            "Uncertainty trains something of its own, .* and phase 2 has lr 0",
        ),
    ],
)
def test_a_later_phase_or_a_method_that_cannot_be_leaves_the_run_too(
    products, finished, strategy, message
):
    directory, before = finished
    with pytest.raises(ValueError, match=message):
        start(products, directory, strategy, overwrite=True)
    assert content(directory) == before


def test_a_run_is_only_replaced_when_asked(products, finished):
    directory, before = finished
    with pytest.raises(FileExistsError, match="already holds a run"):
        start(products, directory)
    assert content(directory) == before


def test_a_refused_resume_leaves_configuration_and_record(products, finished):
    directory, before = finished
    with pytest.raises(ValueError, match=r"of another run \(seed: was 0, is 5\)"):
        start(products, directory, resume=True, seed=5)
    assert content(directory) == before


def test_labels_of_the_test_split_are_looked_at_before_anything_is_replaced(products, finished):
    directory, before = finished
    wrong = {**products, "test": [products["test"][0] | {"product": "brick"}]}
    with pytest.raises(ValueError, match="label 'brick'"):
        start(wrong, directory, overwrite=True)
    assert content(directory) == before


def test_data_without_a_train_split_is_one_clear_error(products, tmp_path):
    model = build_model(TINY, {"product": "classification"}, products["train"], "concat", 8)
    with pytest.raises(ValueError, match=r"there is no 'train' split; found \['test'\]"):
        run(model, {"test": products["test"]}, PROBE, OPTIONS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_may_be_replaced_is(products, tmp_path):
    for seed in (0, 1):
        metrics = start(products, tmp_path, overwrite=True, seed=seed)
        assert metrics["steps"] == 2
    assert '"seed": 1' in (tmp_path / "run.json").read_text()
    assert "seed: 1" in (tmp_path / "config.yaml").read_text()


def test_a_stop_while_the_data_is_looked_at_replaces_nothing(products, finished, monkeypatch):
    """SIGTERM that comes before training must not meet Python's default handler."""
    directory, before = finished
    plain = run_module.fingerprints

    def fingerprints(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(*arguments)

    monkeypatch.setattr(run_module, "fingerprints", fingerprints)
    with pytest.raises(Stopped) as stopped:
        start(products, directory, overwrite=True)
    assert stopped.value.code == 0
    assert content(directory) == before
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
