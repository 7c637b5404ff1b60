"""How much of a GPU training uses: share of the card's own matrix rate, and rows per second.

    python benchmarks/gpu.py                 # all GPUs of this machine
    python benchmarks/gpu.py --compile

ViT-B/16, BERT-base and wav2vec2-base with random weights, joined by one fusion, in bf16.  Every row
is a picture of 224 pixels, 128 tokens and 4 seconds of sound that lie ready in memory, as the card
is measured here and no decoder.

    matrix rate   2 n^3 / seconds of a bf16 product of two n x n matrices, the best of several
    FLOPs         2 per multiplication with addition, of matrix products and convolutions alone, as
                  torch's counter finds them in a forward pass; a backward pass is twice that (the
                  counter takes grouped convolutions backward for whole ones); element-wise work,
                  the optimiser and what is computed again count nothing
    share         FLOPs per row x rows per second / (matrix rate x GPUs)

`tuned` trains everything, against a bare loop on the same batches.  `frozen` encodes batches that
lie in pinned memory, pools and fetches the features.  For information: `filled` is the same through
the trainer into the feature store, with loaders, digests and files, and `stored` the training of
fusion and head from there.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from by_hand import fit_by_hand, loader_of
from measuring import RESULTS, decide, spawn, timed, write_results
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmtransfer import Phase, Strategy, Trainer, TrainingOptions, TransferModel
from mmtransfer.data.collate import Collate
from mmtransfer.data.samplers import TrainBatches
from mmtransfer.encoders.huggingface import HuggingFaceEncoder
from mmtransfer.fusion.base import build_fusion
from mmtransfer.tasks.base import build_task
from mmtransfer.training.processes import join_processes
from mmtransfer.training.setup import end_processes

LIMITS = {"tuned": 0.45, "overhead": 0.97, "frozen": 0.55}
POOL, CLASSES = 64, 10  # different rows in memory, classes of the task
PIXELS, TOKENS, SAMPLES = 224, 128, 64_000


class Ready:
    """Arrays of one shape to what an encoder's own collate would give."""

    def __init__(self, modality: str) -> None:
        self.modality = modality

    def __call__(self, values: list[Tensor]) -> dict[str, Tensor]:
        x = torch.stack(values)
        if self.modality == "image":
            return {"pixel_values": x}
        if self.modality == "text":
            return {"input_ids": x, "attention_mask": torch.ones_like(x)}
        windows = torch.arange(len(x)).unsqueeze(1)
        return {"sound": x, "windows": windows, "sound_mask": torch.ones(x.shape, dtype=torch.long)}


def build(tiny: bool) -> TransferModel:
    """The three encoders as transformers configures them by default, or at sizes for a test."""
    from transformers import (
        BertConfig,
        BertModel,
        ByT5Tokenizer,
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2Model,
    )

    set_seed(0)
    small: dict[str, Any] = {}
    if tiny:
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        small |= {"intermediate_size": 32}
    sound = {"conv_dim": (8,) * 7, "num_conv_pos_embedding_groups": 2} if tiny else {}
    # Dropped layers would make a step cheaper than what was counted, and differ from run to run.
    audio = Wav2Vec2Config(**small, **sound, layerdrop=0.0, apply_spec_augment=False)
    encoders = {
        "image": HuggingFaceEncoder(
            ViTModel(ViTConfig(**small), add_pooling_layer=False), ViTImageProcessor()
        ),
        "text": HuggingFaceEncoder(
            BertModel(BertConfig(**small), add_pooling_layer=False), ByT5Tokenizer()
        ),
        "audio": HuggingFaceEncoder(
            Wav2Vec2Model(audio), Wav2Vec2FeatureExtractor(return_attention_mask=True)
        ),
    }
    for encoder in encoders.values():
        encoder.collate = Ready(str(encoder.modality))
    widths = {name: encoder.width for name, encoder in encoders.items()}
    task = build_task({"name": "classification", "classes": list(range(CLASSES))})
    return TransferModel(encoders, build_fusion("concat", widths, 256), {"label": task})


def make_rows(count: int) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randn(POOL, 3, PIXELS, PIXELS, generator=draw)
    texts = torch.randint(5, 250, (POOL, TOKENS), generator=draw)
    sounds = torch.randn(POOL, SAMPLES, generator=draw)
    return [
        {"image": pictures[k], "text": texts[k], "audio": sounds[k], "label": i % CLASSES}
        for i, k in enumerate(i % POOL for i in range(count))
    ]


def matrix_rate(size: int, repetitions: int = 10) -> float:
    """FLOPs per second of the best of several bf16 products of two square matrices."""
    device = PartialState().device
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def products() -> None:
        for _ in range(repetitions):
            torch.mm(a, b)

    seconds = min(timed(products)[0].wall for _ in range(6))
    return repetitions * 2 * size**3 / seconds


def count_flops(model: TransferModel, rows: list[dict[str, Any]]) -> dict[str, float]:
    """FLOPs of one row's forward pass, by encoder and of all together with fusion and head."""
    size = 2
    device = next(model.parameters()).device
    batch = Collate(model.encoders, model.tasks)(list(enumerate(rows[:size]))).to(device)
    parts: dict[str, Callable[[], Any]] = {
        name: partial(model.encode, name, batch.inputs[name], size) for name in model.encoders
    }
    parts["all"] = partial(model, batch.inputs, size)
    found = {}
    for name, part in parts.items():
        # Fused attention kernels are not all known to the counter; plain products are.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
            part()
        found[name] = count.get_total_flops() / size
    return found


def tuned(
    model: TransferModel, rows: list[dict[str, Any]], options: TrainingOptions, turns: int
) -> dict[str, float]:
    """Rows per second of a whole epoch: the trainer and the loop by hand, in turns."""
    state, phase = PartialState(), Phase(1, lr=1e-3, encoder_lr=1e-5, warmup=0.0)
    place = (state.process_index, state.num_processes)
    batches = TrainBatches(len(rows), options.batch_size, options.seed, 1, *place)
    prepared = loader_of(model, rows, batches, options.workers)
    pairs = []
    for _ in range(turns + 1):
        copy = deepcopy(model).to(state.device)
        hand, _ = timed(partial(fit_by_hand, copy, prepared, phase, batches.steps, options))
        trainer = Trainer(deepcopy(model), rows, None, Strategy([phase]), options)
        ours, _ = timed(trainer.fit)
        trainer.close()
        pairs.append((hand.wall, ours.wall))
    kept = pairs[1:]
    return {
        "rows_per_second": len(rows) / median(ours for _, ours in kept),
        "by_hand": len(rows) / median(hand for hand, _ in kept),
        "overhead": median(hand / ours for hand, ours in kept),
    }


def frozen(
    model: TransferModel, rows: list[dict[str, Any]], options: TrainingOptions, turns: int
) -> dict[str, float]:
    """Rows per second through all encoders, over all processes."""
    state, size = PartialState(), options.evaluation_batch_size
    collate = Collate(model.encoders, model.tasks)
    chunks = [list(enumerate(rows[i : i + size])) for i in range(0, min(len(rows), 4 * size), size)]
    batches = [collate(chunk) for chunk in chunks if len(chunk) == size]
    if state.device.type == "cuda":
        batches = [batch.pin_memory() for batch in batches]
    copy = deepcopy(model).to(state.device).eval().requires_grad_(False)
    if options.compile:
        for encoder in copy.encoders.values():
            encoder.compile()
    rounds = max(1, len(rows) // (state.num_processes * size * len(batches)))
    half = torch.autocast(state.device.type, torch.bfloat16)

    def encode() -> None:
        with torch.inference_mode(), half:
            for batch in batches * rounds:
                inputs = batch.to(state.device, non_blocking=True).inputs
                for name in copy.encoders:
                    copy.encode(name, inputs[name], size).pooled().cpu()

    seconds = [timed(encode)[0].wall for _ in range(turns + 1)][1:]
    done = rounds * len(batches) * size * state.num_processes
    return {"rows_per_second": done / median(seconds)}


def stored(
    model: TransferModel, rows: list[dict[str, Any]], options: TrainingOptions, epochs: int
) -> dict[str, float]:
    """Rows per second into the feature store, and of training from it."""
    for count in (min(len(rows), options.batch_size), len(rows)):  # the first is the warm-up
        phase = Phase(epochs, lr=1e-3)
        trainer = Trainer(deepcopy(model), rows[:count], None, Strategy([phase]), options)
        trainer.fit()
        trainer.close()
    return {
        "filled": len(rows) / trainer.data.encoding_seconds,
        "rows_per_second": epochs * len(rows) / trainer.seconds["training"],
    }


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    state, tiny = PartialState(), chosen.tiny
    options = TrainingOptions(
        batch_size=chosen.batch_size * state.num_processes,
        evaluation_batch_size=2 * chosen.batch_size,
        precision="bf16",
        compile=chosen.compile,
        workers=chosen.workers,
        track=[],
        progress=False,
    )
    rows = make_rows(chosen.steps * options.batch_size)
    rate = matrix_rate(64 if tiny else 8192)
    model = build(tiny)
    flops = count_flops(model, rows)  # on the CPU: the numbers are the same
    with tempfile.TemporaryDirectory() as cache:
        # Processes share the store; `spawn` has named a directory for all of them.
        options.cache = cache if state.num_processes == 1 else None
        results = {
            "tuned": tuned(model, rows, options, chosen.turns),
            "frozen": frozen(model, rows, options, chosen.turns),
            "stored": stored(model, rows, options, epochs=5),
        }
    forward = sum(flops[name] for name in model.encoders)
    whole = 3 * flops["all"]  # a backward pass costs twice as much
    cards = rate * state.num_processes
    results["tuned"]["share"] = whole * results["tuned"]["rows_per_second"] / cards
    results["frozen"]["share"] = forward * results["frozen"]["rows_per_second"] / cards
    settings = {"processes": state.num_processes, "rows": len(rows)} | {
        name: getattr(chosen, name)
        for name in ("batch_size", "turns", "workers", "compile", "tiny")
    }
    return {
        "settings": settings,
        "limits": LIMITS,
        "matrix_rate": rate,
        "flops": flops,
        "cases": results,
    }


def show(results: dict[str, Any]) -> None:
    table = Table(title="FLOPs of a row (10^9)", title_justify="left", box=None, pad_edge=False)
    for heading in ("", "forward", "and backward, 3 x"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, forward in results["flops"].items():
        table.add_row(name, f"{forward / 1e9:.2f}", f"{3 * forward / 1e9:.2f}")
    console, cases = Console(), results["cases"]
    console.print(table)
    console.print(
        f"matrix rate of one device: {results['matrix_rate'] / 1e12:.1f} x 10^12 per second"
    )
    for name in ("tuned", "frozen"):
        rows, share = cases[name]["rows_per_second"], cases[name]["share"]
        console.print(f"{name}: {rows:.0f} rows/s, {100 * share:.1f} % of the matrix rate")
    console.print(
        f"tuned, by hand: {cases['tuned']['by_hand']:.0f} rows/s, "
        f"the trainer reaches {cases['tuned']['overhead']:.3f} of it"
    )
    filled, rows = cases["stored"]["filled"], cases["stored"]["rows_per_second"]
    console.print(f"filled: {filled:.0f} rows/s, stored: {rows:.0f} rows/s")


def missed(results: dict[str, Any]) -> list[str]:
    """A line for each figure below its limit."""
    cases = results["cases"]
    found = {
        "tuned": cases["tuned"]["share"],
        "overhead": cases["tuned"]["overhead"],
        "frozen": cases["frozen"]["share"],
    }
    return [
        f"{name}: {value:.3f}, below the limit {LIMITS[name]}"
        for name, value in found.items()
        if value < LIMITS[name]
    ]


def parse() -> argparse.Namespace:
    # Not mmtransfer.cli.command: GPU machines may have no jsonargparse.
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--processes", type=int, help="default: one for each GPU")
    parser.add_argument("--batch-size", type=int, default=64, help="rows per GPU and step")
    parser.add_argument("--steps", type=int, default=40, help="of an epoch")
    parser.add_argument("--turns", type=int, default=3, help="epochs of each side that count")
    parser.add_argument("--workers", type=int, default=4, help="loader processes per GPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile the encoders")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # for the tests
    return parser.parse_args()


def main() -> None:
    chosen = parse()
    gpus = torch.cuda.device_count()
    if not gpus and not chosen.tiny:
        print("no GPU on this machine: nothing is measured")
        return
    processes = chosen.processes or max(1, gpus)
    if processes > 1 and "LOCAL_RANK" not in os.environ:
        spawn(__file__, processes)
        return
    join_processes()
    results = measure(chosen)
    main_process = PartialState().is_main_process
    if main_process:
        write_results(chosen.output, results)
        show(results)
    end_processes()
    if main_process and not chosen.tiny:
        decide(missed(results))


if __name__ == "__main__":
    main()
