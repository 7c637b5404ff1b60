"""Pictures of scores that are no shares, of forgetting and of label efficiency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MetricCollection, R2Score

from mmtransfer.encoders.base import build_encoder
from mmtransfer.evaluation import curve_pictures, pictures
from mmtransfer.evaluation.canvas import canvas
from mmtransfer.evaluation.curves import LabelPoint, forgetting
from mmtransfer.evaluation.evaluate import Options, evaluate
from mmtransfer.fusion.base import build_fusion
from mmtransfer.model import TransferModel
from mmtransfer.tasks.base import Task
from mmtransfer.tasks.classification import Classification

QUICK = Options(resamples=20, mapped=40)


class Price(Task):
    """A regression, as a plugin may have one."""

    score = "r2"

    def head(self, width: int) -> nn.Module:
        return nn.Linear(width, 1)

    def encode(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor([math.nan if v is None else float(v) for v in values])

    def labelled(self, targets: Tensor) -> Tensor:
        return ~targets.isnan()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.squeeze(1) - targets).square().nan_to_num()

    def predict(self, logits: Tensor) -> list[dict[str, Any]]:
        return [{"value": float(z)} for z in logits]

    def metrics(self) -> MetricCollection:
        return MetricCollection({"r2": flat(R2Score), "mae": flat(MeanAbsoluteError)})


def flat(metric: Any) -> Any:
    class OfOneOutput(metric):
        def update(self, logits: Tensor, targets: Tensor) -> None:
            super().update(logits.squeeze(1), targets)

    return OfOneOutput()


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Any]:
    """What stands in each picture by its name: title and lengths of the bars."""
    seen: dict[str, Any] = {}

    @contextmanager
    def watched(path: Path, title: str, *size: Any):
        with canvas(path, title, *size) as axes:
            yield axes
            bars = [bar.get_width() for bar in axes.patches]
            seen[path.name] = (title, bars, [line.get_ydata()[0] for line in axes.lines])

    monkeypatch.setattr(pictures, "canvas", watched)
    monkeypatch.setattr(curve_pictures, "canvas", watched)
    return seen


def test_scores_that_are_no_shares_keep_their_scale(rows_of, tmp_path, drawn) -> None:
    torch.manual_seed(0)
    names = ("image", "text")
    encoders = {name: build_encoder("mlp", shape=[4], widths=[8]) for name in names}
    joined = build_fusion("concat", dict.fromkeys(names, 8), 8)
    model = TransferModel(
        encoders, joined, {"label": Classification(list("abc")), "price": Price()}
    )
    rows = [{**row, "price": float(k)} for k, row in enumerate(rows_of(12, 0))]
    found = evaluate(model, rows, output=tmp_path, options=QUICK)
    r2 = found["tasks"]["price"]["metrics"]["r2"]
    accuracy = found["tasks"]["label"]["metrics"]["accuracy"]
    assert r2 < 0
    title, bars, _ = drawn["price-subsets.png"]
    assert (title, bars[0]) == ("price: score with only these modalities", pytest.approx(r2))
    assert drawn["price-noise.png"][2] == [pytest.approx(r2)] * 2
    title, bars, _ = drawn["subsets.png"]
    assert (title, bars[0]) == (
        "score (%) with only these modalities",
        pytest.approx(100 * accuracy),
    )
    assert len(bars) == 3
    for row in rows[1:]:
        row["price"] = None
    found = evaluate(model, rows, output=tmp_path, options=QUICK)
    assert found["tasks"]["price"]["metrics"].keys() == {"rows", "mae", "loss"}
    assert "price-subsets.png" not in found["pictures"]
    assert "subsets.png" in found["pictures"]


def test_forgetting_is_drawn(trained, rows_of, tmp_path, drawn) -> None:
    scores = {"accuracy": 0.9, "loss": 1.0, "rows": 5}
    source = {"before": {"y": scores}, "after": {"y": scores | {"accuracy": 0.6}}}
    run = {"history": [], "source": source}
    found = evaluate(trained, rows_of(9, 3), run=run, output=tmp_path, options=QUICK)
    assert found["forgetting"] == forgetting(source)
    assert "forgetting.png" in found["pictures"]
    assert drawn["forgetting.png"][1] == [0.9, 0.6]
    with Image.open(tmp_path / "forgetting.png") as picture:
        assert min(picture.size) > 200


def test_label_efficiency_is_drawn_with_one_seed_or_several(tmp_path, drawn) -> None:
    points = [LabelPoint(8, (0.5,), 0.5, math.nan), LabelPoint(80, (0.7, 0.9), 0.8, 0.1)]
    curve_pictures.draw_label_efficiency({"a": points, "$b_$": points}, tmp_path / "l.png")
    assert drawn["l.png"][0] == "accuracy by number of labels"
    assert drawn["l.png"][2][0] == 0.5
    assert (tmp_path / "l.png").is_file()
