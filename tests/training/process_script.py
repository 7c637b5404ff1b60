"""Run by test_processes.py on one or more processes: train, evaluate, write what came out."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import torch
from accelerate.utils import gather_object

from mmtransfer.data.products import product_rows
from mmtransfer.model import TransferModel
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.setup import end_processes
from mmtransfer.training.sharding import is_sharded
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, Strategy, build_strategy

TASKS = {"product": "classification", "category": "classification"}
BALANCE = [
    {"name": "gradient_blending", "share": 0.4, "every": 2},
    "auxiliary_heads",
    "mmpareto",
    "agm",
    "ogm_ge",
]
ALIGNMENT = [
    "dann",
    "cdan",
    {"name": "self_training", "threshold": 0.1, "ramp": 0, "balanced": True},
    "importance_weights",
    "kmm",
]
WEIGHING = ["uncertainty", "gradnorm", "pcgrad"]
#: a decision per modality, shared tokens, unequal use of what is absent, a parameter of its own
FUSIONS = ("late", "bottleneck", "low_rank_tensor", "weighted")
TINY = {"image": "tiny-vit", "text": "tiny-bert", "audio": "tiny-wav2vec2"}


def main(saved: str, output: str) -> None:
    train = product_rows("target/train", rows=37)  # the last step is short and uneven
    for row in train[:20]:
        row["category"] = None  # labelled rows are spread unevenly over the processes
    for i, row in enumerate(train):
        row["audio"] = row["audio"] if i % 9 == 0 else None  # often a process has no sound at all
    test = product_rows("target/test", rows=23)
    results = {}
    strategies = {
        "linear_probe": build_strategy("linear_probe", epochs=2),
        "lp_ft": build_strategy("lp_ft", probe_epochs=1, epochs=2),
        "top_stages": Strategy([Phase(2, lr=1e-3, encoder_lr=1e-3, top_stages=1)]),
        "balance": build_strategy("full", BALANCE, epochs=2, lr=1e-2, encoder_lr=1e-2),
        "alignment": build_strategy("full", ALIGNMENT, epochs=1, lr=1e-2, encoder_lr=1e-3),
        "tasks": build_strategy("full", WEIGHING, epochs=1, lr=1e-2, encoder_lr=1e-3),
        "adapters": build_strategy("dora", epochs=2, encoder_lr=1e-3, rank=2),
    }
    if "ACCELERATE_USE_FSDP" in os.environ:
        del strategies["adapters"], strategies["tasks"]  # which need whole parameters
    # The category is a task of the source there, of which the target knows nothing.
    near_start = [
        "sam",
        {"name": "ewc", "strength": 10.0},
        "l2_sp",
        {"name": "delta", "attention": True},
        {"name": "co_tuning", "head": f"{saved}/../head.safetensors"},
        {"name": "distillation", "teacher": saved},
        "lwf",
        {"name": "fitnet", "teacher": saved},
        {"name": "ema", "decay": 0.5},
    ]
    strategies["near_start"] = build_strategy(
        "lp_ft", near_start, probe_epochs=1, epochs=1, lr=1e-3, encoder_lr=1e-3
    )
    uncategorised = [{k: v for k, v in row.items() if k != "category"} for row in train]
    for name, strategy in strategies.items():
        model = build_model(TINY, TASKS, train, "gated", 16, seed=0)
        options = TrainingOptions(batch_size=10, evaluation_batch_size=5, progress=False)
        near = name == "near_start"
        rows = uncategorised if near else train
        further = {"unlabelled": product_rows("source/train", rows=31)}
        further |= {"source": test[:8]} if near else {}
        trainer = Trainer(model, rows, test, strategy, options, further=further)
        history = trainer.fit()
        results[name] = {"losses": trainer.losses, "history": history}
        stores = {n: trainer.data.stores.get(("train", n)) for n in TINY}
        results[name]["stored"] = {
            n: [None if row is None else row.tolist() for row in store]
            for n, store in stores.items()
            if store is not None
        }
        processes = trainer.accelerator.num_processes
        sharded = is_sharded(trainer.model)
        main_process = trainer.accelerator.is_main_process
        trainer.close()
    results["fusions"] = {}
    for name in FUSIONS:
        model = build_model(TINY, TASKS, train, name, 16, seed=0)
        trainer = Trainer(model, train, test, build_strategy("linear_probe", epochs=1), options)
        trainer.fit()
        results["fusions"][name] = trainer.losses
        trainer.close()
    # early stopping: all decide the same
    still = Strategy([Phase(30, lr=1e-9, warmup=0.0, schedule="constant")])
    model = build_model({"text": "tiny-bert"}, TASKS, train, "gated", 16, seed=0)
    patient = replace(options, patience=2)
    trainer = Trainer(model, train, test, still, patient)
    results["epochs"] = gather_object([len(trainer.fit())])
    results["drawn"] = gather_object([torch.rand(1).item()])  # drop-out, say
    trainer.close()
    # the same weights, evaluated
    model = TransferModel.from_pretrained(saved)
    trainer = Trainer(model, train, None, build_strategy("full"), options)
    collected = trainer.collect(test)
    results["evaluation"] = trainer.evaluate(test)
    stream = datasets.Dataset.from_list(test).to_iterable_dataset(num_shards=2)
    results["streamed"] = trainer.evaluate(stream)
    results["logits"] = {n: logits.tolist() for n, logits in collected.logits.items()}
    results["targets"] = {n: targets.tolist() for n, targets in collected.targets.items()}
    trainer.close()
    # one shard, shuffled as a whole: each process takes its share of every step
    stream = datasets.Dataset.from_list(train).to_iterable_dataset(num_shards=1)
    options = TrainingOptions(batch_size=12, steps_per_epoch=3, progress=False)
    trainer = Trainer(model, stream, None, build_strategy("full", epochs=2), options)
    trainer.fit()
    results["stream_losses"] = trainer.losses
    trainer.close()
    end_processes()
    if main_process:
        Path(output).write_text(json.dumps(results | {"processes": processes, "sharded": sharded}))


if __name__ == "__main__":
    main(*sys.argv[1:])
