"""`mmtransfer data`: sets are built, counted and told apart, with one line per mistake."""

from __future__ import annotations

import inspect
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from mmtransfer.cli import main
from mmtransfer.commands import data as commands
from mmtransfer.data.av_digits import write_av_digits
from mmtransfer.data.checksum import checksum
from mmtransfer.data.retail import write_retail
from mmtransfer.data.rows import load_rows


def failure(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr with which the command ended."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    """Thirty pictures and recordings of digits."""
    rng = np.random.default_rng(0)
    directories = tmp_path / "mnist", tmp_path / "fsdd"
    for directory in directories:
        directory.mkdir()
        rows = []
        for digit in [*range(10)] * 3:
            buffer = io.BytesIO()
            if directory.name == "mnist":
                Image.fromarray(rng.integers(0, 255, (4, 4), np.uint8)).save(buffer, "PNG")
            else:
                soundfile.write(buffer, rng.normal(0, 0.1, 99), 8000, format="FLAC")
            column = "image" if directory.name == "mnist" else "audio"
            rows.append({column: buffer.getvalue(), "digit": digit})
        for split in ("train", "test"):
            pq.write_table(pa.Table.from_pylist(rows), directory / f"{split}.parquet")
    return directories


def test_av_digits(
    sources: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "av-digits", tmp_path / "set", "--mnist", sources[0], "--fsdd", sources[1]]
    main([*map(str, command), "--seed", "4", "--energy", "1", "--snr", "-10"])
    digest = checksum(load_rows(tmp_path / "set"))
    counts = "train 20, validation 10, test 30 rows"
    assert capsys.readouterr().out == f"{tmp_path / 'set'}: {counts}, checksum {digest}\n"
    other = write_av_digits(tmp_path / "other", *sources, seed=4, energy=1.0, snr=-10.0)
    assert other["checksum"] == digest

    main(["data", "checksum", str(tmp_path / "set")])
    assert capsys.readouterr().out == f"{tmp_path / 'set'}: {counts}, checksum {digest}\n"

    assert "--overwrite" in failure(command, capsys)
    main([*map(str, command), "--snr", "[-3, 3]", "--overwrite"])
    assert digest not in capsys.readouterr().out
    assert "energy must be above 0" in failure([*command, "--overwrite", "--energy", 0], capsys)
    lost = ["data", "av-digits", tmp_path / "new", "--mnist", tmp_path / "nowhere"]
    assert f"no such data directory: {tmp_path / 'nowhere'}" in failure(lost, capsys)


def test_retail(
    checkout: Path, espeak: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "retail", str(checkout), str(tmp_path / "set")]
    main(command)
    shown = re.fullmatch(
        r"(.*): train 4, validation 4, test 4 rows, checksum ([0-9a-f]{32})\n",
        capsys.readouterr().out,
    )
    assert shown is not None
    assert shown[1] == str(tmp_path / "set")
    assert shown[2] == write_retail(checkout, tmp_path / "again")["checksum"]
    assert "--overwrite" in failure(command, capsys)
    main([*command, "--seed", "1", "--overwrite"])
    assert shown[2] not in capsys.readouterr().out
    nowhere = str(tmp_path / "nowhere")
    assert f"no such checkout: {nowhere}" in failure(["data", "retail", nowhere, nowhere], capsys)


def test_the_defaults_are_those_of_the_functions() -> None:
    for function, builds in (
        (commands.data_av_digits, write_av_digits),
        (commands.data_retail, write_retail),
    ):
        named = inspect.signature(builds).parameters
        for name, parameter in inspect.signature(function).parameters.items():
            if name in named and parameter.default not in (None, inspect.Parameter.empty):
                assert parameter.default == named[name].default, name
