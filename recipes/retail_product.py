"""Which product is it?  A photo, a shelf label and a spoken question, with few labels.

The whole story of transfer on embedded data, in one table (about 4 minutes on 2 CPU cores):

    python recipes/retail_product.py

Your own data (a directory of parquet files with the same columns) and pretrained encoders:

    accelerate launch recipes/retail_product.py --data DIR --image hf:google/vit-base-patch16-224 \
        --text hf:google-bert/bert-base-uncased --audio hf:facebook/wav2vec2-base \
        --fusion gated --strategy linear_probe --output runs/retail
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from mmtransfer import TrainingOptions, build_strategy
from mmtransfer.data.rows import load_rows, with_label_names
from mmtransfer.training.run import build_model, prepare_output, run, write_config


def main(
    data: str,
    image: str | None = None,
    text: str | None = None,
    audio: str | None = None,
    tasks: dict[str, Any] | None = None,
    fusion: str = "gated",
    width: int = 512,
    dropout: float = 0.5,
    strategy: Any = "linear_probe",
    strategy_options: dict[str, Any] | None = None,
    methods: list[Any] | None = None,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008
    single: bool | None = None,
    output: Path = Path("runs/retail"),
    overwrite: bool = False,
) -> None:
    arguments = dict(locals())
    prepare_output(output, overwrite)
    write_config(output, arguments)
    splits = load_rows(data)
    targets = tasks or {"product": "classification", "category": "classification"}
    for name in targets:
        splits = {split: with_label_names(rows, name) for split, rows in splits.items()}
    encoders = {k: v for k, v in {"image": image, "text": text, "audio": audio}.items() if v}
    plan = build_strategy(strategy, methods, **(strategy_options or {}))

    def train(columns: list[str], where: Path | None) -> dict[str, Any]:
        chosen = {name: encoders[name] for name in columns}
        model = build_model(
            chosen, targets, splits["train"], fusion, width, training.seed, dropout=dropout
        )
        return run(model, splits, plan, training, where)

    metrics = train(list(encoders), output)
    print({t: v for t, v in metrics["test"].items()})


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
