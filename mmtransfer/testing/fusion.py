"""The fusion contract."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtransfer.features import Features, Fused
from mmtransfer.fusion.base import Fusion
from mmtransfer.testing.contract import (
    check_registered,
    check_saved_form,
    require,
    same_numbers,
    saying,
)


def random_features(
    widths: dict[str, int], rows: int, generator: torch.Generator, missing: bool = True
) -> dict[str, Features]:
    """Features of 1 to 4 tokens per row and modality; every row keeps at least one modality.

    missing: with several modalities and rows, each is absent in a row and present in another
    """
    features = {}
    for number, (name, width) in enumerate(widths.items()):
        lengths = torch.randint(0 if missing else 1, 5, (rows,), generator=generator)
        if number == 0:
            lengths.clamp_(min=1)
        if missing and len(widths) > 1 and rows > 1:
            lengths[(number + 1) % rows] = 0
        lengths[number % rows] = 4
        tokens = torch.randn(rows, 4, width, generator=generator)
        features[name] = Features(tokens, torch.arange(4) < lengths.unsqueeze(1))
    return features


class Outcome(nn.Module):
    """A fusion with a head: tokens (B, T, D), masks (B, T) by modality -> (B, width + 3)."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion
        self.head = fusion.head(lambda width: nn.Linear(width, 3))

    def forward(self, tokens: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        fused = self.fusion({name: Features(tokens[name], masks[name]) for name in tokens})
        return torch.cat([fused.vector, self.fusion.decide(self.head, fused)], 1)

    def of(self, features: dict[str, Features]) -> Tensor:
        found: Tensor = self(*tensors(features))
        return found


def tensors(features: dict[str, Features]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return {n: f.tokens for n, f in features.items()}, {n: f.mask for n, f in features.items()}


def check_fusion(build: Callable[[dict[str, int], int], Fusion], tolerance: float = 1e-5) -> None:
    """Verify the fusion contract for 1, 2, 3 and 5 modalities.  Raises `ContractError`.

    Gradients reach every parameter; the saved form is whole; what a row gives depends on nothing
    but what it has; dtype and device follow the input; it can be compiled and exported.

    build: makes the fusion from (widths, width), e.g. the class itself
    """
    for count in (1, 2, 3, 5):
        torch.manual_seed(count)
        widths = {f"m{k}": 4 + k for k in range(count)}
        features = random_features(widths, 6, torch.Generator().manual_seed(count))
        with saying(f"with {count} modalities"):
            fusion = _built(build, widths)
            outcome = Outcome(fusion)
            _check_gradients(outcome, features)
            with torch.no_grad():
                outcome.eval()
                _check_weights(fusion(features), features)
                _check_invariance(outcome, features, tolerance)
                _check_saving(fusion, features)
                if count == 3:  # it takes seconds
                    _check_graph(outcome, features, tolerance)
                _check_placement(outcome, features)


def _built(build: Callable[[dict[str, int], int], Fusion], widths: dict[str, int]) -> Fusion:
    width = 8
    with saying("building it from (widths, width)"):
        fusion = build(widths, width)
    require(isinstance(fusion, Fusion), f"{type(fusion).__name__} is no subclass of Fusion")
    require(
        fusion.widths == widths and fusion.width == width,
        "widths and width must be passed on to super().__init__",
    )
    check_saved_form(fusion)
    check_registered(fusion)
    return fusion


def _check_gradients(outcome: Outcome, features: dict[str, Features]) -> None:
    """Every parameter and every modality gets a gradient, one that is not always zero."""
    fusion, rows = outcome.fusion, len(next(iter(features.values())).mask)
    given = {n: Features(f.tokens.clone().requires_grad_(), f.mask) for n, f in features.items()}
    with saying("forward"):
        fused = fusion.train()(given)
    require(isinstance(fused, Fused), f"forward gave a {type(fused).__name__}, not Fused")
    found = tuple(fused.vector.shape)
    require(found == (rows, fusion.width), f"vector is {found}, expected {(rows, fusion.width)}")
    with saying("head and decide"):
        logits = fusion.decide(outcome.head, fused)
    require(logits.shape == (rows, 3), f"logits are {tuple(logits.shape)}, expected {(rows, 3)}")
    with saying("the backward pass"):
        (fused.vector.square().sum() + (logits * torch.randn(rows, 3)).sum()).backward()
    for path, parameter in outcome.named_parameters():
        name = path.removeprefix("fusion.")
        gradient = parameter.grad
        reached = gradient is not None and bool(torch.isfinite(gradient).all())
        require(reached, f"parameter {name!r} gets no finite gradient")
        # Of two modalities, what stands for the absent one may rightly be ignored.
        alive = len(features) < 3 or (gradient is not None and bool(gradient.any()))
        require(alive, f"parameter {name!r} gets a gradient of zeros only")
    for name, one in given.items():
        reached = one.tokens.grad is not None and bool(one.tokens.grad.any())
        require(reached, f"modality {name!r} gets no gradient: the fusion does not hear it")


def _check_weights(fused: Fused, features: dict[str, Features]) -> None:
    require(bool(torch.isfinite(fused.vector).all()), "the output is not finite")
    if fused.weights is None:
        return
    present = torch.stack([features[name].present for name in sorted(features)], 1)
    require(fused.weights.shape == present.shape, "weights must be (B, M)")
    gone = fused.weights[~present].abs()
    require(not bool((gone > 1e-6).any()), "an absent modality has a weight")
    total = fused.weights.sum(1)
    require(bool((total - 1).abs().max() < 1e-4), "weights do not add up to 1")


def _check_invariance(outcome: Outcome, features: dict[str, Features], tolerance: float) -> None:
    """What a row gives depends on what it has, and on nothing else."""
    expected = outcome.of(features)
    require(
        same_numbers(outcome.of(features), expected),
        "the output differs from call to call in evaluation mode",
    )

    def same(other: dict[str, Features], chosen: slice, what: str) -> None:
        with saying(f"forward with other {what}"):
            found = outcome.of(other)
        gap = float((found - expected[chosen]).abs().max())
        # Not "gap > tolerance", which is False for NaN.
        require(gap <= tolerance, f"the output depends on {what} (gap {gap:.2g})")

    for k in range(len(expected)):
        one = slice(k, k + 1)
        alone = {n: Features(f.tokens[one], f.mask[one]) for n, f in features.items()}
        same(alone, one, "batch mates")
    same(dict(reversed(features.items())), slice(None), "the order of the modalities")
    for what, here in (("padding", True), ("the values of an absent modality", False)):
        for filler in (1e4, float("nan")):
            noisy = {}
            for name, f in features.items():
                kept = f.mask[..., None] | (f.present != here)[:, None, None]
                noisy[name] = Features(torch.where(kept, f.tokens, filler), f.mask)
            same(noisy, slice(None), what)
    longer = {
        n: Features(F.pad(f.tokens, (0, 0, 0, 2)), F.pad(f.mask, (0, 2)))
        for n, f in features.items()
    }
    same(longer, slice(None), "the length of the padding")
    nothing = {n: Features(f.tokens, torch.zeros_like(f.mask)) for n, f in features.items()}
    with saying("forward on rows without any modality"):
        empty = outcome.of(nothing)
    require(bool(torch.isfinite(empty).all()), "a row without any modality is not finite")


def _check_saving(fusion: Fusion, features: dict[str, Features]) -> None:
    with saying("rebuilding it from config() and loading its weights"):
        twin = Fusion.from_config(fusion.config()).eval()
        twin.load_state_dict(fusion.state_dict())  # also checks the names
    require(
        same_numbers(twin(features).vector, fusion(features).vector),
        "the reloaded fusion differs: is an option lost by config(), or a tensor kept that is "
        "neither parameter nor buffer?",
    )


def _check_graph(outcome: Outcome, features: dict[str, Features], tolerance: float) -> None:
    """torch.compile finds one graph, and torch.export one for any number of rows."""
    expected, given = outcome.of(features), tensors(features)
    with saying("torch.compile"):
        torch.compiler.reset()
        compiled = torch.compile(outcome, backend="eager", fullgraph=True)(*given)
    gap = float((compiled - expected).abs().max())
    require(gap <= tolerance, f"compiled it gives something else (gap {gap:.2g})")
    rows = torch.export.Dim("rows", min=2)
    with saying("torch.export"):
        shapes = tuple({name: {0: rows} for name in features} for _ in given)
        program = torch.export.export(outcome, given, dynamic_shapes=shapes)
        found = program.module()(*({n: t[1:] for n, t in part.items()} for part in given))
    gap = float((found - expected[1:]).abs().max())
    require(gap <= tolerance, f"exported it gives something else (gap {gap:.2g})")


def _check_placement(outcome: Outcome, features: dict[str, Features]) -> None:
    """Dtype and device are those of the input; the fusion is of no use afterwards."""
    for dtype in (torch.bfloat16, torch.float64):
        given = {n: Features(f.tokens.to(dtype), f.mask) for n, f in features.items()}
        with saying(f"{dtype}"):
            found = outcome.to(dtype).fusion(given).vector.dtype
            require(found == dtype, f"gave {found} out")
            finite = bool(torch.isfinite(outcome.of(given)).all())
            require(finite, "the output is not finite")
    with saying("another device"):
        where = outcome.to("meta").of({n: f.to("meta") for n, f in given.items()}).device.type
    require(where == "meta", f"inputs on the device meta gave outputs on {where}")
