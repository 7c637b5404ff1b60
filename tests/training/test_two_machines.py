"""Two network namespaces joined by a cable are two machines to everything that trains."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "recipes" / "configs" / "accelerate" / "two_machines.yaml"
SCRIPT = Path(__file__).with_name("launched_script.py")
ADDRESSES = ("10.199.0.1", "10.199.0.2")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30)


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Names of two namespaces, each with an address on a common cable."""
    for program in ("ip", "nsenter"):
        if shutil.which(program) is None:
            pytest.skip(f"two machines need the program {program!r}")
    names = (f"mmt{os.getpid()}a", f"mmt{os.getpid()}b")
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            cable = ("link", "add", "cable", "type", "veth", "peer", "name", "cable")
            ip("-n", names[0], *cable, "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:  # the cable goes with them
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=30)


def start(machine: str, rank: int, output: Path) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
    launcher += ["--num_processes", "2", "--machine_rank", str(rank)]
    launcher += ["--main_process_ip", ADDRESSES[0]]
    settings = {
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "cable",
        "OMP_NUM_THREADS": "1",
        "MMTRANSFER_CACHE": str(output.parent / "cache"),
    }
    return subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{machine}", *launcher, SCRIPT, "--output", output],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_machines_train_one_model(machines, cpu_run, tmp_path):
    output = tmp_path / "out"
    running = [start(machine, rank, output) for rank, machine in enumerate(machines)]
    try:
        printed = [process.communicate(timeout=240)[0] for process in running]
    finally:
        for process in running:
            process.terminate()  # the launcher then ends its processes
            process.wait(timeout=60)
    assert [process.returncode for process in running] == [0, 0], "\n".join(printed)[-4000:]
    record = json.loads((output / "run.json").read_text())
    assert [machine["processes"] for machine in record["machines"]] == [1, 1]
    found, expected = (
        json.loads((path / "metrics.json").read_text()) for path in (output, cpu_run)
    )
    assert found["processes"] == 2
    losses = [[epoch["train_loss"] for epoch in x["history"]] for x in (found, expected)]
    assert losses[0] == losses[1]
    assert found["test"] == expected["test"]
