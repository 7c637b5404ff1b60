"""Which tasks help which: each alone, in pairs and all together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from rich.console import Console
from rich.table import Table

from mmtransfer.evaluation.charts import deviation, mean

#: trains a model of these tasks with this seed; -> the score of each, larger is better
Fit = Callable[[tuple[str, ...], int], Mapping[str, float]]


@dataclass
class Affinity:
    """Scores by the tasks that were trained together, `{tasks: {task: one score per seed}}`."""

    tasks: tuple[str, ...]
    scores: dict[tuple[str, ...], dict[str, list[float]]]

    def gain(self, task: str, together: Sequence[str]) -> list[float]:
        """What a task gains by this company over training alone, per seed.

        Raises `ValueError` for company that was not tried.
        """
        found = tuple(name for name in self.tasks if name in together)
        if found not in self.scores or task not in found:
            tried = "; ".join(" + ".join(names) for names in self.scores)
            raise ValueError(f"{task!r} was not trained with {list(together)}; tried: {tried}")
        pairs = zip(self.scores[found][task], self.scores[(task,)][task], strict=True)
        return [with_others - alone for with_others, alone in pairs]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: scores and mean gains by the tasks that were trained together."""
        return {
            " + ".join(names): {
                task: {"scores": values, "gain": mean(self.gain(task, names))}
                for task, values in of.items()
            }
            for names, of in self.scores.items()
        }

    def print(self, title: str = "Tasks together") -> None:
        """A table: scores alone in percent, below them what each company adds in points."""
        table = Table(title=title, title_justify="left")
        table.add_column("trained with")
        for task in self.tasks:
            table.add_column(task, justify="right", no_wrap=True)
        alone = [_shown(self.scores[(task,)][task]) for task in self.tasks]
        table.add_row("nothing else", *alone)
        for names in self.scores:
            if len(names) > 1:
                gains = {task: _shown(self.gain(task, names), "+") for task in names}
                cells = [gains.get(task, "") for task in self.tasks]
                table.add_row(" + ".join(names), *cells)
        Console().print(table)


def task_affinity(
    fit: Fit, tasks: Iterable[str], seeds: Sequence[int] = (0,), pairs: bool = True
) -> Affinity:
    """Train each task alone, each pair and all tasks, and compare (Standley et al., ICML 2020).

    pairs: False leaves the pairs out, which for T tasks are T (T - 1) / 2 models
    Raises `ValueError` for fewer than two tasks, and for a task whose score `fit` does not give.
    """
    names = tuple(tasks)
    if len(names) < 2 or not seeds:
        raise ValueError(f"affinity needs two tasks and a seed, found {list(names)}, {list(seeds)}")
    groups = [(name,) for name in names] + (list(combinations(names, 2)) if pairs else [])
    scores: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for group in dict.fromkeys([*groups, names]):
        scores[group] = {name: [] for name in group}
        for seed in seeds:
            found = fit(group, seed)
            for name in group:
                if name not in found:
                    raise ValueError(f"there is no score of {name!r}; found {sorted(found)}")
                scores[group][name].append(found[name])
    return Affinity(names, scores)


def _shown(values: Sequence[float], sign: str = "") -> str:
    text = f"{100 * mean(values):{sign}.1f}"
    return text + (f" ± {100 * deviation(values):.1f}" if len(values) > 1 else "")
