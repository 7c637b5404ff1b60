"""What stands around the loop: batch norm across processes, memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mmtransfer.training.setup import (
    give_back_memory,
    keep_freed_memory,
    synchronise_batch_norm,
)


class Device:
    type = "cuda"


class TwoGpus:
    num_processes, device = 2, Device()


def test_batch_norm_that_trains_is_synchronised_and_no_other():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tuned = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
            self.frozen = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))

        def train(self, mode: bool = True):
            super().train(mode)
            self.frozen.eval()
            return self

    model = Model()
    model.tuned[1].running_mean.fill_(3.0)
    synchronise_batch_norm(model, TwoGpus())
    assert isinstance(model.tuned[1], nn.SyncBatchNorm)
    assert torch.equal(model.tuned[1].running_mean, torch.full((2,), 3.0))
    assert type(model.frozen[1]) is nn.BatchNorm2d


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_freed_memory_is_kept_until_it_is_given_back():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    keep_freed_memory()
    before = resident()
    blocks = [torch.ones(2**18) for _ in range(200)]
    blocks = blocks[-1:]  # the last one lies above all others
    assert resident() - before > 150e6
    give_back_memory()
    assert resident() - before < 50e6
    assert len(blocks) == 1
