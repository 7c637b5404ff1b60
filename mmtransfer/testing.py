"""The conformance kit: checks that plug-in authors run on their own encoder, fusion or task."""

from __future__ import annotations

import json
import math
import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmtransfer.contract import (
    ContractError,
    check_registered,
    check_saved_form,
    require,
    saying,
)
from mmtransfer.data.augment import AUGMENTATIONS
from mmtransfer.encoders.base import Encoder
from mmtransfer.features import Features, Fused
from mmtransfer.fusion.base import Fusion
from mmtransfer.model import hold_still
from mmtransfer.tasks.base import Task


def same_numbers(found: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding, which may depend on where in memory tensors happen to lie."""
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def check_encoder(encoder: Encoder, samples: Sequence[Any], tolerance: float = 1e-4) -> None:
    """Verify the encoder contract on at least two raw values.  Raises `ContractError`."""
    require(isinstance(encoder, Encoder), f"{type(encoder).__name__} is no subclass of Encoder")
    require(len(samples) >= 2, "check_encoder needs at least two samples")
    samples = list(samples)
    require(
        isinstance(getattr(encoder, "width", None), int),
        "width must be set to the D of the features, a whole number",
    )
    require(callable(getattr(encoder, "collate", None)), "collate(values) is missing")
    known = (*AUGMENTATIONS, None)
    require(encoder.modality in known, f"modality is {encoder.modality!r}, expected one of {known}")
    check_saved_form(encoder)
    try:
        pickle.dumps(encoder.collate)  # loader workers receive it this way
    except Exception as error:
        raise ContractError(f"collate cannot be pickled for loader workers: {error}") from error
    check_registered(encoder)
    encoder.eval()
    features = _check_features(encoder, samples)
    with torch.no_grad():
        again = _features(encoder, samples).pooled()
        require(
            same_numbers(again, features.pooled()),
            "features differ from call to call in evaluation mode: is there drop-out without "
            "training=self.training, or batch norm in training mode?",
        )
        for k, sample in enumerate(samples):
            alone = _features(encoder, [sample], f" of sample {k} alone").pooled()[0]
            gap = float((alone - features.pooled()[k]).abs().max())
            require(
                gap <= tolerance * (1 + float(alone.abs().max())),
                f"sample {k} has other features alone than among others (largest gap {gap:.2g}): "
                "does padding leak, or batch norm run in training mode?",
            )
    check_stages(encoder)
    _check_order(encoder, samples)
    check_cuts(encoder, samples, tolerance)
    encoder.zero_grad()
    with saying("the backward pass"):
        _features(encoder, samples).pooled().square().sum().backward()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            require(parameter.grad is not None, f"parameter {name!r} gets no gradient")
    encoder.zero_grad()
    _check_saving(encoder, samples)


def _features(encoder: Encoder, samples: list[Any], of: str = "") -> Features:
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


def _check_features(encoder: Encoder, samples: list[Any]) -> Features:
    features = _features(encoder, samples)
    b, _, d = features.tokens.shape
    require(b == len(samples), f"{len(samples)} samples gave {b} rows of features")
    require(
        d == encoder.width, f"features have width {d}, the encoder says width = {encoder.width}"
    )
    require(
        features.mask.dtype == torch.bool, f"the mask must be bool, found {features.mask.dtype}"
    )
    own = next((p.dtype for p in encoder.parameters() if p.is_floating_point()), torch.float32)
    require(
        features.tokens.dtype == own,
        f"features are {features.tokens.dtype}, the parameters {own}",
    )
    require(bool(features.present.all()), "a sample that is present has no real token in the mask")
    require(
        bool(torch.isfinite(features.pooled()).all()), "features of real tokens are not all finite"
    )
    return features


def _check_saving(encoder: Encoder, samples: list[Any]) -> None:
    with saying("fingerprint()"):
        mark = encoder.fingerprint()
    require(mark == encoder.fingerprint(), "fingerprint() changes from call to call")
    with tempfile.TemporaryDirectory() as folder, saying("save and load"):
        encoder.save(Path(folder))
        twin = Encoder.load(Path(folder))
    lost = "is an option lost by config() or save()?"
    with saying(f"loading the weights into the reloaded encoder ({lost})"):
        twin.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        again = _features(twin.eval(), samples, " of the reloaded encoder").pooled()
        expected = _features(encoder, samples).pooled()
        require(
            same_numbers(again, expected),
            f"the reloaded encoder differs: {lost}",
        )
        require(twin.fingerprint() == mark, "the reloaded encoder has another fingerprint()")
        for name, tensor in _ends(encoder):
            saved = tensor.detach().clone()
            tensor.add_(1.0)
            changed = encoder.fingerprint() != mark
            tensor.copy_(saved)
            require(changed, f"fingerprint() ignores a change of weights ({name!r})")


def _ends(module: nn.Module) -> list[tuple[str, Tensor]]:
    """First and last of the weights; all of them would take long in a large model."""
    weights = [(n, t) for n, t in module.state_dict().items() if t.is_floating_point()]
    return [weights[0], weights[-1]] if weights else []


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


def _check_order(encoder: Encoder, samples: list[Any]) -> None:
    """Stages start in their order, as far as the encoder calls their modules."""
    started: dict[int, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda *_, number=number: started.setdefault(number))
        for number, stage in enumerate(encoder.stages)
        for module in stage.modules()
    ]
    with torch.no_grad():
        _features(encoder, samples)
    for handle in handles:
        handle.remove()
    order = list(started)
    require(order == sorted(order), f"stages go from input to output, but start in order {order}")


def check_cuts(encoder: Encoder, samples: Sequence[Any], tolerance: float = 1e-4) -> None:
    """At each of `cuts`, `above` of what `below` gives is `forward`, stored row by row too."""
    whole = _features(encoder, list(samples))
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


def random_features(
    widths: dict[str, int], rows: int, generator: torch.Generator, missing: bool = True
) -> dict[str, Features]:
    """Features of 1 to 4 tokens per row and modality; every row keeps at least one modality."""
    features = {}
    for number, (name, width) in enumerate(widths.items()):
        lengths = torch.randint(0 if missing else 1, 5, (rows,), generator=generator)
        lengths[number % rows] = 4  # each modality occurs
        if number == 0:
            lengths.clamp_(min=1)
        tokens = torch.randn(rows, 4, width, generator=generator)
        features[name] = Features(tokens, torch.arange(4) < lengths.unsqueeze(1))
    return features


def check_fusion(build: Callable[[dict[str, int], int], Fusion], tolerance: float = 1e-5) -> None:
    """Verify the fusion contract for 1, 2, 3 and 5 modalities.  Raises `ContractError`.

    build: makes the fusion from (widths, width), e.g. the class itself
    """
    for count in (1, 2, 3, 5):
        torch.manual_seed(count)
        widths = {f"m{k}": 4 + k for k in range(count)}
        _check_fusion(build, widths, torch.Generator().manual_seed(count), tolerance)


def _check_fusion(
    build: Callable[[dict[str, int], int], Fusion],
    widths: dict[str, int],
    generator: torch.Generator,
    tolerance: float,
) -> None:
    rows, width, where = 6, 8, f"with {len(widths)} modalities: "
    with saying(f"{where}building it from (widths, width)"):
        fusion = build(widths, width)
    require(isinstance(fusion, Fusion), f"{type(fusion).__name__} is no subclass of Fusion")
    require(
        fusion.widths == widths and fusion.width == width,
        f"{where}widths and width must be passed on to super().__init__",
    )
    check_saved_form(fusion)
    check_registered(fusion)
    features = random_features(widths, rows, generator)
    with saying(f"{where}forward"):
        fused = fusion.train()(features)
    require(isinstance(fused, Fused), f"{where}forward gave a {type(fused).__name__}, not Fused")
    require(fused.vector.shape == (rows, width), f"{where}vector is {tuple(fused.vector.shape)}")
    with saying(f"{where}the backward pass"):
        fused.vector.square().sum().backward()
    for name, parameter in fusion.named_parameters():
        reached = parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())
        require(reached, f"{where}parameter {name!r} gets no finite gradient")
    fusion.eval()

    def same(other: dict[str, Features], chosen: slice, what: str) -> None:
        with saying(f"{where}forward with other {what}"):
            found = fusion(other).vector
        gap = float((found - vector[chosen]).abs().max())
        # Not "gap > tolerance", which is False for NaN.
        require(gap <= tolerance, f"{where}the output depends on {what} (gap {gap:.2g})")

    with torch.no_grad():
        fused = fusion(features)
        vector = fused.vector
        require(
            same_numbers(fusion(features).vector, vector),
            f"{where}the output differs from call to call in evaluation mode",
        )
        require(bool(torch.isfinite(vector).all()), f"{where}the output is not finite")
        if fused.weights is not None:
            present = torch.stack([features[n].present for n in sorted(widths)], 1)
            require(fused.weights.shape == present.shape, f"{where}weights must be (B, M)")
            gone = fused.weights[~present].abs()
            require(not bool((gone > 1e-6).any()), f"{where}an absent modality has a weight")
            total = fused.weights.sum(1)
            require(bool((total - 1).abs().max() < 1e-4), f"{where}weights do not add up to 1")
        for k in range(rows):
            one = slice(k, k + 1)
            alone = {n: Features(f.tokens[one], f.mask[one]) for n, f in features.items()}
            same(alone, one, "batch mates")
        same(dict(reversed(features.items())), slice(None), "the order of the modalities")
        for what, here in (("padding", True), ("the values of an absent modality", False)):
            noisy = {
                n: Features(
                    torch.where(
                        f.mask[..., None] | (f.present != here)[:, None, None], f.tokens, 1e4
                    ),
                    f.mask,
                )
                for n, f in features.items()
            }
            same(noisy, slice(None), what)
        nothing = {n: Features(f.tokens, torch.zeros_like(f.mask)) for n, f in features.items()}
        with saying(f"{where}forward on rows without any modality"):
            empty = fusion(nothing).vector
        require(
            bool(torch.isfinite(empty).all()), f"{where}a row without any modality is not finite"
        )
        with saying(f"{where}rebuilding it from config() and loading its weights"):
            twin = Fusion.from_config(fusion.config()).eval()
            twin.load_state_dict(fusion.state_dict())  # also checks the names
        require(
            same_numbers(twin(features).vector, vector),
            f"{where}the reloaded fusion differs: is an option lost by config(), or a tensor kept "
            "that is neither parameter nor buffer?",
        )
        with saying(f"{where}bf16"):
            half = fusion.to(torch.bfloat16)(
                {n: Features(f.tokens.bfloat16(), f.mask) for n, f in features.items()}
            )
        require(half.vector.dtype == torch.bfloat16, f"{where}bf16 in gave {half.vector.dtype} out")


def check_task(task: Task, values: Sequence[Any], width: int = 8) -> None:
    """Verify the task contract on raw target values of the training column.

    Raises `ContractError`.
    """
    require(isinstance(task, Task), f"{type(task).__name__} is no subclass of Task")
    rows = len(values) + 1
    with saying("fit"):
        task.fit(values)
    check_saved_form(task)
    with saying("encode of the values and None"):
        targets = task.encode([*values, None])
    require(isinstance(targets, Tensor), f"encode gave a {type(targets).__name__}, not a tensor")
    require(len(targets) == rows, f"encode gave {len(targets)} targets of {rows} values")
    with saying("labelled"):
        labelled = task.labelled(targets)
    require(
        labelled.shape == (rows,) and labelled.dtype == torch.bool,
        f"labelled must be one bool per row, found {tuple(labelled.shape)} {labelled.dtype}",
    )
    require(not bool(labelled[-1]), "None must be encoded as unlabelled")
    known = torch.tensor(
        [
            not (value is None or (isinstance(value, float) and math.isnan(value)))
            for value in values
        ]
    )
    require(torch.equal(labelled[:-1], known), "rows that have a label are not those of labelled")
    with saying("head"):
        head: nn.Module = task.head(width)
        logits = head(torch.randn(rows, width))
    require(logits.ndim == 2 and len(logits) == rows, f"logits are {tuple(logits.shape)}")
    with saying("loss"):
        loss = task.loss(logits, targets)
    found = tuple(loss.shape)
    require(loss.shape == (rows,), f"loss must be one value per row, found {found}")
    require(bool(torch.isfinite(loss).all()), "the loss is not finite")
    require(float(loss[-1].detach()) == 0, "an unlabelled row must have loss 0")
    with saying("loss_weight"):
        weight = task.loss_weight(targets)
    found = tuple(weight.shape)
    require(weight.shape == loss.shape, f"loss_weight must be one value per row, found {found}")
    require(float(weight[-1]) == 0, "an unlabelled row must have loss_weight 0")
    with saying("the backward pass"):
        loss.sum().backward()
    require(all(p.grad is not None for p in head.parameters()), "the head gets no gradient")
    with saying("predict"):
        predictions = task.predict(logits.detach())
    require(len(predictions) == rows, "predict must give one dictionary per row")
    try:
        json.dumps(predictions)
    except TypeError as error:
        raise ContractError(f"predict must give plain values that JSON holds: {error}") from error
    with saying("rebuilding it from config()"):
        twin = Task.from_config(json.loads(json.dumps(task.config())))
        again = twin.encode(values)
    require(torch.equal(again, targets[:-1]), "the reloaded task encodes otherwise")
    with saying("metrics"):
        metrics = task.metrics()
        metrics.update(logits.detach()[labelled], targets[labelled])
        computed = metrics.compute()
    require(
        task.score in computed,
        f"score {task.score!r} is none of the metrics ({', '.join(computed)})",
    )
