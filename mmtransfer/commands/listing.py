"""`mmtransfer encoders`, `fusions` and the like: the names that there are, with a line on each."""

from __future__ import annotations

from json import dumps
from typing import Any

MORE_ENCODERS = (
    "Any other class: <package.module>:<Class>.  Options follow after '?': hf:DIR?size=176"
)

MORE_STRATEGIES = (
    "Methods go with any of them: mmtransfer methods.  Without training of a network, on frozen "
    "features: mmtransfer.transfer.feature_based.  Averages of models: mmtransfer.transfer.soups"
)


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
    """List the strategies.

    Args:
        json: print JSON
    """
    show("strategies", json)
    if not json:
        print(f"\n{MORE_STRATEGIES}")


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
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, line in described.items():
        table.add_row(f"[bold]{name}[/bold]", escape(line))
    Console().print(table)
