"""`mmtransfer train`: any training on rows of a data set, from a YAML file and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmtransfer.training.options import TrainingOptions


def train_command(
    data: str | None = None,
    encoders: dict[str, str] | None = None,
    tasks: dict[str, Any] | None = None,
    fusion: Any = "gated",
    width: int = 512,
    dropout: float = 0.5,
    strategy: Any = "linear_probe",
    strategy_options: dict[str, Any] | None = None,
    methods: list[Any] = ["modality_dropout"],  # noqa: B006 - only read
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - jsonargparse reads it
    single: bool | None = None,
    output: Path = Path("runs/train"),
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Train from a YAML file, whose options those behind it override:

    mmtransfer train RECIPE.yaml [options]

    Args:
        data: directory with train, val and test parquet files, or hub id
        encoders: specification (see `mmtransfer encoders`) by input column
        tasks: what to learn, by target column
        fusion: name of the fusion (see `mmtransfer fusions`)
        width: of the fused vector
        dropout: in the fusion
        strategy: name (see `mmtransfer strategies`) or phases written out
        strategy_options: options of a named strategy
        methods: what else acts on the loop, by name (see `mmtransfer methods`)
        training: batch size, precision, seed, cache and the like
        single: also train each modality alone, by default where encoders are frozen
        output: directory for model, metrics, chart and logs, by default runs/RECIPE
        overwrite: replace the run that the output directory holds
        resume: go on with it, from its newest checkpoint
    """
    begin: dict[str, Any] = {"arguments": dict(locals()), "resume": resume, "overwrite": overwrite}
    if not data or not encoders or not tasks:
        needed = {"data": data, "encoders": encoders, "tasks": tasks}
        lacking = ", ".join(name for name, value in needed.items() if not value)
        raise ValueError(f"the recipe names no {lacking}: name them there, or as options")
    from mmtransfer.training.recipe import train_on
    from mmtransfer.training.run import check_output
    from mmtransfer.training.setup import end_processes
    from mmtransfer.transfer.base import build_strategy

    plan = build_strategy(strategy, methods, **(strategy_options or {}))
    check_output(output, overwrite, resume)
    options = {"fusion": fusion, "width": width, "dropout": dropout}
    train_on(data, encoders, tasks, options, plan, training, output, single, **begin)
    end_processes()
