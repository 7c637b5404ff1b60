"""The same task in AutoGluon MultiModal, run by a Python that has it; prints figures as JSON.

    python benchmarks/peers/with_autogluon.py SETTINGS_JSON

The photo's network has random weights: timm would fetch others.  Micro-batches, precision and all
that is not named here are AutoGluon's defaults; batches are loaded in the process itself, so that
its CPU seconds are all there are.
"""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median


def write_table(data, split, folder):
    """-> a table of photo files, texts and products."""
    import pandas as pd
    import pyarrow.parquet as pq

    folder.mkdir()
    rows = pq.read_table(Path(data) / f"{split}.parquet", columns=["image", "text", "product"])
    table = []
    for number, row in enumerate(rows.to_pylist()):
        file = folder / f"{number}.jpg"
        file.write_bytes(row["image"]["bytes"])
        table.append({"image": str(file), "text": row["text"], "product": row["product"]})
    return pd.DataFrame(table)


def main(settings):
    import timm
    import torch

    create = timm.create_model
    timm.create_model = lambda *given, **options: create(*given, **options | {"pretrained": False})
    from autogluon.multimodal import MultiModalPredictor

    output, marks = Path(settings["output"]), []
    step = torch.optim.AdamW.step

    def watched(self, *given, **options):
        found = step(self, *given, **options)
        marks.append((time.perf_counter(), time.process_time()))
        return found

    torch.optim.AdamW.step = watched
    train = write_table(settings["data"], "train", output / "train")
    test = write_table(settings["data"], "test", output / "test")
    predictor = MultiModalPredictor(
        "product", problem_type="multiclass", path=str(output / "model"), verbosity=1
    )
    predictor.fit(
        train,
        tuning_data=train.head(32),
        seed=settings["seed"],
        hyperparameters={
            "model.names": ["timm_image", "hf_text", "fusion_mlp"],
            "model.timm_image.checkpoint_name": "mobilenetv2_100",
            "model.hf_text.checkpoint_name": settings["text"],
            "env.batch_size": settings["batch_size"],
            "env.per_gpu_batch_size": settings["batch_size"],
            "env.num_workers": 0,
            "env.num_workers_inference": 0,
            "env.num_gpus": 0,
            "optim.max_epochs": settings["epochs"],
            "optim.val_check_interval": 1.0,
            "optim.top_k": 1,
        },
    )
    start = time.perf_counter(), time.process_time()
    accuracy = predictor.evaluate(test, metrics=["accuracy"])["accuracy"]
    end = time.perf_counter(), time.process_time()
    # Validation and saving lie between epochs: of the steps' durations the median counts.
    durations = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(marks)]
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    found = {
        "steps": len(marks),
        "step": [median(d[k] for d in durations) for k in (0, 1)],
        "evaluation": [b - a for a, b in zip(start, end, strict=True)],
        "peak_memory": int(peak.split()[1]) * 1024,
        "accuracy": float(accuracy),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
