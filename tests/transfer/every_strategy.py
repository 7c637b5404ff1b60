"""Every registered strategy and method on the same few rows; run by test_every_strategy.py."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from mmtransfer.methods.base import Method
from mmtransfer.model import TransferModel
from mmtransfer.registry import methods, strategies
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.setup import end_processes
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Strategy, build_strategy

ENCODERS = {"picture": "small-cnn?size=8&widths=[4,6]", "reading": "mlp?shape=[3]&widths=[6]"}
#: the last is a task of the source, of which the rows to learn from know nothing
TASKS: dict[str, Any] = {
    "kind": "classification",
    "side": "classification",
    "before": {"name": "classification", "classes": ["a", "b"]},
}
RATES = {"lr": 1e-2, "encoder_lr": 1e-2}
SHORT = {"epochs": 2, **RATES}
#: options of presets that have other ones
PRESETS: dict[str, dict[str, Any]] = {
    "linear_probe": {"epochs": 2},
    "lp_ft": {"epochs": 1, "probe_epochs": 1, **RATES},
    "wise_ft": {"epochs": 1, "probe_epochs": 1, **RATES},
    "gradual_unfreezing": {"epochs": 1, "last_epochs": 1, "steps": 2, **RATES},
    "top_stages": {"stages": 0.5, **SHORT},
}
#: of methods that need some, or that would do nothing in so few steps
METHODS: dict[str, dict[str, Any]] = {
    "co_tuning": {"head": "head.safetensors", "modality": "reading"},
    "distillation": {"teacher": "teacher"},
    "fitnet": {"teacher": "teacher"},
    "rkd": {"teacher": "teacher"},
    "gradient_blending": {"share": 0.4, "every": 1},
    "self_training": {"threshold": 0.1, "ramp": 0},
    "modality_dropout": {"rate": 0.5},
}
PLANS = [*strategies.names(), *(f"full and {name}" for name in methods.names())]


def rows(count: int, seed: int, *targets: str) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    labels = {"kind": "xyz", "side": "lr", "before": "ab"}
    return [
        {
            "picture": rng.integers(0, 256, (8, 8, 3)).astype(np.uint8) if i % 5 else None,
            "reading": rng.normal(i % 3, 1, 3) if i % 7 else None,
        }
        | {target: labels[target][i % len(labels[target])] for target in targets}
        for i in range(count)
    ]


def new_model() -> TransferModel:
    model = build_model(ENCODERS, TASKS, rows(24, 0, *TASKS), "gated", 8, seed=0)
    for encoder in model.encoders.values():
        encoder.pretrained = True  # batch norm is still: its batch is another on each process
    return model


def prepare(folder: Path) -> None:
    """A teacher and the head of a source."""
    new_model().save_pretrained(folder / "teacher")
    save_file({"weight": torch.eye(5, 6), "bias": torch.zeros(5)}, folder / "head.safetensors")


def plan(name: str, folder: Path) -> Strategy:
    preset, _, method = name.partition(" and ")
    asked = dict(METHODS.get(method, {}))
    asked |= {k: str(folder / asked[k]) for k in ("head", "teacher") if k in asked}
    listed = [{"name": method, **asked}] if method else []
    return build_strategy(preset, listed, **PRESETS.get(preset, SHORT))


class BrokenOff(Trainer):
    """Ends after the checkpoint of the fourth step, as nothing else would."""

    def checkpoint(self) -> None:
        super().checkpoint()
        if self.step == 4:
            raise KeyboardInterrupt


def fit(
    strategy: Strategy,
    output: Path | None = None,
    resume: bool = False,
    kind: type[Trainer] = Trainer,
) -> Trainer:
    """Two epochs of three steps."""
    options = TrainingOptions(batch_size=8, progress=False, track=[], checkpoint_steps=1)
    further = {"unlabelled": rows(17, 1), "source": rows(9, 2, "before")}
    train = rows(22, 0, "kind", "side")
    trainer = kind(new_model(), train, None, strategy, options, output, further=further)
    trainer.fit(resume)
    return trainer


def keeps_state(method: Method) -> bool:
    return method.module is not None or type(method).state_dict is not Method.state_dict


def result(trainer: Trainer) -> dict[str, Any]:
    trainer.close()
    return {"losses": trainer.losses, "weights": trainer.model.state_dict()}


def main(folder: str, output: str) -> None:
    found: dict[str, dict[str, Any]] = {"whole": {}, "resumed": {}}
    for name in PLANS:
        trainer = fit(plan(name, Path(folder)))
        found["whole"][name], accelerator = result(trainer), trainer.accelerator
        stateful = any(map(keeps_state, trainer.strategy.methods))
        if stateful and accelerator.num_processes > 1:
            broken = Path(folder) / f"{name} broken off"
            with suppress(KeyboardInterrupt):
                fit(plan(name, Path(folder)), broken, kind=BrokenOff)
            found["resumed"][name] = result(fit(plan(name, Path(folder)), broken, resume=True))
    end_processes()
    if accelerator.is_main_process:
        torch.save(found, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
