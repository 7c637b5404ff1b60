"""Everything that can be said of a trained model on some rows, in one go."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtransfer.data.rows import Rows
from mmtransfer.evaluation.calibration import fit_temperatures
from mmtransfer.evaluation.curves import forgetting, learning_curves
from mmtransfer.evaluation.embedding import MAPS
from mmtransfer.evaluation.encoded import subset_logits
from mmtransfer.evaluation.metrics import Collected, compute_metrics
from mmtransfer.evaluation.pictures import draw
from mmtransfer.evaluation.sections import (
    Judged,
    Options,
    about_classes,
    about_modalities,
    about_outliers,
    has_classes,
    mapped,
    robustness,
)
from mmtransfer.model import TransferModel
from mmtransfer.temperature import Temperature
from mmtransfer.training.surroundings import versions

RESULTS = "evaluation.json"


def evaluate(
    model: TransferModel,
    rows: Rows,
    *,
    calibrate_on: Rows | None = None,
    outliers: Rows | None = None,
    run: Mapping[str, Any] | None = None,
    output: Path | None = None,
    options: Options | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Metrics with intervals, calibration, contributions and more; each row is encoded once.

    calibrate_on: labelled rows that the model was not trained on, for temperatures and for what
        the Mahalanobis distance takes as usual; for a task without labels there, a temperature that
        the model has is judged
    outliers: rows of another kind, with the same columns, that a score should tell from `rows`
    run: metrics of the training run, for curves and forgetting
    output: directory for `evaluation.json` and pictures
    about: of the rows and the model, kept as it is beside seed and versions: the command names the
        `model`, the `data`, the `split` and `calibrate_on`
    -> only dictionaries, lists, strings and numbers; row numbers count within `rows`.  In the file
        null stands for numbers that are not finite
    """
    options = options or Options()
    seen = Judged.of(model, rows, "evaluation", options)
    held = None if calibrate_on is None else Judged.of(model, calibrate_on, "held out", options)
    strange = None if outliers is None else Judged.of(model, outliers, "outlier", options)
    modalities, targets = model.fusion.modalities, seen.examples.targets
    several = {n: t for n, t in model.tasks.items() if has_classes(targets[n])}
    temperature = model.temperature
    if held is not None:
        known = {name: held.labelled(name, task) for name, task in several.items()}
        fitted = fit_temperatures(
            {n: z for n, (z, _) in known.items()}, {n: y for n, (_, y) in known.items()}
        )
        temperature = Temperature({**temperature.by_task, **fitted.by_task})
    subsets = subset_logits(model, seen.examples)
    results: dict[str, Any] = {
        "about": {**(about or {}), "seed": options.seed, "versions": versions()},
        "rows": len(rows),
        "modalities": {n: int(f.present.sum()) for n, f in seen.examples.features.items()},
        "unreadable": {name: len(numbers) for name, numbers in seen.unreadable.items()},
        "temperature": temperature.by_task,
        "tasks": {},
        "robustness": robustness(model, seen.examples, subsets),
    }
    plain = compute_metrics(model.tasks, Collected(seen.decided.logits, targets))
    for name, task in model.tasks.items():
        found: dict[str, Any] = {
            "labelled": plain[name]["rows"],
            "score": task.score,
            "metrics": plain[name],
        }
        if name in several and plain[name]["rows"]:
            found |= about_classes(name, task, seen, temperature, options)
            found["contributions"] = about_modalities(
                name, task, subsets[name], targets[name], modalities, temperature, options
            )
        results["tasks"][name] = found
        if name in several and (held is not None or strange is not None):
            found["outliers"] = about_outliers(name, task, seen, held, strange)
    if len(rows) >= 4:
        results["maps"] = {m: mapped(seen, next(iter(several), None), m, options) for m in MAPS}
    if seen.decided.weights is not None:
        means = seen.decided.weights.double().mean(0).tolist()
        results["weights"] = dict(zip(modalities, means, strict=True))
    if run is not None:
        results["learning"] = learning_curves(run.get("history", []))
        results["forgetting"] = forgetting(run["source"]) if "source" in run else {}
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        results["pictures"] = []
        write(results, output)  # before any picture, whose failure must not lose the numbers
        results["pictures"] = draw(results, output)
        write(results, output)
    return results


def write(results: Mapping[str, Any], output: Path) -> None:
    content = json.dumps(writable(results), indent=1, allow_nan=False)
    (output / RESULTS).write_text(content + "\n")


def writable(value: Any) -> Any:
    """The same value with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: writable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [writable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
