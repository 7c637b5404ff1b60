"""What the directory of a run says: metrics, configuration, surroundings, evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PLACES = ("evaluation.json", "evaluation/evaluation.json")
#: arguments that say where a run lies, not what it is
ASIDE = ("output", "overwrite", "resume")


@dataclass(frozen=True)
class Run:
    """Files of a run, empty where they are not there; `evaluation` None."""

    directory: Path
    name: str
    metrics: Mapping[str, Any]
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None

    @property
    def split(self) -> str:
        """The rows that the metrics of the run are about."""
        return "test" if "test" in self.metrics else "validation"

    @property
    def judged_on(self) -> str | None:
        """The split that the scores are of; None for an evaluation that does not say."""
        if self.evaluation is None:
            return self.split
        split: str | None = self.evaluation.get("about", {}).get("split")
        return split

    def scores(self) -> dict[str, dict[str, float]]:
        """Metrics by task: those of the evaluation, else of the run."""
        if self.evaluation is not None:
            return {name: task["metrics"] for name, task in self.evaluation["tasks"].items()}
        return {name: dict(found) for name, found in self.metrics.get(self.split, {}).items()}

    def judged(self, task: str) -> int | None:
        """How many labelled rows the scores of a task are about, None where it has none."""
        if self.evaluation is not None:
            count: int | None = self.evaluation["tasks"].get(task, {}).get("labelled")
            return count
        return self.metrics.get(self.split, {}).get(task, {}).get("rows")

    def intervals(self, task: str) -> Mapping[str, Mapping[str, float]]:
        """Bootstrap intervals by metric, where there are."""
        found = (self.evaluation or {}).get("tasks", {}).get(task, {})
        intervals: Mapping[str, Mapping[str, float]] = found.get("intervals", {})
        return intervals

    def settings(self) -> dict[str, Any]:
        """The configuration by dotted name."""
        return {k: v for k, v in flat(self.config) if k not in ASIDE}


def read_run(directory: Path) -> Run:
    """Raises `FileNotFoundError` where no run left anything, `ValueError` for a damaged file."""
    if not directory.is_dir():
        raise FileNotFoundError(f"no such directory: {directory}")
    evaluation = next((directory / p for p in PLACES if (directory / p).is_file()), None)
    if evaluation is None and not (directory / "metrics.json").is_file():
        raise FileNotFoundError(
            f"{directory} holds neither metrics.json nor evaluation.json: expected the output "
            "directory of a run"
        )
    config = directory / "config.yaml"
    return Run(
        directory,
        directory.resolve().name,
        read_json(directory / "metrics.json"),
        (yaml.safe_load(config.read_text()) or {}) if config.is_file() else {},
        read_json(directory / "run.json"),
        None if evaluation is None else read_json(evaluation),
    )


def read_json(path: Path) -> dict[str, Any]:
    """An object, empty without the file; None for NaN and infinity, which Python writes, too.

    Raises `ValueError` for what is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(), parse_constant=lambda _: None)
    except ValueError as error:
        raise ValueError(f"{path} is no readable JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object, found {type(found).__name__}")
    return found


def named_apart(runs: Sequence[Run]) -> list[str]:
    """Names of the directories, with as much of the path as tells them apart."""
    paths = [run.directory.resolve() for run in runs]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({k})" for k, name in enumerate(names, 1)]  # one directory, given twice


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dictionaries with their dotted names; an empty one is a leaf."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
