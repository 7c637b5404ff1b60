"""Which tasks help which: which models are trained, and what is made of their scores."""

from __future__ import annotations

import json

import pytest

from mmtransfer.evaluation.affinity import task_affinity

HELP = {("a", "b"): 0.1, ("b", "c"): -0.2}


def fit(tasks, seed):
    """Each task has 0.5, and what each other one adds."""
    found = {}
    for task in tasks:
        gains = [HELP.get(tuple(sorted((task, o))), 0.0) for o in tasks if o != task]
        found[task] = 0.5 + 0.01 * seed + sum(gains)
    return found


def test_each_alone_pairs_and_all_are_compared():
    found = task_affinity(fit, ["a", "b", "c"], seeds=(0, 1))
    assert list(found.scores) == [
        ("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")
    ]  # fmt: skip
    assert found.gain("a", ["b", "a"]) == pytest.approx([0.1, 0.1])
    assert found.gain("b", ["b", "c"]) == pytest.approx([-0.2, -0.2])
    assert found.gain("b", "abc") == pytest.approx([-0.1, -0.1])
    assert found.gain("c", ["c"]) == [0.0, 0.0]
    told = json.loads(json.dumps(found.as_dict()))
    assert told["a + b"]["a"] == {"scores": pytest.approx([0.6, 0.61]), "gain": pytest.approx(0.1)}


def test_the_table_shows_gains_in_points(capsys):
    task_affinity(fit, ["a", "b", "c"]).print()
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].startswith("Tasks together")
    rows = {
        line.split("│")[1].strip(): line.split("│")[2:5]
        for line in shown.split("\n")
        if "│" in line
    }
    assert [cell.strip() for cell in rows["nothing else"]] == ["50.0"] * 3
    assert [cell.strip() for cell in rows["b + c"]] == ["", "-20.0", "-20.0"]


def test_without_pairs_and_with_two_tasks_nothing_is_trained_twice():
    tried = []

    def count(tasks, seed):
        tried.append(tasks)
        return fit(tasks, seed)

    task_affinity(count, "abc", pairs=False)
    assert tried == [("a",), ("b",), ("c",), ("a", "b", "c")]
    tried.clear()
    task_affinity(count, "ab")
    assert tried == [("a",), ("b",), ("a", "b")]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"two tasks and a seed, found \['a'\]"):
        task_affinity(fit, ["a"])
    with pytest.raises(ValueError, match="no score of 'a'"):
        task_affinity(lambda tasks, seed: {}, "ab")
    found = task_affinity(fit, "abc", pairs=False)
    with pytest.raises(ValueError, match="'a' was not trained with"):
        found.gain("a", "ab")
