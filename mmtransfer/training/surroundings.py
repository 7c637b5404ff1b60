"""What a result depends on beside its arguments: versions, hardware, code, launch settings."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import mmtransfer

PACKAGES = (
    "torch",
    "torchvision",
    "torchaudio",
    "transformers",
    "accelerate",
    "datasets",
    "numpy",
)
DIFF_CHARACTERS = 200_000  # of a diff that are kept; its hash covers all of it
#: how a launcher tells its processes what to do, and what else changes the last digits
SETTINGS = re.compile(
    r"(ACCELERATE_|FSDP_)\w+|(OMP|MKL)_NUM_THREADS|CUBLAS_WORKSPACE_CONFIG|PYTHONHASHSEED"
)
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|(API|ACCESS|PRIVATE)_?KEY", re.I)


def versions() -> dict[str, str | None]:
    """Versions of Python, this package and what it computes with; None for what is not there."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    found["mmtransfer"] = mmtransfer.__version__
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, threads of torch, names of the GPUs."""
    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
    }


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state(directory: Path) -> dict[str, Any] | None:
    """Commit and uncommitted changes of the repository around a directory; None without one.

    A change is a difference of a tracked file, or a Python file that git neither tracks nor
    ignores.  `diff` is bounded, `diff_sha256` is of all of it and None for a clean tree.
    """
    try:
        top = Path(_git(directory, "rev-parse", "--show-toplevel").strip())
        commit = _git(top, "rev-parse", "HEAD").strip()
        diff = _git(top, "diff", "HEAD", "--no-color", "--no-ext-diff")
        new = _git(top, "ls-files", "--others", "--exclude-standard", "-z", "--", "*.py")
    except (OSError, subprocess.CalledProcessError):
        return None
    for name in filter(None, new.split("\0")):
        if (top / name).is_file():  # editors lock files with links that lead nowhere
            diff += f"new file {name}\n{(top / name).read_text(errors='replace')}\n"
    return {
        "commit": commit,
        "dirty": bool(diff),
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
        "diff": diff[:DIFF_CHARACTERS],
        "diff_complete": len(diff) <= DIFF_CHARACTERS,
    }


def _git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *arguments],
        env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},  # looking must not disturb anybody's commit
        capture_output=True,
        check=True,
    )
    return done.stdout.decode(errors="replace")


def launch_settings() -> dict[str, str]:
    """The environment variables by which a launcher steers its processes; no others."""
    return {name: value for name, value in os.environ.items() if SETTINGS.fullmatch(name)}


def without_secrets(value: Any) -> Any:
    """The same value without the content of environment variables that hold secrets.

    A token comes into a command line when a shell replaces its variable.
    """
    secrets = sorted(
        (v for k, v in os.environ.items() if SECRET.search(k) and len(v) >= 8), key=len
    )
    return _without(value, secrets[::-1])


def _without(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(item, secrets) for name, item in value.items()}
    if isinstance(value, list):
        return [_without(item, secrets) for item in value]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "***")
    return value
