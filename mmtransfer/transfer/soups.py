"""Weights of several models, or of two moments of one, averaged or interpolated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from mmtransfer.methods.wise_ft import WiSEFT
from mmtransfer.model import TransferModel
from mmtransfer.temperature import Temperature
from mmtransfer.transfer.adapters import is_adapted, merge_adapters

Ingredient = TransferModel | str | Path
Found = TypeVar("Found")
ALPHAS = [k / 10 for k in range(11)]


@dataclass
class Soup:
    """A model of averaged weights.

    chosen: which of the models are in it, by number, in the order in which they came in
    scores: of each model alone, by number
    score: of the soup
    """

    model: TransferModel
    chosen: list[int]
    scores: list[float]
    score: float


def uniform_soup(models: Sequence[Ingredient]) -> TransferModel:
    """The mean of the weights of all models (model soups, Wortsman et al., ICML 2022).

    models: trained from the same start, as they are or as directories, which are read one by one;
        adapters are merged in copies, as a mean of their factors is not that of what they add
    Raises `ValueError` if there is none, or they differ in architecture, tasks or classes.
    """
    soup, total = _first(models)
    for number, model in enumerate(models[1:], start=1):
        _add(total, _state(model, soup, number))
    return _served(soup, total, len(models))


def greedy_soup(models: Sequence[Ingredient], evaluate: Callable[[TransferModel], float]) -> Soup:
    """The mean of those that help (greedy soup of Wortsman et al., ICML 2022).

    From the best model on, each is added to the soup if that does not lower its score.

    evaluate: a score on held-out rows, larger is better, e.g. accuracy on the validation rows
    Raises `ValueError` as `uniform_soup` does.
    """
    soup, _ = _first(models)
    numbered = enumerate(models)  # not kept: each may take gigabytes
    scores = [evaluate(_served(soup, _state(model, soup, k), 1)) for k, model in numbered]
    first, *others = sorted(range(len(models)), key=lambda number: -scores[number])
    chosen, best, total = [first], scores[first], _state(models[first], soup, first)
    for number in others:
        tried = dict(total)
        _add(tried, _state(models[number], soup, number))
        score = evaluate(_served(soup, tried, len(chosen) + 1))
        if score >= best:
            chosen, best, total = [*chosen, number], score, tried
    return Soup(_served(soup, total, len(chosen)), chosen, scores, best)


def alpha_curve(
    model: TransferModel,
    start: WiSEFT | Ingredient | Mapping[str, Tensor],
    evaluate: Callable[[TransferModel], Found],
    alphas: Sequence[float] = ALPHAS,
) -> dict[float, Found]:
    """What `evaluate` finds on the way from the start to a trained model, by alpha.

    WiSE-FT (Wortsman et al., CVPR 2022): weights `(1 - alpha) * start + alpha * trained`, running
    statistics too.  The model has its own weights again at the end.

    start: the method `wise_ft` by which the model was kept at its alpha, and which knows both ends;
        else the model before fine-tuning, its directory, or its `state_dict` as copies.  What it
        lacks, say fusion and heads that are new, stays as trained
    evaluate: of the model at one alpha, e.g. `lambda m: trainer.evaluate(rows)`
    Raises `ValueError` for names or shapes that the model does not have, for one with adapters, and
    where `wise_ft` cannot tell the end.
    """
    if is_adapted(model):
        raise ValueError(
            "the model has adapters, which cannot be interpolated: call merge_adapters first"
        )
    own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    begin, end = _ends(start, model, own)
    for name, tensor in begin.items():
        if name not in own or own[name].shape != tensor.shape:
            found = f"shape {tuple(own[name].shape)}" if name in own else "no such weights"
            raise ValueError(f"the start has {name!r} {tuple(tensor.shape)}, the model {found}")
    moved = {n: t.to(end[n].device) for n, t in begin.items() if t.is_floating_point()}
    curve = {}
    try:
        for alpha in alphas:
            mixed = {n: torch.lerp(t.to(end[n].dtype), end[n], alpha) for n, t in moved.items()}
            model.load_state_dict(mixed, strict=False)
            curve[alpha] = evaluate(model)
    finally:
        model.load_state_dict(own)
    return curve


def _ends(
    start: WiSEFT | Ingredient | Mapping[str, Tensor],
    model: TransferModel,
    own: Mapping[str, Tensor],
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    if isinstance(start, WiSEFT):
        return start.ends(model)
    return (start if isinstance(start, Mapping) else _loaded(start).state_dict()), own


def _loaded(model: Ingredient) -> TransferModel:
    """The model, or a copy whose adapters are merged."""
    if not isinstance(model, TransferModel):
        model = TransferModel.from_pretrained(model)
    if is_adapted(model):
        model = deepcopy(model)
        merge_adapters(model)
    return model


def _first(models: Sequence[Ingredient]) -> tuple[TransferModel, dict[str, Tensor]]:
    """A model to serve the soup in, and what of the first one goes into it."""
    if not len(models):
        raise ValueError("a soup needs at least one model, found none")
    soup = deepcopy(_loaded(models[0]))
    soup.provide(())
    soup.temperature = Temperature()  # those of the models were fitted to other weights
    return soup, _state(models[0], soup, 0)


def _state(model: Ingredient, like: TransferModel, number: int) -> dict[str, Tensor]:
    """Weights in double precision by name, of a model that is like another one."""
    model = _loaded(model)
    for name, task in like.tasks.items():
        other = model.tasks[name].config() if name in model.tasks else None
        if other != task.config():
            raise ValueError(
                f"model {number} has task {name!r} as {other}, the first {task.config()}"
            )
    own, found = like.state_dict(), model.state_dict()
    found = {n: t for n, t in found.items() if not n.startswith("unimodal.")}
    odd = list(own.keys() ^ found.keys())
    odd += [n for n in own.keys() & found.keys() if own[n].shape != found[n].shape]
    if odd:
        raise ValueError(
            f"model {number} is of another architecture than the first: they differ in "
            f"{len(odd)} weights, e.g. {min(odd)!r}"
        )
    return {
        n: t.detach().to("cpu", torch.float64, copy=True) if t.is_floating_point() else t
        for n, t in found.items()
    }


def _add(total: dict[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point():
            total[name] = total[name] + tensor


def _served(soup: TransferModel, total: Mapping[str, Tensor], count: int) -> TransferModel:
    """The mean of so many states, in the model; what is no number of its own is the first's."""
    soup.load_state_dict({n: t / count if t.is_floating_point() else t for n, t in total.items()})
    return soup.eval()
