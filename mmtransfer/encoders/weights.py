"""Weight files without pickled code."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state dict saved by torch, by name.

    Raises `FileNotFoundError` for no file, `ValueError` for one that holds anything but tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no such weights file: {path}")
    if file.suffix == ".safetensors":
        return load_file(file)
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is no state dict of tensors: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no plain state dict: expected tensors by name")
    return state


def fill(model: nn.Module, state: dict[str, Tensor], source: str, without: tuple[str, ...]) -> None:
    """Load a state dict, but for what has a name beginning with one of `without`.

    Raises `ValueError` that says where the architectures differ.
    """
    own = model.state_dict()
    kept = OrderedDict((n, t) for n, t in state.items() if not n.startswith(without))
    # Some classes read the version of their weights there; safetensors has no place for it.
    kept._metadata = getattr(state, "_metadata", own._metadata)  # type: ignore[attr-defined]
    expected = {n: t.shape for n, t in own.items() if not n.startswith(without)}
    problems = [f"{n!r} is missing" for n in expected if n not in kept]
    problems += [f"{n!r} belongs to no part" for n in kept if n not in expected]
    problems += [
        f"{n!r} has shape {tuple(kept[n].shape)}, expected {tuple(shape)}"
        for n, shape in expected.items()
        if n in kept and kept[n].shape != shape
    ]
    if problems:
        raise ValueError(f"{source} comes from another architecture: {'; '.join(problems[:3])}")
    model.load_state_dict(kept, strict=False)
