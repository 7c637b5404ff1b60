"""The `mmtransfer` command."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Any


def command(components: Any, name: str, arguments: list[str] | None = None) -> None:
    """Run a function, or one of several by name, with options from its type hints.

    A user's mistake ends with one clear line and exit code 2; `MMTRANSFER_TRACEBACK=1` shows where.
    """
    from jsonargparse import auto_cli

    several = isinstance(components, dict)
    given = sys.argv[1:] if arguments is None else arguments
    given = bare_lists(components, bare_flags(components, given))
    try:
        auto_cli(components, args=given, prog=name, as_positional=several)
    except (ValueError, OSError, ArithmeticError) as error:
        if os.environ.get("MMTRANSFER_TRACEBACK"):
            raise
        print(f"{name}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def bare_flags(components: Any, arguments: list[str]) -> list[str]:
    """Let `--overwrite` alone mean `--overwrite true`, for every option that is a bool."""
    flags = {
        f"--{name}"
        for function in _functions(components)
        for name, parameter in inspect.signature(function).parameters.items()
        if str(parameter.annotation).startswith("bool")
    }
    following = [*arguments[1:], "--"]
    return [
        f"{word}=true" if word in flags and after.startswith("--") else word
        for word, after in zip(arguments, following, strict=False)
    ]


def bare_lists(components: Any, arguments: list[str]) -> list[str]:
    """Let `--encoders a b` mean `--encoders '["a", "b"]'`, for every option that is a list."""
    lists = {
        f"--{name}"
        for function in _functions(components)
        for name, parameter in inspect.signature(function).parameters.items()
        if str(parameter.annotation).startswith("list[str]")
    }
    found: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        found.append(word)
        values: list[str] = []
        while word in lists and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        if (len(values) == 1 and values[0][:1] in ("[", "{")) or values == ["null"]:
            found += values
        elif values:
            found.append(dumps(values))
    return found


def _functions(components: Any) -> list[Callable[..., Any]]:
    if isinstance(components, dict):  # commands by name, each perhaps such a dict, and their help
        parts = [part for name, part in components.items() if name != "_help"]
        return [function for part in parts for function in _functions(part)]
    return [components]


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `mmtransfer` command."""
    given = sys.argv[1:] if arguments is None else arguments
    commands = {
        "encoders": encoders,
        "fusions": fusions,
        "tasks": tasks,
        "strategies": strategies,
        "methods": methods,
        "scores": scores,
        "choose": choose(given),
        "predict": predict,
        "evaluate": evaluate,
        "rerun": rerun,
        "benchmark": {
            "_help": "Compare fusions on the features of frozen encoders.",
            "fusion": benchmark_fusion(given),
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
    }
    command(commands, "mmtransfer", given)


def benchmark_fusion(arguments: list[str]) -> Callable[..., None]:
    """The benchmark where it is asked for: its options come from classes that import torch."""
    if arguments[:1] == ["benchmark"]:
        from mmtransfer.benchmark.command import fusion_benchmark

        return fusion_benchmark

    def fusion() -> None:
        """Compare fusions: accuracy, calibration, missing modalities, noise."""

    return fusion


def choose(arguments: list[str]) -> Callable[..., None]:
    """The command where it is asked for: its options come from classes that import torch."""
    if arguments[:1] == ["choose"]:
        from mmtransfer.selection.command import choose_command

        return choose_command

    def choose() -> None:
        """Rank encoders and sets of them before training; name a strategy and the command."""

    return choose


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


def methods() -> None:
    """List the methods of the training loop."""
    _list("methods")


def scores() -> None:
    """List the transferability scores."""
    _list("scores")


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
    lines = "".join(dumps(answer) + "\n" for answer in answers)
    if output is None:
        print(lines, end="")
    else:
        output.write_text(lines)
        print(f"{len(answers)} rows written to {output}")


def evaluate(
    model: str,
    data: str,
    output: Path = Path("evaluation"),
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
        output: directory for evaluation.json and pictures
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
    from mmtransfer.evaluation.command import evaluate_saved, print_summary, summary

    results = evaluate_saved(
        model,
        data,
        output,
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
        print(f"evaluation.json and {len(results['pictures'])} pictures are in {output}")


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


def cache_list(cache: Path | None = None, json: bool = False) -> None:
    """List the feature stores, the last used first.

    Args:
        cache: directory, by default $MMTRANSFER_CACHE or ~/.cache/mmtransfer
        json: print JSON
    """
    from mmtransfer.data.cache import entries
    from mmtransfer.data.store import cache_directory

    found = [entry.summary() for entry in entries(cache)]
    total = sum(store["bytes"] for store in found)
    if json:
        print(dumps({"cache": str(cache_directory(cache)), "stores": found, "bytes": total}))
        return
    _print_stores(found)
    print(f"{len(found)} in {cache_directory(cache)}, {_size(total)}")


def cache_verify(cache: Path | None = None, json: bool = False) -> None:
    """Read all feature stores: exit code 1 if one is damaged.

    Args:
        cache: directory, by default $MMTRANSFER_CACHE or ~/.cache/mmtransfer
        json: print JSON
    """
    from mmtransfer.data.cache import damage, entries

    complete = [entry for entry in entries(cache) if not entry.half_written]
    found = {entry.directory.name: wrong for entry in complete if (wrong := damage(entry))}
    if json:
        print(dumps({"read": len(complete), "damaged": found}))
    else:
        for key, wrong in found.items():
            print(f"{key}: {wrong}")
        print(f"{len(complete)} read, {len(found)} damaged")
    if found:
        raise SystemExit(1)


def cache_prune(
    cache: Path | None = None,
    days: float | None = None,
    gigabytes: float | None = None,
    damaged: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Remove feature stores, and in any case those that were abandoned half-way.

    Args:
        cache: directory, by default $MMTRANSFER_CACHE or ~/.cache/mmtransfer
        days: remove what was not used for so many days
        gigabytes: keep at most so much, of what was used last
        damaged: read all and remove what is damaged
        dry_run: remove nothing, only say what would be
        json: print JSON
    """
    from mmtransfer.data.cache import prune

    gone = [entry.summary() for entry in prune(cache, days, gigabytes, damaged, dry_run)]
    total = sum(store["bytes"] for store in gone)
    if json:
        print(dumps({"removed": gone, "bytes": total, "dry_run": dry_run}))
        return
    _print_stores(gone)
    print(f"{len(gone)} {'would be ' if dry_run else ''}removed, {_size(total)}")


def data_retail(checkout: Path, output: Path, seed: int = 0, overwrite: bool = False) -> None:
    """Build photos, shelf labels and spoken requests of groceries; needs espeak-ng.

    Args:
        checkout: directory of a git checkout of the public Grocery Store Dataset
        output: directory for the parquet files
        seed: of labels, voices and noise
        overwrite: replace a data set that lies there
    """
    from mmtransfer.data.retail import write_retail

    _print_set(output, write_retail(checkout, output, seed, overwrite))


def data_av_digits(
    output: Path,
    mnist: str | None = None,
    fsdd: str | None = None,
    seed: int = 0,
    energy: float = 0.25,
    snr: float | tuple[float, float] = (-16.0, -4.0),
    overwrite: bool = False,
) -> None:
    """Build pairs of a blurred picture and a noisy recording of the same digit.

    Args:
        output: directory for the parquet files
        mnist: directory or hub id of the pictures, by default MNIST from the hub
        fsdd: directory or hub id of the recordings, by default FSDD from the hub
        seed: of the validation split, the pairing and the noise
        energy: share of the pictures' variance that is kept, up to 1
        snr: voice to noise in dB, or [lowest, highest]
        overwrite: replace a data set that lies there
    """
    from mmtransfer.data.av_digits import FSDD, MNIST, write_av_digits

    sources = mnist or MNIST, fsdd or FSDD
    _print_set(output, write_av_digits(output, *sources, seed, energy, snr, overwrite))


def data_checksum(source: str) -> None:
    """Number of rows and checksum of a data set: which one was used?

    Args:
        source: directory or hub id
    """
    from mmtransfer.data.checksum import checksum
    from mmtransfer.data.rows import load_rows

    splits = load_rows(source)
    rows = {split: len(found) for split, found in splits.items()}
    _print_set(source, {"rows": rows, "checksum": checksum(splits)})


def _print_set(where: str | Path, about: dict[str, Any]) -> None:
    counts = ", ".join(f"{split} {count}" for split, count in about["rows"].items())
    print(f"{where}: {counts} rows, checksum {about['checksum']}")


def _print_stores(stores: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("column", "encoder", "what"):
        table.add_column(heading)
    for heading in ("rows", "precision", "size", "last used", "key"):
        number = heading in ("rows", "size")
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for store in stores:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(store["used"]))
        cells = [store[name] for name in ("column", "encoder", "what", "rows", "precision")]
        shown = ["" if cell is None else str(cell) for cell in cells]
        table.add_row(*shown, _size(store["bytes"]), used, store["key"])
    if stores:
        Console(width=None if sys.stdout.isatty() else 200).print(table)


def _size(count: int) -> str:
    unit, size = ("GB", 1e9) if count >= 1e9 else ("MB", 1e6) if count >= 1e6 else ("kB", 1e3)
    return f"{count / size:.1f} {unit}"


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
