"""Every code block of the README does what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtransfer.data.products import product_rows
from mmtransfer.encoders.base import build_encoder

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [text for language, text in BLOCKS if language == "bash"]


def test_all_blocks_are_of_a_known_kind():
    assert {language for language, _ in BLOCKS} == {"", "bash", "python"}
    assert len(SHELL) == 2


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON, ids=lambda text: text.split("\n")[0][:40])
def test_python_blocks_run(block, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_make_targets_exist():
    for line in SHELL[0].strip().splitlines():
        command = shlex.split(line, comments=True)
        assert command[0] == "make"
        done = subprocess.run([*command, "-n"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_commands_on_own_data_run(tmp_path):
    """As printed, with small data and small models of the same kind in place of the hub's."""
    (tmp_path / "DATA").mkdir()
    for file, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        table = pa.Table.from_pylist(product_rows(f"target/{split}", rows=32))
        pq.write_table(table, tmp_path / "DATA" / f"{file}.parquet")
    block = SHELL[1].replace("\\\n", " ")
    for spec, tiny in (
        ("google/vit-base-patch16-224", "tiny-vit"),
        ("google-bert/bert-base-uncased", "tiny-bert"),
        ("facebook/wav2vec2-base", "tiny-wav2vec2"),
    ):
        encoder = build_encoder(tiny)
        encoder.model.save_pretrained(tmp_path / tiny)
        encoder.processor.save_pretrained(tmp_path / tiny)
        assert spec in block
        block = block.replace(spec, str(tmp_path / tiny))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for line in block.strip().splitlines():
        done = subprocess.run(
            shlex.split(line),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, (line, done.stderr[-3000:])
    assert len(done.stdout.strip().splitlines()) == 32  # one prediction per row
    assert '"weights"' in done.stdout
