"""The tables of the fusion page are those of the results that lie in the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmtransfer.benchmark.report import markdown

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results" / "fusion").glob("*_results.json"))


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_tables_are_those_of_the_results(file):
    found = json.loads(file.read_text())
    tables = markdown(found["summary"], found["removal"])
    page = (ROOT / "docs" / "fusion.md").read_text()
    assert tables in page
    assert f"checksum `{found['data']['checksum']}`" in page
    assert not found["failures"]
    for picture in ("accuracy", "subsets", "noise"):
        name = file.name.replace("results.json", f"{picture}.png")
        assert f"../benchmarks/results/fusion/{name}" in page
        assert (file.parent / name).is_file()
