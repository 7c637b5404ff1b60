"""The page about data sets: its commands are read, its figures are those of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mmtransfer.cli import main
from mmtransfer.data import retail, speech
from mmtransfer.data.av_digits import FSDD, MNIST
from mmtransfer.data.checksum import checksum
from mmtransfer.data.rows import load_rows

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
COMMANDS = re.findall(r"^mmtransfer (data [^#\n]*)", PAGE, re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_are_read(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The sources are not there, which is found out after the arguments are understood."""
    with pytest.raises(SystemExit) as ended:
        main([*shlex.split(line), "--print_config"])
    assert ended.value.code == 0, capsys.readouterr().err


def test_the_figures_are_those_of_the_code() -> None:
    assert len(COMMANDS) == 5
    assert f"`{MNIST}`" in PAGE
    assert f"`{FSDD}`" in PAGE
    text = " ".join(PAGE.split())
    percent = {retail.DESCRIBED: "30 % a sentence", retail.NEIGHBOUR: "15 % of the labels"}
    percent |= {retail.CONFUSED: "5 % are taken", retail.DELETED: "2.5 % deleted"}
    percent |= {retail.INSERTED: "1 % followed"}
    for share, words in percent.items():
        assert float(words.split()[0]) == 100 * share
        assert words in text
    assert f"probability {retail.DROPPED}" in text
    assert len(retail.PHRASES) == 9
    assert "{} to {} words".format(*speech.SPEED) in text
    assert "pitch {} to {}".format(*speech.PITCH) in text
    assert "{:.0f} to {:.0f} dB below".format(*speech.SNR) in text
    assert f"low-passed at {speech.CUTOFF / 1000} kHz" in text
    assert f"{len(speech.ACCENTS)} accents of {len(speech.VARIANTS)} voices" in text


def test_the_published_retail_set_has_its_checksum(shared: Path) -> None:
    splits = load_rows(shared / "data" / "retail")
    assert f"`{checksum(splits)}`" in PAGE
    assert " / ".join(str(len(rows)) for rows in splits.values()) in PAGE
