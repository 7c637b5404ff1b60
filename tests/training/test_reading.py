"""Windows of batches, whole and once each, whatever becomes of the loader's workers."""

from __future__ import annotations

import pytest
import torch

from mmtransfer.data.samplers import GivenBatches
from mmtransfer.training.reading import read_windows

# What a worker that is killed leaves behind, in the order of how far its batch had come.
DEATHS = [
    RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
    ConnectionResetError(104, "Connection reset by peer"),
    ConnectionRefusedError(111, "Connection refused"),
    EOFError(),
]


class Dying:
    """A loader whose workers die once, before a batch."""

    num_workers, _iterator = 2, None

    def __init__(self, at: int, error: Exception) -> None:
        self.batch_sampler = GivenBatches([[k] for k in range(7)])
        self.at, self.error = at, error

    def __iter__(self):
        for (k,) in self.batch_sampler:
            if k == self.at:
                self.at = -1
                raise self.error
            yield k


@pytest.mark.parametrize("error", DEATHS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("at", [0, 1, 2, 6])
def test_however_a_worker_dies_every_batch_comes_once(at, error):
    told = []
    found = list(read_windows(Dying(at, error), 1, told.append))
    assert found == [[k] for k in range(7)]
    assert [line[:30] for line in told] == ["replaced killed loader workers"]


class Broken(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        raise ConnectionError("the hub is gone")


def test_an_error_that_a_worker_reports_is_no_death():
    loader = torch.utils.data.DataLoader(
        Broken(), batch_sampler=GivenBatches([[0], [1]]), num_workers=1
    )
    told: list[str] = []
    with pytest.raises(ConnectionError, match="the hub is gone"):
        list(read_windows(loader, 1, told.append))
    assert not told
