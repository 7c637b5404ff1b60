"""What is wrong with an installation, and how to mend it."""

from __future__ import annotations

import io
import os
import platform
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import numpy as np

LEAST_FREE = 5e9  # bytes; features of a large data set take some of them
ESPEAK = "apt-get install espeak-ng, dnf install espeak-ng or brew install espeak-ng"
OFFLINE = "name local directories (hf:DIR) and data on disk"


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    state: "fine", "lacking" (some things will not work) or "broken" (nothing does)
    mend: what to do about it
    """

    name: str
    state: str
    found: str
    mend: str = ""


def examine(cache: Path | None = None, timeout: float = 3.0) -> list[Finding]:
    """Check all; a check that fails in a way that nobody thought of counts as broken.

    timeout: seconds to wait for the hub
    Raises `ValueError` for a timeout that is not positive.
    """
    if timeout <= 0:
        raise ValueError(f"timeout must be positive, found {timeout}")
    checks: dict[str, Callable[[], Finding]] = {
        "python": check_python,
        "packages": check_packages,
        "torch trio": check_trio,
        "devices": check_devices,
        "bf16": check_bf16,
        "sound": check_sound,
        "pictures": check_pictures,
        "cache": lambda: check_cache(cache),
        "hub": lambda: check_hub(timeout),
        "espeak-ng": check_espeak,
    }
    found = []
    for name, check in checks.items():
        try:
            found.append(check())
        except Exception as error:  # whatever is wrong with a package, the other checks go on
            said = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
            found.append(Finding(name, "broken", said, reinstall()))
    return found


def reinstall() -> str:
    return "install again: pip install --force-reinstall -c constraints.txt mmtransfer"


def check_python() -> Finding:
    return Finding("python", "fine", f"{platform.python_version()} in {sys.prefix}")


def check_packages() -> Finding:
    """Whether everything that the package requires is there, in a version that fits."""
    from packaging.requirements import Requirement

    wrong: dict[str, str] = {}
    needed = [Requirement(line) for line in requires("mmtransfer") or []]
    needed = [need for need in needed if need.marker is None or need.marker.evaluate()]
    for need in needed:
        try:
            there = version(need.name)
        except PackageNotFoundError:
            wrong[str(need)] = f"{need.name} is not installed"
            continue
        if not need.specifier.contains(there, prereleases=True):
            wrong[str(need)] = f"{need.name} is {there}, expected {need.specifier}"
    if wrong:
        mend = "pip install " + " ".join(f"'{need}'" for need in wrong)
        return Finding("packages", "broken", "; ".join(wrong.values()), mend)
    return Finding("packages", "fine", f"all {len(needed)} required packages fit")


def check_trio() -> Finding:
    """Whether torch, torchvision and torchaudio were built for each other."""
    found = {name: version(name) for name in ("torch", "torchvision", "torchaudio")}
    said = ", ".join(f"{name} {number}" for name, number in found.items())
    wrong = misfit(found)
    if not wrong:
        try:
            import torch
            import torchaudio.functional
            import torchvision.ops

            boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
            torchvision.ops.nms(boxes, torch.ones(2), 0.5)  # compiled: fails on another torch
            torchaudio.functional.resample(torch.zeros(160), 16000, 8000)
        except (ImportError, OSError, RuntimeError) as error:
            wrong = f"{said}, but: {str(error).strip().splitlines()[0]}"
    if wrong:
        trio = " ".join(f"{name}=={number}" for name, number in expected(found["torch"]).items())
        mend = f"pip install {trio}, all of one index (https://download.pytorch.org/whl/...)"
        return Finding("torch trio", "broken", wrong, mend)
    return Finding("torch trio", "fine", said)


def expected(torch: str) -> dict[str, str]:
    """The releases of one torch release; torchaudio ends with 2.11 and goes with later ones."""
    minor = int(torch.split(".")[1])
    audio = f"2.{min(minor, 11)}.0"
    return {"torch": f"2.{minor}.0", "torchvision": f"0.{minor + 15}.0", "torchaudio": audio}


def misfit(found: dict[str, str]) -> str:
    """What of three versions does not belong together; nothing if they do."""
    for name, wanted in expected(found["torch"]).items():
        if found[name].split(".")[:2] != wanted.split(".")[:2]:
            wanted = ".".join(wanted.split(".")[:2])
            return f"torch {found['torch']} goes with {name} {wanted}, found {found[name]}"
    builds = {name: number.partition("+")[2] for name, number in found.items()}
    named = {name: build for name, build in builds.items() if build}
    if len(set(named.values())) > 1:
        return "builds differ: " + ", ".join(f"{n} for {b}" for n, b in named.items())
    return ""


def check_devices() -> Finding:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.cuda.is_available() and gpus:
        torch.ones(2, device="cuda").sum().item()  # raises where the driver does not fit
        return Finding("devices", "fine", ", ".join(gpus))
    if torch.backends.mps.is_available():
        return Finding("devices", "fine", "Apple GPU (mps)")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    said = f"CPU, {cores} cores, {torch.get_num_threads()} threads"
    if shutil.which("nvidia-smi"):
        mend = "install a torch built for CUDA, and a driver that is new enough for it"
        return Finding("devices", "lacking", f"{said}; an NVIDIA GPU is not usable", mend)
    return Finding("devices", "fine", said)


def check_bf16() -> Finding:
    """Whether training.precision bf16 pays: everywhere it works, on some devices it is slow."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.autocast(device, torch.bfloat16):
        product = torch.ones(4, 4, device=device) @ torch.ones(4, 4, device=device)
    if product.dtype != torch.bfloat16 or product[0, 0].item() != 4:
        return Finding("bf16", "lacking", f"wrong on {device}", "use training.precision no")
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        information = Path("/proc/cpuinfo")
        flags = information.read_text(errors="replace") if information.is_file() else "bf16"
        native = "bf16" in flags
    if not native:
        return Finding("bf16", "lacking", f"emulated on this {device}", "use training.precision no")
    return Finding("bf16", "fine", f"native on this {device}")


def check_sound() -> Finding:
    """Whether a clip that was just written is read again, in each format."""
    import soundfile

    from mmtransfer.encoders.decoding import decode_audio

    rate, wrong = 16000, []
    samples = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate // 4) / rate).astype(np.float32)
    formats = {"WAV": None, "FLAC": None, "OGG": "VORBIS", "MP3": None}
    for name, kind in formats.items():
        file = io.BytesIO()
        try:
            soundfile.write(file, samples, rate, format=name, subtype=kind)
            heard = decode_audio(file.getvalue())
        except (ValueError, OSError, RuntimeError) as error:
            wrong.append(f"{name} ({str(error).strip()})")
            continue
        if heard.rate != rate or abs(len(heard.samples) - len(samples)) > 3000:
            wrong.append(f"{name} ({len(heard.samples)} samples of {len(samples)})")
    mend = "pip install --force-reinstall soundfile (its wheels bring libsndfile 1.1 or newer)"
    if len(wrong) == len(formats):
        return Finding("sound", "broken", "no format can be decoded: " + ", ".join(wrong), mend)
    if wrong:
        return Finding("sound", "lacking", "not decoded: " + ", ".join(wrong), mend)
    return Finding("sound", "fine", f"{', '.join(formats)} decoded")


def check_pictures() -> Finding:
    """Whether a picture that was just written is read again, in each format."""
    from PIL import Image

    from mmtransfer.encoders.decoding import decode_image

    wrong = []
    formats = ("PNG", "JPEG", "WEBP")
    for name in formats:
        file = io.BytesIO()
        try:
            Image.new("RGB", (16, 16), (200, 30, 30)).save(file, name)
            red = decode_image(file.getvalue()).getpixel((8, 8))
        except (ValueError, OSError, KeyError) as error:
            wrong.append(f"{name} ({error})")
            continue
        if not isinstance(red, tuple) or max(abs(a - b) for a, b in zip(red, (200, 30, 30))) > 12:  # noqa: B905
            wrong.append(f"{name} (colour {red})")
    mend = "pip install --force-reinstall pillow"
    if len(wrong) == len(formats):
        return Finding("pictures", "broken", "no format is decoded: " + ", ".join(wrong), mend)
    if wrong:
        return Finding("pictures", "lacking", "not decoded: " + ", ".join(wrong), mend)
    return Finding("pictures", "fine", f"{', '.join(formats)} decoded")


def check_cache(given: Path | None = None) -> Finding:
    """Whether features can be stored, and how much room there is."""
    from mmtransfer.data.store import cache_directory

    directory = cache_directory(given)
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    other = "name another directory with $MMTRANSFER_CACHE or training.cache"
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Finding("cache", "broken", f"{directory} cannot be written", other)
    free = shutil.disk_usage(there).free
    said = f"{directory}, {free / 1e9:.1f} GB free"
    if free < LEAST_FREE:
        return Finding("cache", "lacking", said, f"mmtransfer cache prune, or {other}")
    return Finding("cache", "fine", said)


def check_hub(timeout: float) -> Finding:
    """Whether encoders and data can be loaded by hub id."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        mend = f"unset HF_HUB_OFFLINE, or {OFFLINE}"
        return Finding("hub", "lacking", "switched off by HF_HUB_OFFLINE", mend)
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    if not re.match(r"https?://", constants.ENDPOINT):
        return Finding("hub", "lacking", f"HF_ENDPOINT is {constants.ENDPOINT!r}", "unset it")
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            pass
    except urllib.error.HTTPError as error:  # an answer, if an unkind one
        if error.code >= 500:
            return Finding("hub", "lacking", f"{constants.ENDPOINT}: {error}", "try again later")
    except OSError as error:
        reason = getattr(error, "reason", error)
        mend = f"look at network and HTTPS_PROXY, or {OFFLINE}"
        return Finding("hub", "lacking", f"{constants.ENDPOINT} not reached: {reason}", mend)
    return Finding("hub", "fine", f"{constants.ENDPOINT} answers")


def check_espeak() -> Finding:
    """Whether `mmtransfer data retail` can speak; nothing else needs it."""
    from mmtransfer.data.speech import check_program

    try:
        return Finding("espeak-ng", "fine", check_program())
    except (OSError, ValueError) as error:
        said = str(error).split(":")[0]
        return Finding("espeak-ng", "lacking", said, f"for `mmtransfer data retail`: {ESPEAK}")


def show(findings: list[Finding]) -> None:
    """A table, and below it what to do."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    marks = {"fine": "[green]fine[/green]", "lacking": "[yellow]lacking[/yellow]"}
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        mark = marks.get(finding.state, f"[red]{finding.state}[/red]")
        table.add_row(finding.name, mark, escape(finding.found))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for finding in findings:
        if finding.mend:
            console.print(f"{finding.name}: {escape(finding.mend)}", highlight=False)
