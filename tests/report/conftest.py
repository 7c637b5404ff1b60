"""A run with pictures, texts and sounds, evaluated; its labels and texts try to be HTML."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from mmtransfer.data.rows import load_rows
from mmtransfer.encoders.base import build_encoder
from mmtransfer.evaluation.evaluate import Options, evaluate
from mmtransfer.fusion.base import build_fusion
from mmtransfer.model import TransferModel
from mmtransfer.tasks.classification import Classification

EVIL = "</title></script><script>alert(1)</script>"
LABELS = ["apple", EVIL, 'pear" onmouseover="alert(2)', "größe & <b>more</b>"]
TEXTS = ["<img src=http://example.org/x onerror=alert(3)>", "{{ 7 * 7 }} round", None, "'\"><svg>"]


@pytest.fixture(scope="session")
def data(tmp_path_factory, picture: Callable[..., bytes], clip: Callable[..., bytes]) -> Path:
    """24 test rows; the pictures are larger than a page wants them."""
    root = tmp_path_factory.mktemp("data")
    rows = [
        {
            "image": None if k % 7 == 6 else picture(k, (700, 500)),
            "text": TEXTS[k % 4],
            "audio": None if k % 5 == 4 else clip(k, 0.4),
            "product": LABELS[k % 4],
        }
        for k in range(24)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "test.parquet")
    return root


@pytest.fixture(scope="session")
def made(tmp_path_factory, data: Path) -> Path:
    """The directory of a run with everything that a run may leave."""
    torch.manual_seed(0)
    specs = {"image": "tiny-vit", "text": "tiny-bert", "audio": "tiny-wav2vec2"}
    encoders = {n: build_encoder(f"{spec}?width=16&layers=1") for n, spec in specs.items()}
    fusion = build_fusion("gated", dict.fromkeys(specs, 16), 8)
    model = TransferModel(encoders, fusion, {"product": Classification(LABELS)}).eval()
    run = tmp_path_factory.mktemp("runs") / "first"
    model.save_pretrained(run / "model")
    options = Options(resamples=50, mistakes=6)
    metrics = metrics_of(0.5)
    rows = load_rows(data)["test"]
    evaluate(model, rows, run=metrics, output=run / "evaluation", options=options)
    describe(run, metrics, {"fusion": "gated", "strategy": f"{EVIL} {{{{ 7 * 7 }}}}"} | specs)
    return run


def metrics_of(accuracy: float) -> dict:
    scores = {"rows": 24, "accuracy": accuracy, "f1_macro": accuracy / 2, "loss": 1.25}
    history = [
        {"phase": 1, "epoch": k, "train_loss": 2 / k, "validation": {"product": scores}}
        for k in range(1, 5)
    ]
    return {
        "test": {"product": scores},
        "single": {name: {"product": {**scores, "accuracy": 0.3}} for name in ("image", "text")},
        "source": {"before": {"product": scores}, "after": {"product": scores}},
        "history": history,
        "seconds": 12.3456,
        "parameters": 1234567,
        "device": "cpu",
    }


def describe(run: Path, metrics: dict, config: dict) -> None:
    run.mkdir(exist_ok=True)
    record = {"time": "2030-01-01", "versions": {"torch": "2.11.0"}, "hardware": {"cpu": EVIL}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "run.json").write_text(json.dumps(record))
    (run / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of its own."""
    shutil.copytree(made, tmp_path / "first")
    return tmp_path / "first"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A run that was not evaluated, under a name that tries to be HTML."""
    run = tmp_path / "<i onclick=alert(4)>second"
    describe(run, metrics_of(0.75), {"fusion": "concat", "strategy": "full", "image": "tiny-vit"})
    return run
