"""The matrix: every strategy trains every family of encoders, and only what it says."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mmtransfer.data.collate import Collate
from mmtransfer.encoders.base import Encoder, build_encoder
from mmtransfer.encoders.torchaudio import TorchaudioEncoder
from mmtransfer.model import TransferModel
from mmtransfer.registry import encoders, strategies
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import build_strategy
from mmtransfer.transfer.parts import chosen_parameters

from .test_keyword_transformer import small as small_kwt
from .test_sentence import write
from .test_torchaudio import RATE, SMALL

TASKS = {"kind": "classification"}
RATES = {"lr": 1e-2, "encoder_lr": 1e-2}
#: options of each preset for a run of few steps
PRESETS: dict[str, dict[str, Any]] = {
    "linear_probe": {"epochs": 1},
    "lp_ft": {"epochs": 1, "probe_epochs": 1, **RATES},
    "gradual_unfreezing": {"epochs": 1, "last_epochs": 1, "steps": 2, **RATES},
    "top_stages": {"epochs": 1, "stages": 0.5, **RATES},
}
SHORT = {"epochs": 1, **RATES}


@pytest.fixture(scope="module")
def family(
    made: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str | Encoder]:
    """A tiny encoder of every registered name; some names have several."""
    folder = tmp_path_factory.mktemp("sentence") / "model"
    shutil.copytree(made("bert").directory, folder)
    kinds = {"": "models.Transformer", "1_Pooling": "models.Pooling"}
    modules = [{"type": f"sentence_transformers.{kind}", "path": p} for p, kind in kinds.items()]
    write(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir()
    write(folder / "1_Pooling/config.json", {"word_embedding_dimension": 16})
    found: dict[str, str | Encoder] = {
        "hf": made("resnet").spec,
        "hf 2": made("distilbert").spec,
        "sentence": f"sentence:{folder}",
        "torchvision": "torchvision:squeezenet1_1?size=32",
        "timm": "timm:test_vit?pretrained=false",
        "timm 2": "timm:test_resnet?pretrained=false",
        "torchaudio": TorchaudioEncoder(SMALL | {"encoder_layer_drop": 0.0}, "Wav2Vec2", RATE),
        "kwt": small_kwt(),
        "mlp": "mlp?size=8&widths=[6,4]",
        "small-cnn": "small-cnn?size=8&widths=[4,6]",
        "spectrogram-cnn": "spectrogram-cnn?rate=1000&n_mels=16&widths=[4,6]",
        "vector": "vector?hidden=[6]&width=4",
        "tiny-vit": "tiny-vit?width=16&layers=2",
        "tiny-bert": "tiny-bert?width=16",
        "tiny-wav2vec2": "tiny-wav2vec2?width=16&layers=1",
        "extended": "extended:small-cnn?size=8&widths=[4,6]",
    }
    # "saved" is any of the others.
    assert {name.split()[0] for name in found} == set(encoders.names()) - {"saved"}
    return found


@pytest.fixture(scope="module")
def rows(picture: Any, clip: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "image": picture(k, (24, 24)),
            "text": f"row {k}",
            "audio": clip(k, 0.5, 4000),
            None: rng.normal(k % 2, 1, 3).tolist(),
            "kind": "xy"[k % 2],
        }
        for k in range(4)
    ]


@pytest.fixture(scope="module")
def data(family: Any, rows: Any) -> tuple[TransferModel, list[dict[str, Any]]]:
    """A model of all families together, and rows with a column for each."""
    built = {name: build_encoder(spec) for name, spec in family.items()}
    table = [
        {name: row[encoder.modality] for name, encoder in built.items()} | {"kind": row["kind"]}
        for row in rows
    ]
    return build_model(built, TASKS, table, "concat", 8), table


def moved(before: dict[str, torch.Tensor], encoder: Encoder) -> set[str]:
    return {n for n, p in encoder.named_parameters() if not torch.equal(before[n], p)}


@pytest.mark.slow
@pytest.mark.parametrize("preset", strategies.names())
def test_every_strategy_trains_every_family(data: Any, preset: str) -> None:
    template, table = data
    model = copy.deepcopy(template)
    start = {
        name: {n: p.detach().clone() for n, p in encoder.named_parameters()}
        for name, encoder in model.encoders.items()
    }
    strategy = build_strategy(preset, **PRESETS.get(preset, SHORT))
    options = TrainingOptions(batch_size=4, progress=False, track=[])
    trainer = Trainer(model, table, None, strategy, options)
    trainer.fit()
    assert all(math.isfinite(loss) for loss in trainer.losses)
    for name, encoder in model.encoders.items():
        changed = moved(start[name], encoder)
        if preset == "linear_probe":
            assert not changed, name
        elif preset in ("bitfit", "norm_only"):
            allowed = set(chosen_parameters(encoder, strategy.phases[0].parts))
            assert changed <= allowed, name
            assert bool(changed) == bool(allowed), name
        elif strategy.adapters:
            assert set(start[name]) == {n for n, _ in encoder.named_parameters()}, name
            assert changed, name
            assert preset == "ia3" or not any(n.endswith("bias") for n in changed), name
        else:
            ids = {id(p): n for n, p in encoder.named_parameters()}
            by_stage = [any(ids[id(p)] in changed for p in s.parameters()) for s in encoder.stages]
            count = len(by_stage)
            top = math.ceil(count / 2) if preset == "top_stages" else count
            assert by_stage == [False] * (count - top) + [True] * top, name
    trainer.close()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["full", "lora"])
def test_what_was_trained_is_saved_and_loaded(data: Any, preset: str, tmp_path: Any) -> None:
    template, table = data
    model = copy.deepcopy(template)
    options = TrainingOptions(batch_size=4, progress=False, track=[])
    trainer = Trainer(model, table, None, build_strategy(preset, **SHORT), options)
    trainer.fit()
    trainer.save(tmp_path / "model")
    trainer.close()
    found = TransferModel.from_pretrained(tmp_path / "model")
    batch = Collate(model.encoders, {})(list(enumerate(table)))
    with torch.no_grad():
        expected = model.eval()(batch.inputs, len(table)).logits["kind"]
        torch.testing.assert_close(found(batch.inputs, len(table)).logits["kind"], expected)
