"""One training run: build, train, test, and leave everything in a directory."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from accelerate.utils import set_seed

from mmtransfer.data.rows import SPLITS, Rows, check_rows, column, columns_of, fit_task
from mmtransfer.encoders.base import Encoder, build_encoders
from mmtransfer.fusion.base import build_fusion
from mmtransfer.model import TransferModel
from mmtransfer.registry import nearest
from mmtransfer.tasks.base import build_task
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.processes import join_processes
from mmtransfer.training.record import fingerprints, write_record
from mmtransfer.training.stop import StopSignal
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Strategy


def build_model(
    encoders: Mapping[str, str | Encoder],
    tasks: Mapping[str, Any],
    train: Rows,
    fusion: Any = "gated",
    width: int = 256,
    seed: int = 0,
    **fusion_options: Any,
) -> TransferModel:
    """A model whose parts are named by specifications.

    Tasks learn their classes, and encoders of tables their columns, from `train`; pretrained ones
    keep the columns that they were trained on.
    """
    set_seed(seed)
    built = build_encoders(encoders)
    for name, encoder in built.items():
        # None of the others' values are read.
        if type(encoder).fit is not Encoder.fit and not encoder.pretrained:
            if name not in columns_of(train):
                raise no_column(name, train)
            encoder.fit(column(train, name))
    fused = build_fusion(fusion, {n: e.width for n, e in built.items()}, width, **fusion_options)
    targets = {name: build_task(spec) for name, spec in tasks.items()}
    for name, task in targets.items():
        if name not in columns_of(train):
            raise no_column(name, train)
        fit_task(task, train, name)
    return TransferModel(built, fused, targets)


def no_column(name: str, rows: Rows) -> ValueError:
    return ValueError(f"the data has no column {name!r}.{nearest(name, columns_of(rows))}")


def run(
    model: TransferModel,
    data: Mapping[str, Rows],
    strategy: Strategy,
    options: TrainingOptions,
    output: Path | None = None,
    title: str = "",
    arguments: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train on `data["train"]`, choose on "validation", report on "test"; -> the metrics.

    With rows of the "source", whose tasks the model has too, metrics tell of before and after.
    Methods that need them look at rows "unlabelled", whose labels nobody reads.

    With an output directory: `model/`, `adapters/` where there are any, `metrics.json`,
    `config.yaml` of the arguments, `run.json` of the surroundings, `training.csv`, `checkpoints/`
    and the trackers' logs.  Data, model and options are checked before anything is replaced or
    written.

    resume: go on from the newest checkpoint in the output directory
    overwrite: replace the run that the output directory holds; else `FileExistsError`
    """
    started = time.perf_counter()
    with StopSignal() as stop:
        join_processes()
        check_splits(data)
        if output is not None:
            check_output(output, overwrite, resume)
        validation = data.get("validation")
        trainer = Trainer(
            model, data["train"], validation, strategy, options, output, title, stop, data
        )
        return _run(trainer, data, arguments or {}, resume, started)


def _run(
    trainer: Trainer,
    data: Mapping[str, Rows],
    arguments: Mapping[str, Any],
    resume: bool,
    started: float,
) -> dict[str, Any]:
    model, options, output = trainer.model, trainer.options, trainer.output
    with closing(trainer):
        if "test" in data:
            rows = data["test"]
            check_rows(rows, model.encoders, trainer.data.tasks_of("test", rows), "test")
        if output is not None:
            trainer.fingerprints = fingerprints(data, [*model.encoders, *model.tasks])
            if resume:
                trainer.take_up()
            trainer.leave_if_asked()
            clear_output(output, resume)
            write_config(output, arguments)
            write_record(output, trainer.fingerprints, options, resume)
        history = trainer.fit(resume)
        if output is not None:
            trainer.save(output / "model")  # first of all: nothing below may lose it
        metrics: dict[str, Any] = {
            split: trainer.evaluate(data[split], split)
            for split in ("validation", "test")
            if split in data
        }
        if "source" in data:  # forgetting: what the model could do there before, and now
            after = trainer.evaluate(data["source"], "source")
            metrics["source"] = {"before": trainer.before, "after": after}
        state = trainer.accelerator
        metrics |= {
            "seconds": time.perf_counter() - started,
            "timing": trainer.seconds
            | {
                "encoding": trainer.data.encoding_seconds,
                "encoded_rows": trainer.data.encoded_rows,
            },
            "unreadable": trainer.data.unreadable_counts(),
            "processes": state.num_processes,
            "batch_size": options.batch_size,
            "accumulation": trainer.accumulation,
            "precision": options.precision,
            "device": str(state.device),
            "steps": trainer.step,
            "skipped_steps": trainer.skipped_steps,
            "parameters": trainer.counts["all"]["parameters"],
            "trained_parameters": {n: c["trained"] for n, c in trainer.counts.items()},
            "strategy": trainer.strategy.config(),
            "history": history,
        }
    trainer.progress.line(outcome(trainer.progress.title, metrics))
    for split, columns in metrics["unreadable"].items():
        for name, count in columns.items():
            trainer.progress.line(f"{count} unreadable {split} values of {name!r} count as missing")
    if output is not None:
        write_json(output / "metrics.json", metrics)
    return metrics


def check_splits(data: Mapping[str, Rows]) -> None:
    """Raise `ValueError` for an unknown split, or where there is none to train on."""
    for split in data:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}.{nearest(split, SPLITS)}")
    if "train" not in data:
        raise ValueError(f"there is no 'train' split; found {sorted(data) or 'nothing'}")


def outcome(title: str, metrics: Mapping[str, Any]) -> str:
    """One line about a finished run."""
    shown = metrics.get("test") or metrics.get("validation") or {}
    scores = [
        f"{task} {name} {value:.4f}"
        for task, values in shown.items()
        for name, value in values.items()
        if name not in ("rows", "loss")
    ]
    return "  ".join([title or "done", *scores, f"{metrics['seconds']:.1f} s"])


def held_by(output: Path) -> list[str]:
    """What of an earlier run it would be a pity to lose."""
    return [n for n in ("metrics.json", "model", "checkpoints") if (output / n).exists()]


def check_output(output: Path, overwrite: bool = False, resume: bool = False) -> None:
    """Raise `FileExistsError` if a directory already holds a run, unless it may be replaced.

    Raises `PermissionError` if nothing can be written there.
    """
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file, expected a directory")
    if overwrite and resume:
        raise ValueError("a run is either replaced (--overwrite) or taken up (--resume), not both")
    there = next(p for p in (output, *output.absolute().parents) if p.exists())
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{output} cannot be written: {there} is read-only")
    if held_by(output) and not (overwrite or resume):
        raise FileExistsError(
            f"{output} already holds a run ({', '.join(held_by(output))}): choose another "
            "directory, replace it with --overwrite, or go on with --resume"
        )


def clear_output(output: Path, keep: bool = False) -> None:
    """Make the directory, and remove what an earlier run left in it; on the main process."""
    state = PartialState()
    state.wait_for_everyone()  # all processes have looked before one of them writes
    if state.is_main_process:
        held = [] if keep else held_by(output)
        output.mkdir(parents=True, exist_ok=True)
        for name in (*held, "adapters", "logs", "chart.png", "training.csv") if held else ():
            path = output / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    state.wait_for_everyone()


def write_config(output: Path, arguments: Mapping[str, Any]) -> None:
    """Save the resolved arguments as YAML that `--config` reads back."""
    if PartialState().is_main_process:
        text = yaml.safe_dump({k: plain(v) for k, v in arguments.items()}, sort_keys=False)
        (output / "config.yaml").write_text(text)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    if PartialState().is_main_process:
        path.write_text(json.dumps(plain(content), indent=2))


def plain(value: Any) -> Any:
    """The same value out of dictionaries, lists, strings and numbers only."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
