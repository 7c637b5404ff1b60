"""The page about evaluation: its files are there, its code runs."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmtransfer import evaluation
from mmtransfer.training.run import build_model

PAGE = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_table_names_files_that_are_there() -> None:
    folder = Path(str(evaluation.__file__)).parent
    named = re.findall(r"\| `(\w+\.py)` \|", PAGE)
    assert len(named) == 10
    assert all((folder / name).is_file() for name in named)


def test_the_code_judges_a_model_and_draws_scores_by_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"image": [1.0, 0.0], "text": [0.0, 1.0]}
    rows = [kinds | {"product": "ab"[k % 2]} for k in range(100)]
    for split in ("train", "validation", "test"):
        some = rows if split == "train" else rows[:10]
        pq.write_table(pa.Table.from_pylist(some), tmp_path / f"{split}.parquet")
    encoders = dict.fromkeys(kinds, "mlp?shape=[2]&widths=[4]")
    model = build_model(encoders, {"product": "classification"}, rows, "gated", 4)
    model.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    judged, by_labels = BLOCKS
    space: dict = {}
    exec(judged.replace("/data/retail", ".").replace("runs/retail/model", "model"), space)
    assert space["results"]["tasks"]["product"]["labelled"] == 10
    own = re.sub(r"^encoders = .*$", f"encoders = {encoders}", by_labels, flags=re.M)
    assert own != by_labels
    exec(own.replace("epochs=5", "epochs=1"), space)
    assert [point.labels for point in space["points"]] == [25, 50, 100]
    assert all(len(point.scores) == 3 for point in space["points"])
    with Image.open("labels.png") as picture:
        assert min(picture.size) > 200
