"""What stands around the loop: batch norm across processes."""

from __future__ import annotations

import torch
from torch import nn

from mmtransfer.training.setup import synchronise_batch_norm


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
