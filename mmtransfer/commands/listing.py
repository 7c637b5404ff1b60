"""`mmtransfer encoders`, `fusions` and the like: the names that there are, with a line on each."""

from __future__ import annotations

from collections.abc import Mapping
from json import dumps
from typing import Any

MORE_ENCODERS = (
    "Any other class: <package.module>:<Class>.  Options follow after '?': hf:DIR?size=176"
)

#: ways of transfer beside the training loop, by where they are
BESIDE = {
    "mmtransfer.transfer.feature_based": ("FeatureBased",),
    "mmtransfer.transfer.tradaboost": ("TrAdaBoost",),
    "mmtransfer.transfer.soups": ("uniform_soup", "greedy_soup", "alpha_curve"),
    "mmtransfer.methods.adabn": ("adapt_batch_norm",),
    "mmtransfer.evaluation.affinity": ("task_affinity",),
}


def encoders(json: bool = False) -> None:
    """List the encoders that a specification string can name.

    Args:
        json: print JSON
    """
    show("encoders", json)
    if not json:
        print(f"\n{MORE_ENCODERS}")


def fusions(json: bool = False) -> None:
    """List the fusions.

    Args:
        json: print JSON
    """
    show("fusions", json)


def tasks(json: bool = False) -> None:
    """List the tasks.

    Args:
        json: print JSON
    """
    show("tasks", json)


def strategies(json: bool = False) -> None:
    """List the strategies; without `json` all other ways of transfer, too.

    Args:
        json: print JSON
    """
    show("strategies", json)
    if json:
        return
    from mmtransfer.registry import first_line, import_class

    print("\nMethods, which go with any of them:\n")
    show("methods", json)
    for module, names in BESIDE.items():
        print(f"\nIn {module}:\n")
        show_lines({name: first_line(import_class(f"{module}:{name}")) for name in names})


def methods(json: bool = False) -> None:
    """List the methods of the training loop.

    Args:
        json: print JSON
    """
    show("methods", json)


def scores(json: bool = False) -> None:
    """List the transferability scores.

    Args:
        json: print JSON
    """
    show("scores", json)


def show(family: str, json: bool) -> None:
    """A table of a registry's names and first lines, or `{name: line}` as JSON."""
    import mmtransfer.registry

    registry: Any = getattr(mmtransfer.registry, family)
    described = registry.describe()
    if json:
        print(dumps(described, ensure_ascii=False))
        return
    show_lines(described)


def show_lines(described: Mapping[str, str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, line in described.items():
        table.add_row(f"[bold]{name}[/bold]", escape(line))
    Console().print(table)
