"""The batches of a loader, whatever happens to its workers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from mmtransfer.data.collate import read_errors
from mmtransfer.features import Batch

WORKER_ATTEMPTS = 3


def read_windows(
    loader: Any, size: int, tell: Callable[[str], None] = print
) -> Iterator[list[Batch]]:
    """The batches of a loader, `size` at a time, from the start that its sampler is set to.

    Workers that were killed are replaced, and go on with the first window that is not whole.
    """
    stream = loader.batch_sampler is None  # it makes its batches by itself
    batches = loader.dataset if stream else loader.batch_sampler
    first, done, attempts = batches.start, 0, 0
    while True:
        try:
            for window in windows(read_errors(loader), size):
                if loader.num_workers:
                    leave_dead_workers_to_the_loader()
                yield window
                done, attempts = done + 1, 0
            break
        except (RuntimeError, ConnectionError, EOFError) as error:
            attempts += 1
            if not is_death(error) or attempts > WORKER_ATTEMPTS:
                raise
            tell(f"replaced killed loader workers ({first_line(error)})")
            loader._iterator = None  # the dead ones
            batches.start = first + done
    batches.start = 0


def is_death(error: Exception) -> bool:
    """Whether a worker was killed; what it reports of its own begins with "Caught".

    One that dies after it announced a batch leaves a broken connection where the batch was.
    """
    told = str(error)
    gone = isinstance(error, ConnectionError | EOFError) or "DataLoader worker" in told
    return gone and not told.startswith("Caught ")


def windows(loader: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """The micro-batches of one optimiser step at a time."""
    batches = iter(loader)
    while window := list(islice(batches, size)):
        yield window


def leave_dead_workers_to_the_loader() -> None:
    """Without torch's handler, which raises wherever the loop is when a worker dies.

    The loader looks by itself while it waits for a batch.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
