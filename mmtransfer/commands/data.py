"""`mmtransfer data`: build the data sets of the benchmarks, tell data sets by their checksum."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def data_retail(checkout: Path, output: Path, seed: int = 0, overwrite: bool = False) -> None:
    """Build photos, shelf labels and spoken requests of groceries; needs espeak-ng.

    Args:
        checkout: directory of a git checkout of the public Grocery Store Dataset
        output: directory for the parquet files
        seed: of labels, voices and noise
        overwrite: replace a data set that lies there
    """
    from mmtransfer.data.retail import write_retail

    _print_set(output, write_retail(checkout, output, seed, overwrite))


def data_av_digits(
    output: Path,
    mnist: str | None = None,
    fsdd: str | None = None,
    seed: int = 0,
    energy: float = 0.25,
    snr: float | tuple[float, float] = (-16.0, -4.0),
    overwrite: bool = False,
) -> None:
    """Build pairs of a blurred picture and a noisy recording of the same digit.

    Args:
        output: directory for the parquet files
        mnist: directory or hub id of the pictures, by default MNIST from the hub
        fsdd: directory or hub id of the recordings, by default FSDD from the hub
        seed: of the validation split, the pairing and the noise
        energy: share of the pictures' variance that is kept, up to 1
        snr: voice to noise in dB, or [lowest, highest]
        overwrite: replace a data set that lies there
    """
    from mmtransfer.data.av_digits import FSDD, MNIST, write_av_digits

    sources = mnist or MNIST, fsdd or FSDD
    _print_set(output, write_av_digits(output, *sources, seed, energy, snr, overwrite))


def data_checksum(source: str) -> None:
    """Number of rows and checksum of a data set: which one was used?

    Args:
        source: directory or hub id
    """
    from mmtransfer.data.checksum import checksum
    from mmtransfer.data.rows import load_rows

    splits = load_rows(source)
    rows = {split: len(found) for split, found in splits.items()}
    _print_set(source, {"rows": rows, "checksum": checksum(splits)})


def _print_set(where: str | Path, about: dict[str, Any]) -> None:
    counts = ", ".join(f"{split} {count}" for split, count in about["rows"].items())
    print(f"{where}: {counts} rows, checksum {about['checksum']}")
