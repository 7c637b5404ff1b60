"""A checkpoint is whole or not there; random state, optimiser state and weights come back exact."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

import mmtransfer.training.checkpoint as checkpoint
from mmtransfer.training.checkpoint import Checkpoints, random_state, set_random_state
from mmtransfer.training.sharding import load_optimizer_state, optimizer_state


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2, accelerator=Accelerator(cpu=True))


def write(checkpoints, step, best=0.0):
    weights = {
        "trained": {"w": torch.full((3,), float(step))},
        "best": {"w": torch.full((3,), best)},
    }
    checkpoints.write(step, weights, {"step": step}, {"random": random_state()})


def names(checkpoints):
    return sorted(path.name for path in checkpoints.directory.iterdir())


def test_what_is_written_comes_back(checkpoints):
    assert checkpoints.newest() is None
    write(checkpoints, 3, best=1.0)
    found = checkpoints.newest()
    assert (found.step, found.processes) == (3, 1)
    assert torch.equal(found.weights("trained")["w"], torch.full((3,), 3.0))
    assert torch.equal(found.weights("best")["w"], torch.ones(3))
    assert found.state("training") == {"step": 3}
    assert set(found.state("rank-0")) == {"random"}


def test_the_newest_few_are_kept(checkpoints):
    for step in (3, 6, 9):
        write(checkpoints, step)
    assert names(checkpoints) == ["step-00000006.0", "step-00000009.0"]


def test_the_same_step_twice_never_leaves_a_gap(checkpoints):
    write(checkpoints, 3)
    write(checkpoints, 3)
    assert names(checkpoints) == ["step-00000003.0", "step-00000003.1"]
    assert checkpoints.newest().directory.name == "step-00000003.1"


def test_one_damaged_file_never_damages_a_second_checkpoint(checkpoints):
    """Not even the best weights, which are the same in many: each has files of its own."""
    write(checkpoints, 3, best=1.0)
    write(checkpoints, 6, best=1.0)
    with (checkpoints.directory / "step-00000006.0" / "best.safetensors").open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"\x00\xff")
    with pytest.warns(UserWarning, match="left out: best.safetensors is not what was written"):
        found = checkpoints.newest()
    assert found.step == 3
    assert torch.equal(found.weights("best")["w"], torch.ones(3))


def test_where_every_checkpoint_is_damaged_the_error_says_what_to_do(checkpoints):
    for step in (3, 6):
        write(checkpoints, step)
    for directory in checkpoints.directory.iterdir():
        (directory / "manifest.json").unlink()
    message = "no checkpoint in .* is whole .found step-00000006.0, step-00000003.0.*--overwrite"
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match=message):
        checkpoints.newest()


@pytest.mark.parametrize("file", ["trained.safetensors", "training.pt", "rank-0.pt"])
@pytest.mark.parametrize("damage", ["cut", "flip", "lose"])
def test_a_damaged_one_is_left_out_and_never_copied_on(checkpoints, file, damage):
    write(checkpoints, 3, best=1.0)
    write(checkpoints, 6, best=1.0)
    path = checkpoints.directory / "step-00000006.0" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "lose":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.warns(UserWarning, match="left out"):
        found = checkpoints.newest()
    assert found.step == 3
    write(checkpoints, 5, best=1.0)  # the next after going on from step 3
    assert names(checkpoints) == ["step-00000003.0", "step-00000005.0"]
    assert checkpoints.newest().step == 5


@pytest.mark.parametrize("stage", ["write_file", "synchronise", "digest"])
def test_a_full_disk_leaves_the_last_one_whole(checkpoints, monkeypatch, stage):
    write(checkpoints, 3)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, stage, full)
    if stage == "digest":  # needed to see which one is whole, too
        with pytest.raises(OSError, match="checkpoint of step 6 cannot be written"):
            write(checkpoints, 6)
    else:
        with pytest.raises(OSError, match=r"No space left on device\); that of step 3 is whole"):
            write(checkpoints, 6)
    monkeypatch.undo()
    assert checkpoints.newest().step == 3
    assert names(checkpoints) == ["step-00000003.0"]


def test_random_state_comes_back():
    state = random_state()
    first = torch.rand(3), np.random.rand(3), random.random()
    again = torch.load(io.BytesIO(checkpoint.serialised(state)), weights_only=True)
    set_random_state(again)
    second = torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert first[2] == second[2]


@pytest.mark.parametrize("fused", [False, True])
def test_optimiser_state_goes_on_exactly_whatever_the_memory_layout(fused):
    """A channels-last weight and contiguous moments side by side would be walked over wrongly."""

    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
        model = model.to(memory_format=torch.channels_last)
        unused = nn.Linear(2, 2)  # never has a gradient, and so no state
        model.add_module("unused", unused)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)

    def steps(model, optimizer, numbers):
        for number in numbers:
            torch.manual_seed(number)
            layers = list(model)[:-1]
            x = torch.randn(2, 3, 4, 4)
            for layer in layers:
                x = layer(x)
            x.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    whole = build()
    steps(*whole, range(4))
    model, optimizer = build()
    steps(model, optimizer, range(2))
    state = torch.load(
        io.BytesIO(checkpoint.serialised(optimizer_state(model, optimizer))),
        weights_only=True,
    )
    again, fresh = build()
    again.load_state_dict(model.state_dict())
    load_optimizer_state(again, fresh, state)
    steps(again, fresh, range(2, 4))
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match="'elsewhere' that is not here"):
        load_optimizer_state(again, fresh, {"elsewhere": {}})
