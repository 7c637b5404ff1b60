"""What every recipe does: load, train, compare with single modalities, leave table and chart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import PartialState
from accelerate.utils import set_seed
from torch import nn

from mmtransfer.data.rows import Rows, load_rows, with_label_names
from mmtransfer.data.stand_ins import counts, new_products, photos
from mmtransfer.data.torchvision_sets import torchvision_splits
from mmtransfer.encoders.base import Encoder, build_encoder
from mmtransfer.evaluation.charts import Scores, chart_scores, print_scores
from mmtransfer.model import TransferModel
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, run, write_json
from mmtransfer.transfer.base import Phase, Strategy

PHOTO_TASKS = dict.fromkeys(("shape", "colour", "pattern"), "classification")
#: by name: what makes a model for a seed, and how it is trained
Contenders = Mapping[str, tuple[Callable[[int], TransferModel], Strategy]]


def train_on(
    data: str | Path,
    encoders: Mapping[str, str | None],
    tasks: Mapping[str, Any],
    model_options: Mapping[str, Any],
    strategy: Strategy,
    training: TrainingOptions,
    output: Path,
    single: bool | None = None,
    arguments: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train on a directory or hub id and leave model, metrics, table and chart in `output`.

    resume: go on from the newest checkpoint in `output`
    overwrite: replace the run that `output` holds
    single: also train each modality alone; by default where that is cheap, with frozen encoders
    Raises `ValueError` when there is no encoder or no training split.
    """
    chosen = {column: spec for column, spec in encoders.items() if spec}
    if not chosen:
        raise ValueError("no encoder is given: name one for at least one column")
    splits = load_rows(data, training.streaming)
    if "train" not in splits:
        raise ValueError(f"{data} has no train split; found {sorted(splits) or 'nothing'}")
    for name in tasks:
        splits = {split: with_label_names(rows, name) for split, rows in splits.items()}
    shown = next(split for split in ("test", "validation", "train") if split in splits)
    together = " + ".join(chosen)
    model = build_model(chosen, tasks, splits["train"], seed=training.seed, **model_options)
    metrics = run(model, splits, strategy, training, output, together, arguments, resume, overwrite)
    metrics["single"] = {}
    single = strategy.frozen if single is None else single
    for column, spec in chosen.items() if single and len(chosen) > 1 else ():
        model = build_model(
            {column: spec}, tasks, splits["train"], seed=training.seed, **model_options
        )
        alone = run(model, splits, strategy, training, title=f"{column} alone")
        metrics["single"][column] = alone.get(shown, {})
    results = {**metrics["single"], together: metrics.get(shown, {})}
    scores: dict[str, dict[str, list[float]]] = {}
    for name, found in results.items():
        for task, values in found.items():
            if model.tasks[task].score in values:  # a task without labelled rows has no score
                scores.setdefault(task, {})[name] = [values[model.tasks[task].score]]
    leave(output, metrics, scores, f"Accuracy on {shown} rows")
    return metrics


@dataclass
class Start:
    """Where training on a target starts: with encoders as they were pretrained, or from scratch.

    options: of `build_model`: fusion, width and the like
    """

    encoders: Mapping[str, Encoder]
    tasks: Mapping[str, Any]
    train: Rows
    options: Mapping[str, Any] = field(default_factory=lambda: {"width": 128})

    def pretrained(self, seed: int) -> TransferModel:
        """A model of copies of the encoders, which stay as they are."""
        return self._model(deepcopy(dict(self.encoders)), seed)

    def scratch(self, seed: int) -> TransferModel:
        """The same architectures with random weights."""
        return self._model({n: untrained(e, seed) for n, e in self.encoders.items()}, seed)

    def _model(self, encoders: Mapping[str, Encoder], seed: int) -> TransferModel:
        return build_model(encoders, self.tasks, self.train, seed=seed, **self.options)


def untrained(encoder: Encoder, seed: int = 0) -> Encoder:
    """The same architecture and preprocessing with random weights."""
    with TemporaryDirectory() as directory:
        encoder.save(Path(directory))
        set_seed(seed)
        fresh = Encoder.load(Path(directory))
    for name, module in encoder.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):  # its buffers are learned
            for key, constant in module.named_buffers(recurse=False):
                getattr(fresh.get_submodule(name), key).copy_(constant)
    return fresh


def pretrain(
    model: TransferModel,
    source: Mapping[str, Rows],
    strategy: Strategy,
    training: TrainingOptions,
    title: str = "pretraining",
    quick: bool = False,
) -> TransferModel:
    """Train a model on the source; from then on its encoders count as pretrained."""
    run(model, source, shortened(strategy) if quick else strategy, training, title=title)
    for encoder in model.encoders.values():
        encoder.pretrained = True
    return model


def learned_from_photos(
    spec: str, training: TrainingOptions, epochs: int = 8, rows: int = 1200, quick: bool = False
) -> Encoder:
    """A picture encoder that learned what drawn products look like: offline, a pretrained one."""
    source = photos("source", counts(rows, quick))
    model = build_model({"image": spec}, PHOTO_TASKS, source["train"], seed=training.seed)
    phase = Phase(epochs, lr=1e-3, encoder_lr=1e-3)
    return pretrain(model, source, Strategy([phase]), training, "products", quick).encoders["image"]


def photos_to_learn(
    name: str,
    root: Path | None,
    labels: int,
    pretrained: str,
    small: str,
    training: TrainingOptions,
    quick: bool = False,
) -> tuple[dict[str, Rows], Encoder]:
    """A set of torchvision and a pretrained encoder; without a root, both in small (`quick`: less).

    labels: labelled training rows per class, 0 for all
    small: specification of what learns from drawn products before it is given the others
    """
    if root is not None:
        return torchvision_splits(name, root, "label", labels), build_encoder(pretrained)
    return new_products(labels, quick), learned_from_photos(small, training, quick=quick)


def compare(
    contenders: Contenders,
    data: Mapping[str, Rows],
    training: TrainingOptions,
    output: Path | None,
    title: str,
    seeds: int = 1,
    quick: bool = False,
    arguments: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train every contender on the target and leave table and chart of the test scores in `output`.

    The last one's model and logs stay too; without an output nothing is left.  With rows of the
    "source", what is left of the source tasks is told beside.
    seeds: repetitions, each with another model and order of rows
    quick: one epoch of each phase, to see that all runs
    -> the last metrics, and "table": {task: {contender: [score of each seed]}}
    """
    scores: dict[str, dict[str, list[float]]] = {}
    for name, (make, strategy) in contenders.items():
        plan = shortened(strategy) if quick else strategy
        for seed in range(seeds):
            model, chosen = make(seed), replace(training, seed=seed)
            last = (name, seed) == (list(contenders)[-1], seeds - 1)
            where, what = output if last else None, f"{name}, seed {seed}"
            metrics = run(model, data, plan, chosen, where, what, arguments, overwrite=overwrite)
            for place, found in _told(metrics):
                for task, values in found.items():
                    if model.tasks[task].score in values:
                        row = scores.setdefault(f"{task}{place}", {}).setdefault(name, [])
                        row.append(values[model.tasks[task].score])
    metrics["table"] = scores
    if output is not None:
        measures = sorted({task.score for task in model.tasks.values()})
        leave(output, metrics, scores, title, " or ".join(measures))
    return metrics


def shortened(strategy: Strategy) -> Strategy:
    """The same with one epoch of each phase."""
    return replace(strategy, phases=[replace(phase, epochs=1) for phase in strategy.phases])


def _told(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    after = metrics.get("source", {}).get("after", {})
    return [("", metrics["test"]), (" (source)", after)]


def leave(
    output: Path,
    metrics: Mapping[str, Any],
    scores: Scores,
    title: str,
    measure: str = "accuracy",
) -> None:
    """Write `metrics.json` and `chart.png`, print the table; on the main process."""
    write_json(output / "metrics.json", metrics)
    if PartialState().is_main_process:
        if scores:
            print_scores(scores, title)
            chart_scores(scores, title, output / "chart.png", measure)
        print(f"model, metrics, chart and logs are in {output}")
