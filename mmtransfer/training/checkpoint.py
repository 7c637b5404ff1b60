"""Checkpoints: written aside and renamed, so that one is either whole or not there."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import random
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, save
from torch import Tensor

from mmtransfer.model import TransferModel
from mmtransfer.training.sharding import state_of

PART, OLD = ".part", ".old"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its directory, the step after which it was taken, its processes."""

    directory: Path
    step: int
    processes: int

    def weights(self, name: str) -> dict[str, Tensor]:
        return load_file(self.directory / f"{name}.safetensors")

    def state(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = torch.load(
            self.directory / f"{name}.pt", weights_only=True, map_location="cpu"
        )
        return found


class Checkpoints:
    """The checkpoints of a run, `step-00000120.0/` and so on in one directory, the newest `keep`.

    Each holds `trained.safetensors` (what was ever trained, and buffers), `best.safetensors`,
    `training.pt` (optimiser, schedule, position, history), `rank-0.pt` ... (random state of each
    process) and, written last, `manifest.json` with size and digest of every file.
    """

    def __init__(self, directory: Path, keep: int, accelerator: Accelerator) -> None:
        self.directory, self.keep, self.accelerator = directory, keep, accelerator

    def write(
        self,
        step: int,
        weights: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        mine: Mapping[str, Any],
    ) -> None:
        """Write a checkpoint from all processes; `mine` is what each process keeps of its own.

        Raises `OSError`, on all processes, when it cannot be written; older ones stay whole.
        """
        final = self._free(step)
        part = final.with_name(final.name + PART)
        rank, main = self.accelerator.process_index, self.accelerator.is_main_process

        def write() -> None:
            write_file(part / f"rank-{rank}.pt", serialised(mine))
            if main:
                for name, tensors in weights.items():
                    write_file(part / f"{name}.safetensors", save(dict(tensors)))
                write_file(part / "training.pt", serialised(state))

        stages: list[tuple[bool, Callable[[], None]]] = [
            (main, lambda: self._begin(part)),
            (True, write),
            (main, lambda: self._finish(part, final, step)),
        ]
        for takes_part, work in stages:
            error = None
            try:
                if takes_part:
                    work()
            except OSError as caught:
                error = str(caught)
            errors = [e for e in gather_object([error]) if e]  # all stop, or none
            if errors:
                if main:
                    shutil.rmtree(part, ignore_errors=True)
                before = self._complete()
                rest = f"that of step {before[0].step} is whole" if before else "there is no other"
                raise OSError(
                    f"the checkpoint of step {step} cannot be written to {self.directory} "
                    f"({errors[0]}); {rest}. Make room and go on with --resume"
                )

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint, the same on all processes; damaged ones are left out.

        Raises `ValueError`, on all processes, where all that there are are damaged.
        """
        found: list[Any] = [None, []]
        if self.accelerator.is_main_process:
            found = [next(iter(self._complete(warn=True)), None), self._directories()]
        broadcast_object_list(found)
        checkpoint: Checkpoint | None = found[0]
        if checkpoint is None and found[1]:
            names = ", ".join(directory.name for directory in found[1])
            raise ValueError(
                f"no checkpoint in {self.directory} is whole (found {names}, all damaged): put one "
                "back from a copy, or begin anew with --overwrite"
            )
        return checkpoint

    # -- on the main process ----------------------------------------------------------------------

    def _begin(self, part: Path) -> None:
        for left_over in self.directory.glob(f"*{PART}"):
            shutil.rmtree(left_over)  # of a process that was killed while it wrote
        part.mkdir(parents=True)

    def _finish(self, part: Path, final: Path, step: int) -> None:
        files = {file.name: [file.stat().st_size, digest(file)] for file in part.iterdir()}
        manifest = {
            "step": step,
            "processes": self.accelerator.num_processes,
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "files": files,
        }
        write_file(part / "manifest.json", json.dumps(manifest, indent=2).encode())
        synchronise(part)
        part.rename(final)
        synchronise(self.directory)
        newer = [d for d in self._directories() if d.name > final.name]  # damaged, or left behind
        older = [d for d in self._directories() if d.name <= final.name]
        for directory in (*newer, *older[self.keep :]):
            shutil.rmtree(directory, ignore_errors=True)

    def _free(self, step: int) -> Path:
        """A name that no checkpoint has: none is ever replaced, which would leave a gap."""
        names = (self.directory / f"step-{step:08d}.{k}" for k in itertools.count())
        return next(name for name in names if not name.exists())

    def _directories(self) -> list[Path]:
        """Newest first; what was not renamed into place is no checkpoint."""
        found = [d for d in self.directory.glob("step-*") if d.is_dir() and d.suffix != PART]
        return sorted(found, reverse=True)

    def _complete(self, warn: bool = False) -> list[Checkpoint]:
        """Complete checkpoints, newest first."""
        found = []
        for directory in self._directories():
            try:
                manifest = json.loads((directory / "manifest.json").read_text())
                for name, (size, content) in manifest["files"].items():
                    file = directory / name
                    if file.stat().st_size != size or digest(file) != content:
                        raise ValueError(f"{name} is not what was written")
            except (OSError, ValueError, KeyError, TypeError) as error:
                if warn:
                    warnings.warn(f"checkpoint {directory} is left out: {error}", stacklevel=2)
                continue
            found.append(Checkpoint(directory, manifest["step"], manifest["processes"]))
            if warn:
                break  # the newest is all that is asked for
        return found


def write_file(path: Path, content: bytes) -> None:
    """Write and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_directory(directory: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a directory aside, and only then put it in the place of an older one."""
    part, old = (directory.with_name(directory.name + end) for end in (PART, OLD))
    for left_over in (part, old):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        write(part)
        for path in (*part.rglob("*"), part):
            synchronise(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if directory.exists():
        directory.rename(old)
    part.rename(directory)
    synchronise(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def save_model(
    model: TransferModel, directory: Path, accelerator: Accelerator, resumable: bool
) -> None:
    """Write a whole model from the main process; one that was there stays until then.

    Raises `OSError`, on all processes, when it cannot be written.
    """
    state, error = state_of(model, model.state_dict()), None
    if accelerator.is_main_process:
        try:
            replace_directory(directory, lambda part: model.write(part, state))
        except OSError as caught:
            error = str(caught)
    errors = [e for e in gather_object([error]) if e]
    if errors:
        rest = ", and go on with --resume" if resumable else ""
        raise OSError(f"the model cannot be written to {directory} ({errors[0]}): make room{rest}")


def synchronise(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def digest(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def serialised(state: Mapping[str, Any]) -> bytes:
    """Tensors, numbers, strings, lists and dictionaries as torch writes them."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def random_state() -> dict[str, Any]:
    """State of every generator that training may draw from, in this process."""
    name, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, list(internal), gauss],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Take up what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
