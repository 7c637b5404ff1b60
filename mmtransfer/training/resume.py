"""Taking up a checkpoint: whether it is of this run, and whether it goes on exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from mmtransfer.model import TransferModel
from mmtransfer.training.checkpoint import Checkpoint
from mmtransfer.training.data import TrainingData
from mmtransfer.training.identity import digest_of, what_changed


def accepted(
    saved: Checkpoint | None, identity: Mapping[str, Any], model: TransferModel
) -> Checkpoint | None:
    """The same checkpoint.  Raises `ValueError` if it is of another run, or of other weights."""
    if saved is None:
        return None
    state = saved.state("training")
    changed = what_changed(state["identity"], identity)
    if changed:
        raise ValueError(f"{saved.directory} is of another run ({'; '.join(changed)})")
    if digest_of(model, set(state["trained"])) != state["frozen"]:
        raise ValueError(
            f"{saved.directory} was trained on other frozen weights than the encoders have now"
        )
    return saved


def restore_data(saved: Checkpoint, data: TrainingData, accelerator: Accelerator) -> None:
    """Give each process what it knew of the data; of more processes than there are now, as well."""
    mine, processes = accelerator.process_index, accelerator.num_processes
    for rank in range(mine, saved.processes, processes):
        known = saved.state(f"rank-{rank}")["data"]
        # All of them waited for the same encoding.
        data.load_state_dict(
            known if rank == mine else {**known, "encoding_seconds": 0.0, "encoded_rows": 0}
        )


def exactness(saved: Checkpoint, step: int, setting: Mapping[str, Any]) -> str:
    """One line about how a run goes on from a checkpoint under a setting."""
    changed = what_changed(saved.state("training")["setting"], setting)
    how = f"the same plan, but not to the last digit ({'; '.join(changed)})"
    how = how if changed else "exactly as it was"
    return f"goes on after step {step} of {saved.directory.name}, {how}"
