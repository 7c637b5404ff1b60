"""Photo and text classification with mmtransfer."""

from mmtransfer import TrainingOptions, build_strategy
from mmtransfer.data.rows import load_rows
from mmtransfer.training.run import build_model, run


def train(data, image, text, frozen, epochs, batch_size, parts, precision, output, seed, methods):
    """-> accuracy on the test rows."""
    rows = load_rows(data)
    encoders = {"text": f"hf:{text}", "image": f"hf:{image}"}
    tasks = {"product": "classification"}
    model = build_model(encoders, tasks, rows["train"], fusion="concat", seed=seed)
    strategy = build_strategy("full", methods, epochs=epochs, encoder_lr=0.0 if frozen else 2e-4)
    options = TrainingOptions(
        batch_size,
        accumulation=parts,
        evaluation_batch_size=batch_size // parts,
        precision=precision,
        seed=seed,
        cache=output,
        progress=False,
    )
    return run(model, rows, strategy, options)["test"]["product"]["accuracy"]
