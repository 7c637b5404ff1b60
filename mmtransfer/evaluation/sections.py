"""The sections of an evaluation, each out of what a model has decided once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from mmtransfer.data.examples import Examples
from mmtransfer.data.rows import Rows
from mmtransfer.evaluation.calibration import (
    calibration_error,
    negative_log_likelihood,
    reliability,
)
from mmtransfer.evaluation.classification import (
    classification_metrics,
    labelled_rows,
    metric_intervals,
    per_class,
)
from mmtransfer.evaluation.confusion import confused_pairs, confusion_matrix, worst_mistakes
from mmtransfer.evaluation.contributions import WORTHS, contributions, explain
from mmtransfer.evaluation.embedding import embed
from mmtransfer.evaluation.encoded import Decided, decide, encode_rows
from mmtransfer.evaluation.metrics import Collected, compute_metrics
from mmtransfer.evaluation.outliers import ClassGaussians, detection, energy, max_softmax
from mmtransfer.evaluation.robustness import by_noise
from mmtransfer.evaluation.selective import (
    accuracy_at,
    aurc,
    confidence_of,
    excess_aurc,
    thinned,
)
from mmtransfer.model import TransferModel
from mmtransfer.tasks.base import Task
from mmtransfer.temperature import Temperature


@dataclass(frozen=True)
class Options:
    """batch_size: rows that are encoded at a time; on_error: as in training; resamples: of the
    bootstrap; mistakes: how many are listed; mapped: rows on the maps of fused vectors"""

    batch_size: int = 64
    on_error: str = "raise"
    resamples: int = 2000
    mistakes: int = 20
    mapped: int = 1000
    seed: int = 0
    progress: bool = False


@dataclass(frozen=True)
class Judged:
    """Rows that a model has encoded and decided on."""

    examples: Examples
    decided: Decided
    unreadable: Mapping[str, list[int]]

    @classmethod
    def of(cls, model: TransferModel, rows: Rows, split: str, options: Options) -> Judged:
        examples, unreadable = encode_rows(
            model, rows, split, options.batch_size, options.on_error, options.progress
        )
        return cls(examples, decide(model, examples), unreadable)

    def labelled(self, name: str, task: Task) -> tuple[Tensor, Tensor]:
        """Logits and targets of the labelled rows of a task."""
        targets = self.examples.targets[name]
        return labelled_rows(self.decided.logits[name], targets, task.labelled(targets))


def has_classes(targets: Tensor) -> bool:
    return targets.ndim == 1 and not targets.is_floating_point()


def names_of(task: Task, classes: int) -> list[Any]:
    return list(getattr(task, "classes", None) or range(classes))


def about_classes(
    name: str, task: Task, seen: Judged, temperature: Temperature, options: Options
) -> dict[str, Any]:
    """Of a task with classes: metrics, intervals, calibration, selection, confusions.

    Probabilities of single rows are at the temperature.
    """
    z, y = seen.labelled(name, task)
    numbers = task.labelled(seen.examples.targets[name]).nonzero().flatten()
    names = names_of(task, z.shape[1])
    classes = per_class(z, y, names)
    found: dict[str, Any] = {
        "metrics": {**classification_metrics(z, y), "loss": negative_log_likelihood(z, y)},
        "intervals": {
            metric: asdict(interval)
            for metric, interval in metric_intervals(
                z, y, resamples=options.resamples, seed=options.seed
            ).items()
        },
        "classes": classes,
        "without_rows": [entry["class"] for entry in classes if not entry["rows"]],
    }
    stages = {"before": z}
    if name in temperature.by_task:
        stages["after"] = temperature.apply(name, z)
    calibrated = stages.get("after", z)
    found["calibration"] = {
        stage: {
            "ece": calibration_error(logits, y),
            "loss": negative_log_likelihood(logits, y),
            "bins": [asdict(bin) for bin in reliability(logits, y)],
        }
        for stage, logits in stages.items()
    }
    sure, right = confidence_of(calibrated), z.argmax(1) == y
    found["selective"] = {
        "aurc": aurc(sure, right),
        "excess_aurc": excess_aurc(sure, right),
        "accuracy_at": {str(c): a for c, a in accuracy_at(sure, right).items()},
        "curve": thinned(sure, right),
    }
    matrix = confusion_matrix(z, y)
    found["confusion"] = {
        "matrix": matrix.tolist(),
        "pairs": confused_pairs(calibrated, y, names, numbers),
        "mistakes": worst_mistakes(calibrated, y, names, numbers, options.mistakes),
    }
    return found


def about_modalities(
    name: str,
    task: Task,
    logits: Mapping[tuple[str, ...], Tensor],
    targets: Tensor,
    modalities: list[str],
    temperature: Temperature,
    options: Options,
) -> dict[str, Any]:
    """Shapley values for the data set by worth, and of the probability predicted for each row.

    The probabilities are those at the temperature, the log-likelihoods those without it.
    """
    known = task.labelled(targets)
    of_known = {kept: z[known] for kept, z in logits.items()}
    found: dict[str, Any] = {}
    for kind in WORTHS:
        of_set = contributions(
            of_known,
            targets[known],
            modalities,
            kind,
            resamples=options.resamples,
            seed=options.seed,
        )
        found[kind] = asdict(of_set)
    each = explain({kept: temperature.apply(name, z) for kept, z in logits.items()}, modalities)
    found["predictions"] = {
        "predicted": each.predicted.tolist(),
        "all": each.all.tolist(),
        "none": each.none.tolist(),
        "contributions": dict(zip(modalities, each.contributions.T.tolist(), strict=True)),
    }
    return found


def robustness(
    model: TransferModel,
    examples: Examples,
    subsets: Mapping[str, Mapping[tuple[str, ...], Tensor]],
) -> dict[str, Any]:
    """The main score of each task with each subset of the modalities, and under noise on each."""

    def score(logits: Mapping[str, Tensor]) -> dict[str, float]:
        found = compute_metrics(model.tasks, Collected(dict(logits), examples.targets))
        return {n: found[n][t.score] for n, t in model.tasks.items() if t.score in found[n]}

    kept = [names for names in next(iter(subsets.values())) if names]
    there = [name for name, f in examples.features.items() if f.present.any()]
    statistics = examples.only(there).statistics() if there else {}
    deviations = {name: deviation for name, (_, deviation) in statistics.items()}
    return {
        "subsets": {
            " + ".join(names): score({task: z[names] for task, z in subsets.items()})
            for names in kept
        },
        "noise": {
            name: {str(level): scores for level, scores in levels.items()}
            for name, levels in by_noise(
                lambda disturbed: score(decide(model, disturbed).logits), examples, deviations
            ).items()
        },
    }


def about_outliers(
    name: str, task: Task, seen: Judged, held: Judged | None, strange: Judged | None
) -> dict[str, Any]:
    """By score, how well outliers are told apart; without any, the scores' means over the rows."""
    scores = {"max_softmax": _of_logits(max_softmax, name), "energy": _of_logits(energy, name)}
    if held is not None:
        known = task.labelled(held.examples.targets[name])
        if known.sum() > 1:
            vectors, targets = held.decided.fused[known], held.examples.targets[name][known]
            with suppress(ValueError):  # where all rows of each class have the same vector
                gaussians = ClassGaussians.fit(vectors, targets)
                scores["mahalanobis"] = lambda judged: gaussians.score(judged.decided.fused)
    if strange is None:
        return {score: {"mean": float(of(seen).mean())} for score, of in scores.items()}
    return {score: detection(of(seen), of(strange)) for score, of in scores.items()}


def _of_logits(score: Any, name: str) -> Any:
    return lambda judged: score(judged.decided.logits[name])


def mapped(seen: Judged, name: str | None, method: str, options: Options) -> dict[str, Any]:
    """A map of the fused vectors, with the class numbers of one task, negative if unlabelled."""
    found = embed(seen.decided.fused, method, options.mapped, options.seed)
    return {
        "rows": found.rows.tolist(),
        "points": found.points.tolist(),
        "explained": list(found.explained),
        "task": name,
        "classes": [] if name is None else seen.examples.targets[name][found.rows].tolist(),
    }
