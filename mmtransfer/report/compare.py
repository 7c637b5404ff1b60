"""Sections of the page that compares runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmtransfer.evaluation.curves import COUNTED, SHARES
from mmtransfer.report.charts import Chart, Table, bars, lines
from mmtransfer.report.collect import Run
from mmtransfer.report.sections import (
    Section,
    apart,
    cost,
    curves_of,
    key_of,
    main_metric,
    setting_text,
)

#: of these the smallest is the best
SMALLER = ("loss", "mae", "mse", "rmse", "ece")


def of_runs(runs: Sequence[Run], names: Sequence[str]) -> list[Section]:
    """Metrics, settings that differ, learning curves and cost, side by side."""
    tasks = list(dict.fromkeys(task for run in runs for task in run.scores()))
    found = [about_task(runs, names, task) for task in tasks]
    found += [settings(runs, names), learning(runs, names, tasks), costs(runs, names)]
    return apart(section for section in found if section.parts or section.note)


def about_task(runs: Sequence[Run], names: Sequence[str], task: str) -> Section:
    scores = [run.scores().get(task, {}) for run in runs]
    metrics = list(dict.fromkeys(m for found in scores for m in found if m != "rows"))
    rows: list[list[Any]] = []
    best: list[int | None] = []
    for metric in metrics:
        values = [found.get(metric) for found in scores]
        cells: list[Any] = []
        for run, value in zip(runs, values, strict=True):
            bounds = run.intervals(task).get(metric)
            cells.append((value, bounds["low"], bounds["high"]) if bounds else value)
        rows.append([metric.replace("_", " "), *cells])
        known = [(v, k) for k, v in enumerate(values) if v is not None]
        pick = min if metric in SMALLER else max
        ends = {v for v, _ in known}
        best.append(pick(known)[1] if len(ends) > 1 else None)
    counts = [run.judged(task) for run in runs]
    intervals = any(run.intervals(task) for run in runs)
    said = ", with 95 % bootstrap intervals where there are" if intervals else ""
    caption = f"{task}: metrics by run{said}; the best of a line is bold"
    parts: list[Chart | Table] = [Table(caption, ["metric", *names], rows, best=best)]
    shown_metric = next((m for m in map(main_metric, scores) if m), None)
    if shown_metric:
        shown = []
        for name, run, found in zip(names, runs, scores, strict=True):
            bounds = run.intervals(task).get(shown_metric)
            whisker = (bounds["low"], bounds["high"]) if bounds else None
            if found.get(shown_metric) is not None:
                shown.append((name, found[shown_metric], whisker))
        upper = 1.0 if shown_metric in SHARES else None
        parts.append(bars(f"{task} by run", shown, shown_metric.replace("_", " "), upper))
    splits = [run.judged_on for run, found in zip(runs, scores, strict=True) if found]
    notes = []
    if len({split for split in splits if split is not None}) > 1:
        told = ", ".join(split or "?" for split in splits)
        notes.append(f"These runs were judged on different splits ({told}): compare with care.")
    if len({count for count in counts if count is not None}) > 1:
        told = ", ".join("?" if count is None else str(count) for count in counts)
        rows_told = f"These runs were judged on different numbers of rows ({told})"
        notes.append(f"{rows_told}: compare with care.")
    return Section(key_of(f"task {task}"), f"Task: {task}", parts, note=" ".join(notes))


def settings(runs: Sequence[Run], names: Sequence[str]) -> Section:
    """Only what differs."""
    found = [run.settings() for run in runs]
    keys = list(dict.fromkeys(key for values in found for key in values))
    rows = []
    for key in keys:
        words = [setting_text(values[key]) if key in values else "" for values in found]
        if len(set(words)) > 1:
            rows.append([key, *words])
    if not rows:
        return Section("settings", "Settings that differ", note="All settings are the same.")
    return Section(
        "settings",
        "Settings that differ",
        [
            Table(
                f"{len(rows)} of {len(keys)} settings differ", ["setting", *names], rows, open=True
            )
        ],
    )


def learning(runs: Sequence[Run], names: Sequence[str], tasks: Sequence[str]) -> Section:
    """The same curve of all runs in one figure."""
    curves = [curves_of(run) for run in runs]
    wanted = ["train loss"]
    for task in tasks:
        metrics = {m: 0.0 for c in curves for m in _of_task(c, task) if m not in COUNTED}
        metric = main_metric(metrics)
        wanted += [f"{task}/{metric}"] if metric else []
    parts = []
    for curve in wanted:
        series = {n: c[curve] for n, c in zip(names, curves, strict=True) if curve in c}
        if any(len(points) > 1 for points in series.values()):
            task, _, metric = curve.partition("/")
            title = f"{task}: validation {metric.replace('_', ' ')}" if metric else "Train loss"
            label = metric.replace("_", " ") or "loss"
            parts.append(lines(title, series, "epoch", label, whole=True))
    return Section("learning", "Learning curves", parts)


def _of_task(curves: dict[str, Any], task: str) -> list[str]:
    return [name.removeprefix(f"{task}/") for name in curves if name.startswith(f"{task}/")]


def costs(runs: Sequence[Run], names: Sequence[str]) -> Section:
    found = [cost(run) for run in runs]
    keys = [key for key in found[0] if any(values.get(key) is not None for values in found)]
    rows = [[key, *(values.get(key) for values in found)] for key in keys]
    parts = [Table("What each run took", ["", *names], rows)] if rows else []
    return Section("cost", "Cost", parts)
