"""Strategies and penalties that are compared with few labels, and what `--tune` tries of each.

Rates are those of AdamW; penalties stand beside plain full fine-tuning at its own best rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TWICE = "full, twice the epochs"
COMPONENTS = 128  # that a mapping keeps, of 1280 features
FULL = {"name": "full", "encoder_lr": 3e-4}


def tuned(name: str, encoder_lr: float, **options: Any) -> dict[str, Any]:
    return {"strategy": {"name": name, "encoder_lr": encoder_lr, **options}}


def beside(method: str, **options: Any) -> dict[str, Any]:
    """Plain full fine-tuning with one method."""
    return {"strategy": FULL, "methods": [{"name": method, **options}]}


def head(name: str, mapping: str = "none", **options: Any) -> dict[str, Any]:
    """Frozen features and a classical head; the mapping is fitted on all photos of training."""
    return {"head": name, "mapping": mapping, "components": COMPONENTS, "options": options}


#: as `--tune` found them
MEMBERS: dict[str, dict[str, Any]] = {
    "from scratch": {"scratch": True, "longer": 3, **tuned("full", 2e-3)},
    "full": {"strategy": FULL},
    TWICE: {"longer": 2, "strategy": FULL},
    "linear_probe": {"strategy": {"name": "linear_probe", "lr": 2e-3}},
    "top_stages": tuned("top_stages", 3e-4, stages=6),
    "layer_decay": tuned("layer_decay", 1e-3, decay=0.75),
    "gradual_unfreezing": tuned("gradual_unfreezing", 1e-3, layer_decay=0.8),
    "lp_ft": tuned("lp_ft", 1e-3),
    "wise_ft": tuned("wise_ft", 3e-4),
    "bitfit": tuned("bitfit", 3e-2),
    "norm_only": tuned("norm_only", 1e-2),
    "lora": tuned("lora", 3e-3),
    "dora": tuned("dora", 3e-3),
    "ia3": tuned("ia3", 3e-2),
    "l2_sp": tuned("l2_sp", FULL["encoder_lr"], alpha=0.1),
    "delta": beside("delta", weight=1e-3),
    "bss": beside("bss", weight=1e-5),
    "co_tuning": beside("co_tuning", weight=1.0),
    "ema": beside("ema", decay=0.9),
    "sam": beside("sam", rho=0.01),
    "features, logistic": head("logistic", C=1.0),
    "features, ridge": head("linear", alpha=100.0),
    "features, svm": head("svm", C=10.0),
    "features, knn": head("knn", n_neighbors=1),
    "features, pca + logistic": head("logistic", "pca", C=0.1),
    "features, whitening + logistic": head("logistic", "whitening", C=0.1),
}
#: what `--tune` tries: where the option is, and its values
GRID: dict[str, tuple[str, tuple[Any, ...]]] = {
    "from scratch": ("encoder_lr", (5e-4, 2e-3, 5e-3)),
    "full": ("encoder_lr", (1e-4, 3e-4, 1e-3)),
    TWICE: ("encoder_lr", (1e-4, 3e-4, 1e-3)),
    "linear_probe": ("lr", (5e-4, 2e-3, 5e-3)),
    "top_stages": ("encoder_lr", (1e-4, 3e-4, 1e-3)),
    "layer_decay": ("encoder_lr", (1e-4, 3e-4, 1e-3)),
    "gradual_unfreezing": ("encoder_lr", (1e-4, 3e-4, 1e-3)),
    "lp_ft": ("encoder_lr", (1e-4, 3e-4, 1e-3)),
    "wise_ft": ("encoder_lr", (1e-4, 3e-4, 1e-3)),
    "bitfit": ("encoder_lr", (3e-3, 1e-2, 3e-2)),
    "norm_only": ("encoder_lr", (3e-3, 1e-2, 3e-2)),
    "lora": ("encoder_lr", (1e-3, 3e-3, 1e-2)),
    "dora": ("encoder_lr", (1e-3, 3e-3, 1e-2)),
    "ia3": ("encoder_lr", (1e-2, 3e-2, 1e-1)),
    "l2_sp": ("alpha", (0.01, 0.1, 1.0)),
    "delta": ("weight", (1e-3, 1e-2, 1e-1)),
    "bss": ("weight", (1e-5, 1e-4, 1e-3)),
    "co_tuning": ("weight", (0.3, 1.0, 2.3)),
    "ema": ("decay", (0.9, 0.97, 0.99)),
    "sam": ("rho", (0.005, 0.01, 0.02)),
    "features, logistic": ("C", (1e-2, 1e-1, 1.0)),
    "features, ridge": ("alpha", (30.0, 100.0, 1000.0)),
    "features, svm": ("C", (1.0, 10.0, 100.0)),
    "features, knn": ("n_neighbors", (1, 3, 5)),
    "features, pca + logistic": ("C", (1e-2, 1e-1, 1.0)),
    "features, whitening + logistic": ("C", (0.1, 1.0, 10.0)),
}


def variants(name: str, spec: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    option, values = GRID[name]
    found = []
    for value in values:
        tried = dict(spec)
        if "head" in spec:
            tried["options"] = spec["options"] | {option: value}
        elif spec.get("methods"):
            tried["methods"] = [spec["methods"][0] | {option: value}]
        else:
            tried["strategy"] = spec["strategy"] | {option: value}
        found.append((f"{name} {option}={value:g}", tried))
    return found
