"""The `mmtransfer` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from json import dumps
from pathlib import Path
from typing import Any

from mmtransfer import __version__
from mmtransfer.commands.cache import cache_list, cache_prune, cache_verify
from mmtransfer.commands.data import data_av_digits, data_checksum, data_retail
from mmtransfer.commands.listing import encoders, fusions, methods, scores, strategies, tasks
from mmtransfer.commands.report import doctor, report
from mmtransfer.commands.words import prepared


def command(components: Any, name: str, arguments: list[str] | None = None) -> None:
    """Run a function, or one of several by name, with options from its type hints.

    A user's mistake ends with one clear line and exit code 2; `MMTRANSFER_TRACEBACK=1` shows where.
    """
    from jsonargparse import auto_cli, set_parsing_settings

    several = isinstance(components, dict)
    set_parsing_settings(add_print_completion_argument=several)
    given = sys.argv[1:] if arguments is None else arguments
    with one_line_errors(name):
        given = prepared(components, given)
        auto_cli(components, args=given, prog=name, as_positional=several)


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, ArithmeticError) as error:
        if os.environ.get("MMTRANSFER_TRACEBACK"):
            raise
        print(f"{name}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `mmtransfer` command."""
    given = sys.argv[1:] if arguments is None else arguments
    if given == ["--version"]:
        print(f"mmtransfer {__version__}")
        return
    given = given or ["--help"]
    if given[:1] == ["train"]:
        from mmtransfer.commands.recipe_file import recipe_words

        with one_line_errors("mmtransfer"):
            given = recipe_words(given)
    commands = {
        "encoders": encoders,
        "fusions": fusions,
        "tasks": tasks,
        "strategies": strategies,
        "methods": methods,
        "scores": scores,
        "choose": when_asked(given, "choose", "mmtransfer.selection.command:choose_command"),
        "train": when_asked(given, "train", "mmtransfer.commands.train:train_command"),
        "evaluate": evaluate,
        "predict": predict,
        "report": report,
        "rerun": rerun,
        "benchmark": {
            "_help": "Compare fusions on the features of frozen encoders.",
            "fusion": when_asked(
                given, "benchmark", "mmtransfer.benchmark.command:fusion_benchmark"
            ),
        },
        "cache": {
            "_help": "Look at the stored features of frozen encoders, check or remove them.",
            "list": cache_list,
            "verify": cache_verify,
            "prune": cache_prune,
        },
        "data": {
            "_help": "Build the data sets of the benchmarks, and tell data sets by their checksum.",
            "retail": data_retail,
            "av-digits": data_av_digits,
            "checksum": data_checksum,
        },
        "doctor": doctor,
    }
    command(commands, "mmtransfer", given)


#: commands whose options come from classes that take long to import, and what they do
LATER = {
    "choose": "Rank encoders and sets of them before training; name a strategy and the command.",
    "train": "Train from a YAML file: mmtransfer train RECIPE.yaml [options].",
    "benchmark": "Compare fusions: accuracy, calibration, missing modalities, noise.",
}


def when_asked(given: list[str], name: str, place: str) -> Callable[..., None]:
    """The function at `module:name` if its options matter, else a stand-in for the help."""
    if given[:1] in ([name], ["--print_completion"]):
        module, _, function = place.partition(":")
        found: Callable[..., None] = getattr(import_module(module), function)
        return found

    def later() -> None: ...

    later.__doc__ = LATER[name]
    return later


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
    from mmtransfer.training.setup import keep_freed_memory

    keep_freed_memory()
    if rows.is_dir():
        files = ", ".join(sorted(path.name for path in rows.glob("*.parquet"))) or "none"
        raise IsADirectoryError(f"{rows} is a directory: name one of its parquet files ({files})")
    if not rows.is_file():
        raise FileNotFoundError(f"no such file: {rows}")
    loaded = TransferModel.from_pretrained(model)
    answers = loaded.predict(read_parquet([rows]), batch_size, on_error)
    lines = "".join(dumps(answer) + "\n" for answer in answers)
    if output is None:
        print(lines, end="")
    else:
        output.write_text(lines)
        print(f"{len(answers)} rows written to {output}")


def evaluate(
    model: str,
    data: str,
    output: Path | None = None,
    split: str = "test",
    calibrate_on: str = "validation",
    outliers: str | None = None,
    save_temperature: bool = False,
    batch_size: int = 64,
    on_error: str = "raise",
    resamples: int = 2000,
    seed: int = 0,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Metrics with intervals, calibration, contributions of modalities, robustness, mistakes.

    Args:
        model: directory of a saved model, or hub id
        data: directory with parquet files, or hub id
        output: directory for evaluation.json and pictures; by default RUN/evaluation for a model
            of a run, else evaluation
        split: the rows that are judged
        calibrate_on: split that temperatures are fitted on; left out where there is none
        outliers: data of another kind, whose split of the same name should look strange
        save_temperature: put the temperatures beside the model, for calibrated predictions
        batch_size: rows that are encoded at a time
        on_error: "raise" stops at an unreadable value, "missing" counts it as missing
        resamples: of the bootstrap
        seed: of bootstrap and maps
        overwrite: replace the evaluation that the output directory holds
        json: print a summary as JSON
    """
    from mmtransfer.evaluation.command import (
        default_output,
        evaluate_saved,
        print_summary,
        summary,
    )
    from mmtransfer.training.setup import keep_freed_memory

    keep_freed_memory()
    where = default_output(model) if output is None else output
    results = evaluate_saved(
        model,
        data,
        where,
        split,
        calibrate_on,
        outliers,
        save_temperature,
        overwrite,
        batch_size=batch_size,
        on_error=on_error,
        resamples=resamples,
        seed=seed,
        progress=not json,
    )
    if json:
        print(dumps(summary(results)))
    else:
        print_summary(results)
        print(f"evaluation.json and {len(results['pictures'])} pictures are in {where}")


def rerun(run: Path, output: Path | None = None, json: bool = False) -> None:
    """Repeat a run in a new directory and compare: exit code 1 unless all is bit-equal.

    Args:
        run: output directory of the run
        output: new directory, by default RUN-rerun
        json: print JSON
    """
    from mmtransfer.training.rerun import print_findings
    from mmtransfer.training.rerun import rerun as repeat

    findings = repeat(run, output)
    if json:
        print(dumps([asdict(found) for found in findings]))
    else:
        print_findings(findings)
    if not all(found.same for found in findings if found.result):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
