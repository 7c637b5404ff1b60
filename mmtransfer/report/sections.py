"""Sections of the page about one run, from what it left behind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any

from mmtransfer.evaluation.curves import COUNTED, SHARES, forgetting, learning_curves
from mmtransfer.report.charts import Chart, Table, bars, lines, matrix, scatter
from mmtransfer.report.collect import Run
from mmtransfer.report.mistakes import Wrong

#: metrics of at most 1, in the order in which a reader asks for them
MAIN = ("accuracy", "auroc", "f1_macro", "r2")
NOTHING = Wrong()
MAPS = {"pca": "PCA", "tsne": "t-SNE"}
SCORES = {"max_softmax": "maximum softmax", "energy": "energy", "mahalanobis": "Mahalanobis"}


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it: tables, figures, and perhaps rows that are wrong."""

    key: str
    title: str
    parts: Sequence[Chart | Table] = ()
    wrong: Wrong = NOTHING
    note: str = ""


def key_of(title: str) -> str:
    """An anchor: the letters and digits of a title."""
    return re.sub(r"\W+", "-", title).strip("-").lower() or "section"


def apart(sections: Iterable[Section]) -> list[Section]:
    """The same sections, with numbers behind keys that would come twice."""
    found: dict[str, Section] = {}
    for section in sections:
        others = (f"{section.key}-{k}" for k in count(2))
        key = next(key for key in chain([section.key], others) if key not in found)
        found[key] = replace(section, key=key)
    return list(found.values())


def main_metric(metrics: Mapping[str, float]) -> str | None:
    names = [name for name, value in metrics.items() if name not in COUNTED and value is not None]
    return next((name for name in MAIN if name in names), names[0] if names else None)


def of_run(run: Run, wrong: Mapping[str, Wrong], note: str) -> list[Section]:
    """All there is to say about a run.  wrong: by task; note: why mistakes are without inputs"""
    found = [about_task(run, task, wrong.get(task, NOTHING), note) for task in run.scores()]
    found += [modalities(run), learning(run), maps(run), settings(run), surroundings(run)]
    return apart(section for section in found if section.parts)


def about_task(run: Run, name: str, wrong: Wrong, note: str) -> Section:
    """Metrics, classes, confusions, calibration of one task."""
    metrics, intervals = run.scores()[name], run.intervals(name)
    columns = ["metric", "value", *(("from", "to") if intervals else ())]
    rows: list[list[Any]] = []
    for metric, value in metrics.items():
        bounds = intervals.get(metric)
        ends = [bounds["low"], bounds["high"]] if bounds else [None, None]
        rows.append([metric.replace("_", " "), value, *(ends if intervals else ())])
    said = ", with 95 % bootstrap intervals" if intervals else ""
    parts: list[Chart | Table] = [Table(f"{name}: metrics{said}", columns, rows)]
    task = (run.evaluation or {}).get("tasks", {}).get(name, {})
    if "contributions" in task:
        parts.append(contributions(task["contributions"]["accuracy"]))
    if "calibration" in task:
        parts += [reliability(task["calibration"]), selective(task["selective"])]
    if task.get("outliers"):
        parts.append(outliers(task["outliers"]))
    if "classes" in task:
        confusion = task["confusion"]
        names = [str(entry["class"]) for entry in task["classes"]]
        drawn = matrix("Confusion", confusion["matrix"], names)
        parts += [drawn] if drawn else []
        if confusion["pairs"]:
            pairs = [
                [f"{p['truth']} taken for {p['predicted']}", p["rows"], p["share"]]
                for p in confusion["pairs"]
            ]
            caption = "Most confused pairs, and their share of the true class"
            parts.append(Table(caption, ["pair", "rows", "share"], pairs))
        columns = [c for c in task["classes"][0] if c != "class"]
        classes = [[str(e["class"]), *(e[c] for c in columns)] for e in task["classes"]]
        heads = ["class", *(c.replace("_", " ") for c in columns)]
        parts.append(Table(f"{len(classes)} classes", heads, classes))
    said = note if task.get("confusion", {}).get("mistakes") else ""
    return Section(key_of(f"task {name}"), f"Task: {name}", parts, wrong, said)


def contributions(found: Mapping[str, Any]) -> Chart:
    shares = [(n, s["value"], (s["low"], s["high"])) for n, s in found["of_modalities"].items()]
    note = (
        f"Shapley values with 95 % intervals; together they lead from {found['none']:.3f} without "
        f"any modality to {found['all']:.3f} with all."
    )
    return bars("What each modality contributes", shares, "accuracy", note=note)


def reliability(stages: Mapping[str, Any]) -> Chart:
    series, rows = {}, []
    for stage, numbers in stages.items():
        filled = [b for b in numbers["bins"] if b["rows"]]
        name = f"{stage} scaling, ECE {numbers['ece']:.3f}"
        series[name] = [(b["confidence"], b["accuracy"]) for b in filled]
        rows += [[f"{stage} {b['low']:.2f} to {b['high']:.2f}", b["rows"], b["confidence"],
                  b["accuracy"]] for b in filled]  # fmt: skip
    table = Table("Calibration", ["scaling, bin", "rows", "confidence", "accuracy"], rows)
    ends = (0.0, 1.0)
    return lines(
        "Calibration", series, "confidence", "accuracy", y_range=ends, x_range=ends, diagonal=True,
        numbers=table,
    )  # fmt: skip


def selective(found: Mapping[str, Any]) -> Chart:
    points = [(c, r) for c, r in found["curve"]]
    steps = points[:: max(1, len(points) // 20)]
    table = Table("Errors among the surest rows", ["coverage", "errors"], [list(s) for s in steps])
    title = f"Errors among the surest rows, AURC {found['aurc']:.3f}"
    return lines(title, {"errors": points}, "coverage", "errors", x_range=(0, 1), numbers=table)


def outliers(found: Mapping[str, Mapping[str, float]]) -> Table:
    columns = list(dict.fromkeys(name for values in found.values() for name in values))
    rows = [[SCORES.get(n, n), *(v.get(c) for c in columns)] for n, v in found.items()]
    told = "Rows of another kind told apart" if "auroc" in columns else "Outlier scores of the rows"
    return Table(told, ["score", *columns], rows)


def modalities(run: Run) -> Section:
    """Each alone, every subset, and noise."""
    parts: list[Chart | Table] = []
    alone: Mapping[str, Any] = run.metrics.get("single") or {}
    together = run.metrics.get(run.split, {})
    for task in run.scores() if alone else ():
        metric = main_metric(together.get(task, {}))
        values = {f"{n} alone": found.get(task, {}) for n, found in alone.items()}
        values["together"] = together.get(task, {})
        known = [(n, found.get(metric)) for n, found in values.items()]
        shown = [(n, value, None) for n, value in known if value is not None]
        if metric and shown:
            title = f"{task}: trained on each modality alone"
            parts.append(bars(title, shown, metric.replace("_", " "), upper=1.0))
    robust = (run.evaluation or {}).get("robustness", {})
    subsets, noise = robust.get("subsets", {}), robust.get("noise", {})
    for task in run.scores() if subsets else ():
        reached = [(n, scores.get(task)) for n, scores in subsets.items()]
        shown = [(n, score, None) for n, score in reached if score is not None]
        if shown:
            parts.append(bars(f"{task}: with only these modalities", shown, "score", upper=1.0))
        whole = next(iter(subsets.values())).get(task)
        levels = {
            name: [
                (0.0, whole),
                *((float(k), v[task]) for k, v in found.items() if v.get(task) is not None),
            ]
            for name, found in noise.items()
        }
        if levels and whole is not None:
            title = f"{task}: with noise on one modality"
            parts.append(lines(title, levels, "noise, deviations of the features", "score"))
    weights = (run.evaluation or {}).get("weights")
    if weights:
        mean = [(n, w, None) for n, w in weights.items()]
        parts.append(bars("Mean weight in the fusion", mean, "weight", upper=1.0))
    return Section("modalities", "Modalities", parts)


def learning(run: Run) -> Section:
    """Loss and scores by epoch, and what is left of the source."""
    parts: list[Chart | Table] = []
    curves = curves_of(run)
    losses = {n: p for n, p in curves.items() if n == "train loss" or n.endswith("/loss")}
    scores = {n: p for n, p in curves.items() if n not in losses}
    for title, series in (("Loss", losses), ("Validation scores", scores)):
        if any(len(points) > 1 for points in series.values()):
            parts.append(lines(title, series, "epoch", title.split()[-1], whole=True))
    source = run.metrics.get("source")
    if source:
        rows = [
            [f"{task}, {metric}", *values.values()]
            for task, scores in forgetting(source).items()
            for metric, values in scores.items()
        ]
        parts.append(Table("On the source", ["score", "before", "after", "forgotten"], rows))
    return Section("learning", "Learning", parts)


def curves_of(run: Run) -> dict[str, list[tuple[float, float]]]:
    """`train loss` and `task/metric` of the validation rows, by number of the epoch."""
    curves = learning_curves(run.metrics.get("history", []))
    return {
        "train loss" if name == "train_loss" else name: [
            (float(epoch), value) for epoch, value in enumerate(values, 1) if value is not None
        ]
        for name, values in curves.items()
        if name != "phase"
    }


def maps(run: Run) -> Section:
    parts = []
    for method, found in (run.evaluation or {}).get("maps", {}).items():
        task = (run.evaluation or {})["tasks"].get(found["task"], {})
        names = [entry["class"] for entry in task.get("classes", [])]
        explained = sum(found["explained"])
        note = f"{100 * explained:.0f} % of the variance." if method == "pca" else ""
        title = f"{MAPS.get(method, method)} of the fused vectors"
        points = [(x, y) for x, y in found["points"]]
        parts.append(scatter(title, points, found["classes"], names, note))
    return Section("maps", "Maps", parts)


def settings(run: Run) -> Section:
    rows = [[name, setting_text(value)] for name, value in run.settings().items()]
    parts = [Table("Configuration of the run", ["setting", "value"], rows)] if rows else []
    return Section("settings", "Settings", parts)


def surroundings(run: Run) -> Section:
    """Time, device, versions, code and data."""
    rows = [[name, setting_text(value)] for name, value in cost(run).items() if value is not None]
    record = run.record
    git = record.get("git") or {}
    changes = ", with uncommitted changes" if git.get("dirty") else ""
    about = {
        "started": record.get("time"),
        "commit": f"{git['commit'][:12]}{changes}" if git.get("commit") else None,
        "processor": record.get("hardware", {}).get("cpu"),
        "GPUs": ", ".join(record.get("hardware", {}).get("gpus", [])) or None,
        **{f"version of {n}": v for n, v in record.get("versions", {}).items()},
        **{f"rows of {s}": found.get("rows") for s, found in record.get("data", {}).items()},
    }
    rows += [[name, setting_text(value)] for name, value in about.items() if value is not None]
    parts = [Table("Where and how it ran", ["what", "value"], rows)] if rows else []
    return Section("surroundings", "Surroundings", parts)


def cost(run: Run) -> dict[str, Any]:
    """What a run took."""
    metrics = run.metrics
    trained = metrics.get("trained_parameters", {}).get("all")
    seconds = metrics.get("seconds")
    return {
        "seconds": None if seconds is None else round(seconds, 1),
        "parameters": metrics.get("parameters"),
        "parameters that trained": trained,
        **{name: metrics.get(name) for name in ("device", "processes", "precision", "steps")},
    }


def setting_text(value: Any) -> str:
    """A setting in words: nothing for None, lists with commas."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(setting_text(item) for item in value) or "none"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    return str(value)


def headline(run: Run) -> Iterable[tuple[str, str, str]]:
    """For each task: its name, its main metric in words, and the interval."""
    for name, metrics in run.scores().items():
        metric = main_metric(metrics)
        if metric is None:
            continue
        share = metric in SHARES
        value = f"{100 * metrics[metric]:.1f} %" if share else f"{metrics[metric]:.3f}"
        bounds = run.intervals(name).get(metric)
        if bounds and share:
            ends = f"{100 * bounds['low']:.1f} to {100 * bounds['high']:.1f}"
        else:
            ends = f"{bounds['low']:.3f} to {bounds['high']:.3f}" if bounds else ""
        yield f"{name}, {metric.replace('_', ' ')}", value, ends
