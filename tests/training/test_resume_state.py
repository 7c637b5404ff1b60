"""What a resumed run has of the one before, and what of a run is whole after a full disk."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import mmtransfer.model as model_module
import mmtransfer.training.log as log_module
from mmtransfer.methods.base import Method
from mmtransfer.model import TransferModel
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, run
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, Strategy, build_strategy

TINY = {"image": "tiny-vit?width=8&layers=1", "text": "tiny-bert?width=8&layers=1"}
TASKS = {"product": "classification"}
ENCODED = 2 * (40 + 19)  # training and validation values, before the last checkpoint
OPTIONS = TrainingOptions(batch_size=20, progress=False, track=[])


class Interrupt(Method):
    """Ends the run after a step, as nothing else would."""

    def __init__(self, at: int = 0) -> None:
        self.at = at

    def config(self):
        return {"class": "interrupt"}  # the same run, whether it is interrupted or not

    def on_weights(self, model, step):
        if step == self.at:
            raise KeyboardInterrupt


def start(data, output, strategy=None, resume=False, **changed):
    model = build_model(TINY, TASKS, data["train"], "concat", 8)
    strategy = strategy or build_strategy("linear_probe", epochs=2)
    return run(model, data, strategy, replace(OPTIONS, **changed), output, resume=resume)


@pytest.fixture
def unreadable(products):
    """Splits with a broken picture each."""
    data = {split: [dict(row) for row in rows] for split, rows in products.items()}
    for split in ("train", "test"):
        data[split][4]["image"] = b"broken"
    return data


def test_a_finished_run_that_is_resumed_reports_the_same(unreadable, tmp_path):
    found = [
        start(unreadable, tmp_path, resume=resume, on_error="missing") for resume in (False, True)
    ]
    assert found[0]["unreadable"] == {"train": {"image": 1}, "test": {"image": 1}}
    for name in ("unreadable", "test", "validation", "history", "steps"):
        assert found[1][name] == found[0][name], name
    assert found[0]["timing"]["encoded_rows"] == ENCODED + 2 * 21  # test rows, after the last one
    assert found[1]["timing"]["encoded_rows"] == ENCODED
    assert found[1]["timing"]["encoding"] > 0


def test_a_checkpoint_leaves_out_exactly_what_was_frozen(products, tmp_path):
    start(products, tmp_path)
    (last, *_) = sorted(tmp_path.glob("checkpoints/step-*"), reverse=True)
    whole = load_file(tmp_path / "model" / "model.safetensors")
    kept = load_file(last / "trained.safetensors")
    model = TransferModel.from_pretrained(tmp_path / "model")
    frozen = {f"encoders.{n}" for n, _ in model.encoders.named_parameters()}
    assert whole.keys() - kept.keys() == frozen
    assert all(torch.equal(whole[name], tensor) for name, tensor in kept.items())


def test_what_other_numbers_of_processes_saw_is_kept(unreadable, tmp_path):
    """The files of two processes are taken up by one: nothing is lost, nothing counted twice."""
    start(unreadable, tmp_path, on_error="missing")
    for directory in (tmp_path / "checkpoints").iterdir():
        mine = torch.load(directory / "rank-0.pt", weights_only=True)
        mine["data"]["unreadable"] = {"train": {"text": [7]}}
        torch.save(mine, directory / "rank-1.pt")
        manifest = json.loads((directory / "manifest.json").read_text())
        (directory / "manifest.json").write_text(json.dumps({**manifest, "processes": 2}))
    again = start(unreadable, tmp_path, resume=True, on_error="missing")
    assert again["unreadable"] == {"train": {"image": 1, "text": 1}, "test": {"image": 1}}
    assert again["timing"]["encoded_rows"] == ENCODED


def test_batches_that_memory_made_smaller_stay_so_after_a_resume(products, tmp_path, monkeypatch):
    plain, sizes = TransferModel.forward, []

    def forward(self, inputs, size):
        if self.training:
            sizes.append(size)
            if size > 11:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, inputs, size)

    monkeypatch.setattr(TransferModel, "forward", forward)

    def fit(directory, at, resume=False, **changed):
        sizes.clear()
        options = replace(OPTIONS, on_oom="halve", checkpoint_steps=1, **changed)
        model = build_model(TINY, TASKS, products["train"], "concat", 8)
        strategy = Strategy([Phase(2, encoder_lr=1e-3)], [Interrupt(at)])
        trainer = Trainer(model, products["train"], None, strategy, options, directory)
        try:
            trainer.fit(resume)
        except KeyboardInterrupt:
            pass
        finally:
            trainer.close()
        return trainer

    whole = fit(tmp_path / "whole", 0)
    assert whole.accumulation == 2
    assert 20 in sizes
    fit(tmp_path / "cut", 3)
    resumed = fit(tmp_path / "cut", 0, resume=True)
    assert max(sizes) == 10  # nothing had to run out of memory again
    assert resumed.losses == whole.losses
    fit(tmp_path / "asked", 3)
    assert fit(tmp_path / "asked", 0, resume=True, accumulation=4).accumulation == 4


def test_a_full_disk_at_the_end_leaves_the_model_that_was_there(products, tmp_path, monkeypatch):
    start(products, tmp_path)
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    plain = model_module.save_file

    def full(state, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(model_module, "save_file", full)
    message = f"model cannot be written to {tmp_path / 'model'} .*No space left.*--resume"
    with pytest.raises(OSError, match=message):
        start(products, tmp_path, resume=True)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights
    TransferModel.from_pretrained(tmp_path / "model")
    monkeypatch.setattr(model_module, "save_file", plain)
    start(products, tmp_path, resume=True)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights
    assert not [p.name for p in tmp_path.iterdir() if p.suffix in (".part", ".old")]


@pytest.mark.parametrize("torn", ["7,1", "3,1,2,1.2", "step,pha", ""])
def test_a_torn_log_is_mended(products, tmp_path, torn):
    """Whatever a crash left of the last line; the lines before it stay as they were."""
    start(products, tmp_path)
    file = tmp_path / "training.csv"
    whole = file.read_text().splitlines(keepends=True)
    kept = whole[:3] if torn[:4] != "step" else []
    file.write_text("".join(kept) + torn)
    start(products, tmp_path, resume=True)
    assert file.read_text() == "".join(kept or whole[:1])
    with file.open(newline="") as lines:
        assert all(line["step"] in ("1", "2") for line in csv.DictReader(lines))


def test_a_line_with_too_few_fields_is_left_out(products, tmp_path):
    start(products, tmp_path)
    file = tmp_path / "training.csv"
    whole = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*whole[:2], "2,1\n", *whole[3:]]))
    start(products, tmp_path, resume=True)
    assert file.read_text() == "".join([*whole[:2], *whole[3:]])


def test_a_log_that_cannot_be_written_is_named(products, tmp_path, monkeypatch):
    class Full:
        def writerows(self, lines):
            raise OSError(28, "No space left on device")

    plain = log_module.csv.DictWriter

    def writer(file, *arguments, **options):
        return Full() if file.mode == "a" else plain(file, *arguments, **options)

    monkeypatch.setattr(log_module.csv, "DictWriter", writer)
    with pytest.raises(OSError, match=rf"{tmp_path / 'training.csv'} cannot be .*No space.*resume"):
        start(products, tmp_path)
