"""Choose encoders, a set of them and a strategy before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmtransfer.data.rows import Rows, check_rows, load_rows, with_label_names
from mmtransfer.selection.advice import Advice, advise, estimate_minutes
from mmtransfer.selection.candidates import Pool, by_column, sets_of
from mmtransfer.selection.following import command_for, model_of
from mmtransfer.selection.ranking import Candidate, correlation, rank, reasons_for, recommend
from mmtransfer.selection.scoring import Scorer, feature_score
from mmtransfer.selection.sources import apart, check_values, farness
from mmtransfer.tasks.base import Task, build_task
from mmtransfer.tasks.classification import Classification
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, check_splits, run
from mmtransfer.transfer.base import Strategy, build_strategy


@dataclass
class Choice:
    """What `choose` found, the best candidate first.

    basis: the rows that were scored; chosen: the recommended candidate
    untried: sets beyond `most_sets`
    distances: `{source: {column: {distance: value}}}`, nearest source first
    correlation: Kendall's and the weighted tau between predicted and trained, None without enough
    seconds: of loading data and encoders, of encoding what is not stored yet and reading it, of
        timing encoders, of predicting, of training
    """

    task: str
    score: str
    basis: str
    candidates: list[Candidate]
    chosen: Candidate
    advice: Advice
    reasons: list[str]
    command: str
    labels: int
    classes: int
    untried: int
    distances: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    correlation: dict[str, float] | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)


def choose(
    data: str | Path | Mapping[str, Rows],
    encoders: Sequence[str] | Mapping[str, str | Sequence[str]],
    tasks: Mapping[str, Any],
    score: str = "linear_probe",
    source: str | Sequence[str] | None = None,
    budget_minutes: float | None = None,
    verify: int = 0,
    most_sets: int = 100,
    most_rows: int = 4000,
    components: int = 256,
    model_options: Mapping[str, Any] | None = None,
    strategy_options: Mapping[str, Any] | None = None,
    training: TrainingOptions | None = None,
) -> Choice:
    """Rank encoders and sets of them by a score of their features; name a strategy and a command.

    Each encoder runs once over the rows, into the feature store that training reads too.  The
    first task counts; it must be a classification.

    data: directory, hub id, or splits of rows; encoders: see `candidates.by_column`
    score: name of a score of features (`mmtransfer.registry.scores`)
    source: other data with such columns, one or several, whose distance to this is measured
    verify: train so many of the best, frozen, and compare with what was predicted
    most_sets, most_rows: how many sets are tried, and on how many random training rows
    components: principal components of each encoder that count
    model_options: of the verification: fusion, width and the like, by default those of
        `mmtransfer train`
    strategy_options: of its linear probe: epochs, lr, weight_decay
    Raises `ValueError` for a mistake in any of them, before anything is encoded.
    """
    clock = Clock()
    training = training or TrainingOptions()
    splits = dict(load_rows(data) if isinstance(data, str | Path) else data)
    check_splits(splits)
    feature_score(score)
    for name in tasks:
        splits = {split: with_label_names(rows, name) for split, rows in splits.items()}
    task, built = main_task(tasks)
    sorted_in = by_column(encoders, splits["train"], tasks)
    origins = {
        str(s): load_rows(s) for s in ([source] if isinstance(source, str) else source or [])
    }
    for name, count in (("most_sets", most_sets), ("most_rows", most_rows)):
        if count < 2:
            raise ValueError(f"{name} must be at least 2, found {count}")
    if verify < 0:
        raise ValueError(f"verify must not be negative, found {verify}")
    if verify and not {"test", "validation"} & set(splits):
        raise ValueError(f"verify needs test or validation rows; found {', '.join(splits)}")
    probe = build_strategy("linear_probe", **(strategy_options or {}))
    pool = Pool(sorted_in, splits["train"], training.seed)
    some = {name: pool.encoders[name, specs[0]] for name, specs in sorted_in.items()}
    for split, rows in sorted(splits.items(), key=lambda item: item[0] != "train"):
        check_rows(rows, some, {task: built}, split, training=split == "train")
    for where, found in origins.items():
        check_rows(first_split(found), some, {}, where)
        check_values(first_split(found), some, where)
    if origins:
        check_values(splits["train"], some, "train")

    scorer = Scorer(score, splits, task, built, most_rows, components, training.seed)
    clock.lap("loading")
    row_seconds: dict[tuple[str, str], float] = {}
    for name, spec in pool.encoders:
        encoded = {s: pool.encode(name, spec, splits[s], s, training) for s in scorer.rows}
        clock.lap("encoding")
        row_seconds[name, spec] = pool.row_seconds(name, spec, splits["train"], training)
        clock.lap("timing")
        scorer.add(name, spec, encoded)
        clock.lap("predicting")
    everything = sets_of(sorted_in)
    candidates, told = rank(scorer, everything[:most_sets], row_seconds)
    clock.lap("predicting")
    best = recommend(candidates, told)
    distances = {}
    for where, found in origins.items():
        distances[where] = {
            name: apart(pool, name, spec, first_split(found), where, splits["train"], training)
            for name, spec in best.encoders.items()
        }
    distances = dict(sorted(distances.items(), key=lambda d: farness(d[1])))
    clock.lap("distances")
    others = len(splits.get("validation", ()))
    minutes = estimate_minutes(len(splits["train"]), others, best.row_milliseconds / 1000)
    nearest_source = next(iter(distances.values()), {})
    far = {name: found["proxy_a"] for name, found in nearest_source.items()}
    advice = advise(scorer.labelled, scorer.classes, minutes, budget_minutes, far)
    choice = Choice(
        task,
        score,
        scorer.basis,
        candidates,
        best,
        advice,
        [*reasons_for(best, candidates, score, distances), *advice.reasons],
        command_for(
            data,
            best.encoders,
            tasks,
            advice.strategy,
            model_options,
            strategy_options,
            training,
        ),
        scorer.labelled,
        scorer.classes,
        len(everything) - len(candidates),
        distances,
    )
    if verify:
        for candidate in candidates[:verify]:
            train(candidate, pool, splits, tasks, probe, training, model_options)
        choice.correlation = correlation(candidates)
        clock.lap("training")
    choice.seconds = clock.seconds
    return choice


class Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, what: str) -> None:
        """The seconds since the last lap were spent on this."""
        now = time.perf_counter()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - self.last
        self.last = now


def main_task(tasks: Mapping[str, Any]) -> tuple[str, Task]:
    """Name of the first task, and the task.  Raises `ValueError` unless it has classes."""
    if not tasks:
        raise ValueError("no task is given: name at least one target column")
    name, spec = next(iter(tasks.items()))
    built = build_task(spec)
    if not isinstance(built, Classification):
        raise ValueError(f"task {name!r} is a {type(built).__name__}: scores need classes")
    return name, built


def first_split(rows: Mapping[str, Rows]) -> Rows:
    return rows["train"] if "train" in rows else next(iter(rows.values()))


def train(
    candidate: Candidate,
    pool: Pool,
    splits: Mapping[str, Rows],
    tasks: Mapping[str, Any],
    strategy: Strategy,
    training: TrainingOptions,
    model_options: Mapping[str, Any] | None,
) -> None:
    """Train fusion and heads on the frozen encoders, and note score and seconds."""
    started = time.perf_counter()
    encoders = {pair[0]: pool.encoders[pair] for pair in candidate.encoders.items()}
    model = build_model(
        encoders, tasks, splits["train"], seed=training.seed, **model_of(model_options)
    )
    metrics = run(model, splits, strategy, training, title=candidate.label)
    name = next(iter(tasks))
    shown = next((s for s in ("test", "validation") if name in metrics.get(s, {})), None)
    if shown is None:
        raise ValueError(f"verify needs labels in {name!r} of the test or validation rows")
    candidate.trained = metrics[shown][name][model.tasks[name].score]
    candidate.training_seconds = time.perf_counter() - started
