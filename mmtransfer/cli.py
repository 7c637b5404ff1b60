"""The `mmtransfer` command."""

from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any


def command(components: Any, name: str, arguments: list[str] | None = None) -> None:
    """Run a function, or one of several by name, with options from its type hints.

    A user's mistake ends with one clear line and exit code 2; `MMTRANSFER_TRACEBACK=1` shows where.
    """
    from jsonargparse import auto_cli

    several = isinstance(components, dict)
    given = bare_flags(components, sys.argv[1:] if arguments is None else arguments)
    try:
        auto_cli(components, args=given, prog=name, as_positional=several)
    except (ValueError, OSError, ArithmeticError) as error:
        if os.environ.get("MMTRANSFER_TRACEBACK"):
            raise
        print(f"{name}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def bare_flags(components: Any, arguments: list[str]) -> list[str]:
    """Let `--overwrite` alone mean `--overwrite true`, for every option that is a bool."""
    functions = components.values() if isinstance(components, dict) else [components]
    flags = {
        f"--{name}"
        for function in functions
        for name, parameter in inspect.signature(function).parameters.items()
        if str(parameter.annotation).startswith("bool")
    }
    following = [*arguments[1:], "--"]
    return [
        f"{word}=true" if word in flags and after.startswith("--") else word
        for word, after in zip(arguments, following, strict=False)
    ]


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `mmtransfer` command."""
    commands = {
        "encoders": encoders,
        "fusions": fusions,
        "tasks": tasks,
        "strategies": strategies,
        "predict": predict,
        "rerun": rerun,
    }
    command(commands, "mmtransfer", arguments)


def encoders() -> None:
    """List the encoders that a specification string can name."""
    _list("encoders")
    print("\nAny other class: <package.module>:<Class>.  Options follow after '?': hf:DIR?size=176")


def fusions() -> None:
    """List the fusions."""
    _list("fusions")


def tasks() -> None:
    """List the tasks."""
    _list("tasks")


def strategies() -> None:
    """List the strategies."""
    _list("strategies")


def predict(
    model: str,
    rows: Path,
    output: Path | None = None,
    batch_size: int = 32,
    on_error: str = "raise",
) -> None:
    """Labels, probabilities and modality weights for the rows of a parquet file, as JSON lines.

    Args:
        model: directory of a saved model, or hub id
        rows: parquet file; columns that the model does not know are ignored
        output: write there instead of to the terminal
        batch_size: rows per forward pass
        on_error: "raise" stops at an unreadable value, "missing" counts it as missing
    """
    from mmtransfer.data.rows import read_parquet
    from mmtransfer.model import TransferModel

    if not rows.is_file():
        raise FileNotFoundError(f"no such file: {rows}")
    loaded = TransferModel.from_pretrained(model)
    answers = loaded.predict(read_parquet([rows]), batch_size, on_error)
    lines = "".join(json.dumps(answer) + "\n" for answer in answers)
    if output is None:
        print(lines, end="")
    else:
        output.write_text(lines)
        print(f"{len(answers)} rows written to {output}")


def rerun(run: Path, output: Path | None = None) -> None:
    """Repeat a run in a new directory and compare: exit code 1 unless all is bit-equal.

    Args:
        run: output directory of the run
        output: new directory, by default RUN-rerun
    """
    from mmtransfer.training.rerun import print_findings
    from mmtransfer.training.rerun import rerun as repeat

    findings = repeat(run, output)
    print_findings(findings)
    if not all(found.same for found in findings if found.result):
        raise SystemExit(1)


def _list(family: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    import mmtransfer.registry

    registry: Any = getattr(mmtransfer.registry, family)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, line in registry.describe().items():
        table.add_row(f"[bold]{name}[/bold]", escape(line))
    Console().print(table)


if __name__ == "__main__":
    main()
