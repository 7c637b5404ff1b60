"""The part of the encoder contract that partial training rests on: stages and cuts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmtransfer.encoders.base import Encoder
from mmtransfer.features import Features
from mmtransfer.model import hold_still
from mmtransfer.testing.contract import require, saying


def features_of(encoder: Encoder, samples: list[Any], of: str = "") -> Features:
    """What the encoder gives for these raw values."""
    with saying(f"collate{of}"):
        inputs = encoder.collate(samples)
    require(
        isinstance(inputs, dict) and all(isinstance(v, Tensor) for v in inputs.values()),
        "collate must give a dictionary of tensors",
    )
    require(
        not any(v.requires_grad for v in inputs.values()),
        "collate touches parameters, but it runs in loader workers, which have none",
    )
    with saying(f"forward{of} on what collate gave ({', '.join(inputs)})"):
        features = encoder(**inputs)
    require(
        isinstance(features, Features), f"forward gave a {type(features).__name__}, not Features"
    )
    return features


def check_stages(encoder: Encoder) -> None:
    """Every parameter lies in at most one stage, and every stage has parameters."""
    seen: dict[int, int] = {}
    own = {id(p) for p in encoder.parameters()}
    with saying("stages"):
        stages = list(encoder.stages)
    require(bool(stages), "stages is empty: nothing could ever be fine-tuned")
    for number, stage in enumerate(stages):
        require(
            isinstance(stage, nn.Module),
            f"stage {number} is a {type(stage).__name__}, expected a module",
        )
        parameters = list(stage.parameters())
        require(bool(parameters), f"stage {number} has no parameters")
        for parameter in parameters:
            require(id(parameter) in own, f"stage {number} is no part of the encoder")
            before = seen.setdefault(id(parameter), number)
            require(before == number, f"stages {before} and {number} share a parameter")


def check_order(encoder: Encoder, samples: list[Any]) -> None:
    """Stages start in their order, as far as the encoder calls their modules."""
    started: dict[int, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda *_, number=number: started.setdefault(number))
        for number, stage in enumerate(encoder.stages)
        for module in stage.modules()
    ]
    with torch.no_grad():
        features_of(encoder, samples)
    for handle in handles:
        handle.remove()
    order = list(started)
    require(order == sorted(order), f"stages go from input to output, but start in order {order}")


def check_cuts(encoder: Encoder, samples: Sequence[Any], tolerance: float = 1e-4) -> None:
    """At each of `cuts`, `above` of what `below` gives is `forward`, stored row by row too."""
    whole = features_of(encoder, list(samples))
    for depth in encoder.cuts:
        where = f"cut {depth}: "
        require(0 < depth < len(encoder.stages), f"{where}lies between no two stages")
        with torch.no_grad(), saying(f"{where}below()"):
            together = encoder.below(depth, **encoder.collate(list(samples)))
            alone = [encoder.below(depth, **encoder.collate([sample])) for sample in samples]
        rows = [f.tokens[0, f.mask[0]] for f in alone]
        masks = [torch.ones(len(row), dtype=torch.bool) for row in rows]
        stored = Features(pad_sequence(rows, True), pad_sequence(masks, True))
        for activations, what in ((together, "as they are"), (stored, "padded row by row")):
            encoder.zero_grad()
            with saying(f"{where}above() of the activations {what}"):
                found = encoder.above(depth, activations)
            gap = float((found.pooled() - whole.pooled()).abs().max().detach())
            require(
                gap <= tolerance * (1 + float(whole.pooled().abs().max().detach())),
                f"{where}above() of the activations {what} is not forward() (gap {gap:.2g})",
            )
            require(
                torch.equal(found.mask.sum(1), whole.mask.sum(1)),
                f"{where}above() of the activations {what} gives another number of real tokens",
            )
            found.pooled().square().sum().backward()
            for number, stage in enumerate(encoder.stages):
                for name, parameter in stage.named_parameters():
                    reached = parameter.grad is not None
                    require(
                        reached == (number >= depth) or not parameter.requires_grad,
                        f"{where}parameter {name!r} of stage {number} "
                        f"{'gets a' if reached else 'gets no'} gradient from above()",
                    )
    encoder.zero_grad()
    _check_cuts_in_training(encoder, samples[0], tolerance)


def _check_cuts_in_training(encoder: Encoder, sample: Any, tolerance: float) -> None:
    """With all below a cut frozen, `above` of what is stored trains as `forward` does."""
    modes = {module: module.training for module in encoder.modules()}
    trained = [p for p in encoder.parameters() if p.requires_grad]
    inputs = encoder.collate([sample])
    with torch.no_grad(), torch.random.fork_rng():
        for depth in encoder.cuts:
            activations = encoder.eval().below(depth, **inputs)
            encoder.requires_grad_(False)
            for stage in encoder.stages[depth:]:
                stage.requires_grad_(True)
            encoder.train()
            hold_still(encoder, batch_norm=True)
            for stage in encoder.stages:
                stage.eval()  # what drop-out draws there depends on the padding, which may differ
            torch.manual_seed(0)
            found = encoder.above(depth, activations).pooled()
            torch.manual_seed(0)
            gap = float((found - encoder(**inputs).pooled()).abs().max())
            require(
                gap <= tolerance * (1 + float(found.abs().max())),
                f"cut {depth}: where all below is frozen, above() is not forward() in training "
                f"mode (gap {gap:.2g}): is there drop-out that belongs to no stage?",
            )
    encoder.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    for module, mode in modes.items():
        module.training = mode
