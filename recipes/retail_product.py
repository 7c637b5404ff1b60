"""Which product is it?  A photo, a shelf label and a spoken question, with few labels.

The whole story of transfer on embedded data, in one table (a few minutes on 2 CPU cores):

    python recipes/retail_product.py

Your own data (train, val and test parquet files) and pretrained encoders:

    accelerate launch recipes/retail_product.py --data DIR --image hf:ID --text hf:ID --audio hf:ID
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmtransfer import Phase, Strategy, TrainingOptions, build_strategy
from mmtransfer.cli import command
from mmtransfer.data.products import product_data
from mmtransfer.training.recipe import leave, train_on
from mmtransfer.training.run import build_model, check_output, run
from mmtransfer.training.setup import end_processes

TINY = {"image": "tiny-vit", "text": "tiny-bert", "audio": "tiny-wav2vec2"}
TASKS = {"product": "classification", "category": "classification"}
PRETRAINING = {
    "image": Phase(epochs=10, lr=2e-3, encoder_lr=2e-3),
    "text": Phase(epochs=10, lr=3e-3, encoder_lr=3e-3),
    "audio": Phase(epochs=5, lr=4e-3, encoder_lr=4e-3),
}
STRATEGIES = {
    "from_scratch": Strategy([Phase(epochs=20, lr=5e-3, encoder_lr=1e-3)]),
    "linear_probe": build_strategy("linear_probe", epochs=30, lr=5e-3),
    "full": build_strategy("full", epochs=15, lr=5e-3, encoder_lr=5e-4),
    "lp_ft": build_strategy("lp_ft", probe_epochs=20, probe_lr=5e-3, epochs=8, encoder_lr=5e-4),
}


def tell_story(output: Path, seeds: int, training: TrainingOptions, begin: dict[str, Any]) -> None:
    """Pretrain three tiny encoders on source products; compare strategies on new products."""
    source, target = product_data(seed=training.seed).values()
    pretrained = {}
    for column, phase in PRETRAINING.items():
        model = build_model({column: TINY[column]}, TASKS, source["train"], width=128)
        run(model, source, Strategy([phase]), training, title=f"pretraining {column}")
        pretrained[column] = model.encoders[column]
    scores: dict[str, dict[str, list[float]]] = {}
    for name, strategy in STRATEGIES.items():
        for label in ("image", "text", "audio", "image + text + audio"):
            for seed in range(seeds):
                encoders = TINY if name == "from_scratch" else deepcopy(pretrained)
                inputs = {column: encoders[column] for column in label.split(" + ")}
                model = build_model(inputs, TASKS, target["train"], width=128, seed=seed)
                last = (name, "+" in label, seed) == (list(STRATEGIES)[-1], True, seeds - 1)
                where, title = output if last else None, f"{name}, {label}, seed {seed}"
                chosen = replace(training, seed=seed)
                metrics = run(model, target, strategy, chosen, where, title, **begin)
                accuracy = metrics["test"]["product"]["accuracy"]
                scores.setdefault(name, {}).setdefault(label, []).append(accuracy)
    leave(output, metrics | {"table": scores}, scores, "Test accuracy on new products")


def main(
    data: str | None = None,
    image: str | None = None,
    text: str | None = None,
    audio: str | None = None,
    tasks: dict[str, Any] = TASKS,
    fusion: Any = "gated",
    width: int = 512,
    dropout: float = 0.5,
    strategy: Any = "linear_probe",
    strategy_options: dict[str, Any] | None = None,
    methods: list[Any] = ["modality_dropout"],  # noqa: B006 - only read
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - jsonargparse reads it
    single: bool | None = None,
    seeds: int = 3,
    output: Path = Path("runs/retail_product"),
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Recognise products from photo, label text and speech.

    Args:
        data: directory or hub id of your own data, or nothing for the story
        image: encoder of the image column (see `mmtransfer encoders`)
        text: encoder of the text column
        audio: encoder of the audio column
        tasks: what to learn, by target column
        fusion: name of the fusion (see `mmtransfer fusions`)
        width: of the fused vector
        dropout: in the fusion
        strategy: name (see `mmtransfer strategies`) or phases written out
        strategy_options: options of a named strategy
        methods: what else acts on the loop, by name
        training: batch size, precision, seed, cache and the like
        single: also train each modality alone, by default where encoders are frozen
        seeds: repetitions of each cell of the story's table
        output: directory for model, metrics, chart and logs
        overwrite: replace the run that the output directory holds
        resume: go on with it, from its newest checkpoint
    """
    begin = {"arguments": dict(locals()), "resume": resume, "overwrite": overwrite}
    plan = build_strategy(strategy, methods, **(strategy_options or {}))
    check_output(output, overwrite, resume)
    if data is None:
        if image or text or audio or resume:
            raise ValueError("encoders or --resume are given, but no --data to train on")
        tell_story(output, seeds, training, begin)
    else:
        encoders = {"image": image, "text": text, "audio": audio}
        options = {"fusion": fusion, "width": width, "dropout": dropout}
        train_on(data, encoders, tasks, options, plan, training, output, single, **begin)
    end_processes()


if __name__ == "__main__":
    command(main, "retail_product.py")
