"""The conformance kit: checks that plug-in authors run on their own encoder, fusion or task."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmtransfer.encoders.base import Encoder
from mmtransfer.features import Features
from mmtransfer.fusion.base import Fusion
from mmtransfer.tasks.base import Task


class ContractError(AssertionError):
    """A part of the contract does not hold; the message says which, in plain words."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)


def check_encoder(encoder: Encoder, samples: Sequence[Any], tolerance: float = 1e-4) -> None:
    """Verify the encoder contract on at least two raw values.  Raises `ContractError`."""
    require(isinstance(encoder, Encoder), f"{type(encoder).__name__} is no subclass of Encoder")
    require(len(samples) >= 2, "check_encoder needs at least two samples")
    samples = list(samples)
    try:
        pickle.dumps(encoder.collate)  # loader workers receive it this way
    except Exception as error:
        raise ContractError(f"collate cannot be pickled for loader workers: {error}") from error
    encoder.eval()
    inputs = encoder.collate(samples)
    require(
        isinstance(inputs, dict) and all(isinstance(v, Tensor) for v in inputs.values()),
        "collate must give a dictionary of tensors",
    )
    features = encoder(**inputs)
    require(
        isinstance(features, Features), f"forward gave a {type(features).__name__}, not Features"
    )
    b, _, d = features.tokens.shape
    require(b == len(samples), f"{len(samples)} samples gave {b} rows of features")
    require(
        d == encoder.width, f"features have width {d}, the encoder says width = {encoder.width}"
    )
    require(bool(features.present.all()), "a sample that is present has no real token in the mask")
    require(
        bool(torch.isfinite(features.pooled()).all()), "features of real tokens are not all finite"
    )
    with torch.no_grad():
        for k, sample in enumerate(samples):
            alone = encoder(**encoder.collate([sample])).pooled()[0]
            gap = float((alone - features.pooled()[k]).abs().max())
            require(
                gap <= tolerance * (1 + float(alone.abs().max())),
                f"sample {k} has other features alone than among others (largest gap {gap:.2g}): "
                "does padding leak, or batch norm run in training mode?",
            )
    check_stages(encoder)
    check_cuts(encoder, samples, tolerance)
    encoder.zero_grad()
    encoder(**inputs).pooled().square().sum().backward()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            require(parameter.grad is not None, f"parameter {name!r} gets no gradient")
    encoder.zero_grad()
    mark = encoder.fingerprint()
    require(mark == encoder.fingerprint(), "fingerprint() changes from call to call")
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(Path(folder))
        twin = Encoder.load(Path(folder))
    twin.load_state_dict(encoder.state_dict())
    require(twin.fingerprint() == mark, "the reloaded encoder has another fingerprint()")
    with torch.no_grad():
        again = twin.eval()(**twin.collate(samples)).pooled()
        require(torch.equal(again, encoder(**inputs).pooled()), "the reloaded encoder differs")
        first = next(iter(encoder.parameters()), None)
        if first is not None:
            saved = first.detach().clone()
            first.add_(1.0)
            require(encoder.fingerprint() != mark, "fingerprint() ignores a change of weights")
            first.copy_(saved)


def check_stages(encoder: Encoder) -> None:
    """Every parameter lies in at most one stage, and every stage has parameters."""
    seen: dict[int, int] = {}
    require(bool(encoder.stages), "stages is empty: nothing could ever be fine-tuned")
    for number, stage in enumerate(encoder.stages):
        parameters = list(stage.parameters())
        require(bool(parameters), f"stage {number} has no parameters")
        for parameter in parameters:
            before = seen.setdefault(id(parameter), number)
            require(before == number, f"stages {before} and {number} share a parameter")


def check_cuts(encoder: Encoder, samples: Sequence[Any], tolerance: float = 1e-4) -> None:
    """At each of `cuts`, `above` of what `below` gives is `forward`, stored row by row too."""
    whole = encoder(**encoder.collate(list(samples)))
    for depth in encoder.cuts:
        where = f"cut {depth}: "
        require(0 < depth < len(encoder.stages), f"{where}lies between no two stages")
        with torch.no_grad():
            together = encoder.below(depth, **encoder.collate(list(samples)))
            alone = [encoder.below(depth, **encoder.collate([sample])) for sample in samples]
        rows = [f.tokens[0, f.mask[0]] for f in alone]
        masks = [torch.ones(len(row), dtype=torch.bool) for row in rows]
        stored = Features(pad_sequence(rows, True), pad_sequence(masks, True))
        for activations, what in ((together, "as they are"), (stored, "padded row by row")):
            encoder.zero_grad()
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
    fusion = build(widths, width)
    require(isinstance(fusion, Fusion), f"{type(fusion).__name__} is no subclass of Fusion")
    features = random_features(widths, rows, generator)
    fused = fusion.train()(features)
    require(fused.vector.shape == (rows, width), f"{where}vector is {tuple(fused.vector.shape)}")
    fused.vector.square().sum().backward()
    for name, parameter in fusion.named_parameters():
        reached = parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())
        require(reached, f"{where}parameter {name!r} gets no finite gradient")
    fusion.eval()

    def same(other: dict[str, Features], chosen: slice, what: str) -> None:
        gap = float((fusion(other).vector - vector[chosen]).abs().max())
        require(gap <= tolerance, f"{where}the output depends on {what} (gap {gap:.2g})")

    with torch.no_grad():
        fused = fusion(features)
        vector = fused.vector
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
        noisy = {
            n: Features(torch.where(f.mask.unsqueeze(-1), f.tokens, 1e4), f.mask)
            for n, f in features.items()
        }
        same(noisy, slice(None), "padding or the values of an absent modality")
        nothing = {n: Features(f.tokens, torch.zeros_like(f.mask)) for n, f in features.items()}
        empty = fusion(nothing).vector
        require(
            bool(torch.isfinite(empty).all()), f"{where}a row without any modality is not finite"
        )
        twin = Fusion.from_config(fusion.config()).eval()
        twin.load_state_dict(fusion.state_dict())  # also checks the names
        require(
            torch.equal(twin(features).vector, vector),
            f"{where}the reloaded fusion differs: are parameters or buffers in a plain list?",
        )
        half = fusion.to(torch.bfloat16)(
            {n: Features(f.tokens.bfloat16(), f.mask) for n, f in features.items()}
        )
        require(half.vector.dtype == torch.bfloat16, f"{where}bf16 in gave {half.vector.dtype} out")


def check_task(task: Task, values: Sequence[Any], width: int = 8) -> None:
    """Verify the task contract on raw target values of the training column."""
    task.fit(values)
    targets = task.encode([*values, None])
    require(not bool(task.labelled(targets)[-1]), "None must be encoded as unlabelled")
    head: nn.Module = task.head(width)
    logits = head(torch.randn(len(targets), width))
    loss = task.loss(logits, targets)
    require(loss.shape == (len(targets),), f"loss must be one value per row, found {loss.shape}")
    require(float(loss[-1].detach()) == 0, "an unlabelled row must have loss 0")
    weight = task.loss_weight(targets)
    found = tuple(weight.shape)
    require(weight.shape == loss.shape, f"loss_weight must be one value per row, found {found}")
    require(float(weight[-1]) == 0, "an unlabelled row must have loss_weight 0")
    loss.sum().backward()
    require(all(p.grad is not None for p in head.parameters()), "the head gets no gradient")
    predictions = task.predict(logits.detach())
    require(len(predictions) == len(targets), "predict must give one dictionary per row")
    twin = Task.from_config(task.config())
    require(torch.equal(twin.encode(values), targets[:-1]), "the reloaded task encodes otherwise")
    metrics = task.metrics()
    labelled = task.labelled(targets)
    metrics.update(logits.detach()[labelled], targets[labelled])
    require(task.score in metrics.compute(), f"score {task.score!r} is none of the metrics")
