"""The processes of a run: that they know each other, and on which machines they really are."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env


def join_processes() -> None:
    """Let the processes of a launcher find each other, before anything else asks who they are.

    Raises `ValueError` if several were started of which each would train alone: so it is on a
    machine without a GPU when accelerate is not told to use the CPU (accelerate 1.15).
    """
    # The state alone does not read this variable, and the first one to be made decides for all.
    state = PartialState(cpu=bool(parse_flag_from_env("ACCELERATE_USE_CPU")))
    started = int(os.environ.get("WORLD_SIZE", 1))
    if "LOCAL_RANK" in os.environ and started != state.num_processes:
        raise ValueError(
            f"{started} processes were started, but each would train alone "
            f"(found {state.num_processes}): on CPUs, set ACCELERATE_USE_CPU=true"
        )


@contextmanager
def main_process_first() -> Iterator[None]:
    """The main process goes in before the others, which then find what it has made."""
    join_processes()
    with PartialState().main_process_first():
        yield


def machines() -> list[dict[str, Any]]:
    """The machines of this run with their processes, as they really are; asks all processes."""
    device = PartialState().device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    # Containers may share a host name: torchrun's number of the machine tells them apart.
    mine = (int(os.environ.get("GROUP_RANK", 0)), socket.gethostname(), name)
    found: dict[tuple[int, str], list[str]] = {}
    for number, host, kind in gather_object([mine]):
        found.setdefault((number, host), []).append(kind)
    return [
        {"host": host, "processes": len(devices), "devices": devices}
        for (_, host), devices in sorted(found.items())
    ]
