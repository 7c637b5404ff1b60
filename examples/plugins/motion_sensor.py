"""A modality that the package does not have: a 6-axis motion sensor, beside written notes.

    python examples/plugins/motion_sensor.py

Somebody wears a sensor (three axes of acceleration, three of rotation, 25 readings per second) and
sometimes writes down what they do.  The table compares each input alone with both.  Another program
can name the encoder by its import path, `motion_sensor:MotionEncoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmtransfer import Encoder, Features, TrainingOptions, build_strategy, register_encoder
from mmtransfer.cli import command
from mmtransfer.testing import check_encoder
from mmtransfer.training.run import build_model, run

AXES, RATE = 6, 25  # readings per second
# What an activity looks like: steps per second, strength, share of rotation, words of a note.
ACTIVITIES = {
    "sitting": (0.0, 0.1, 0.2, ("reading", "desk", "rest")),
    "walking": (1.8, 1.0, 0.4, ("street", "outside", "dog")),
    "climbing stairs": (1.6, 1.2, 0.7, ("upstairs", "floor", "outside")),
    "running": (2.8, 1.4, 0.4, ("outside", "training", "fast")),
    "cycling": (1.3, 0.5, 1.2, ("training", "street", "fast")),
    "cleaning": (0.8, 0.7, 1.0, ("floor", "desk", "kitchen")),
}


class StridedBlock(nn.Module):
    """A convolution that halves the number of readings; padding stays zero and never leaks."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, width, kernel_size=5, stride=2, padding=2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, C), mask (B, T) -> (B, T / 2, width), (B, T / 2), rounded up."""
        x = torch.where(mask.unsqueeze(-1), x, 0)
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)  # (B, T / 2, width)
        return torch.nn.functional.gelu(self.norm(x)), mask[:, ::2]


@register_encoder("motion")
class MotionEncoder(Encoder):
    """Motion sensor readings, arrays (T, 6) of any length, by strided convolutions."""

    def __init__(self, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        self.width, self.layers = width, layers
        self.blocks = nn.ModuleList(
            StridedBlock(width if k else AXES, width) for k in range(layers)
        )
        self.collate = pad_readings

    @property
    def stages(self) -> list[nn.Module]:
        return list(self.blocks)

    @property
    def cuts(self) -> Sequence[int]:
        return range(1, self.layers)

    def forward(self, readings: Tensor, mask: Tensor) -> Features:
        """readings (B, T, 6), mask (B, T) -> tokens (B, T / 2**layers, width)."""
        return self.above(0, Features(readings, mask))

    def below(self, depth: int, **inputs: Tensor) -> Features:
        x, mask = inputs["readings"], inputs["mask"]
        for block in self.blocks[:depth]:
            x, mask = block(x, mask)
        return Features(x, mask)

    def above(self, depth: int, activations: Features) -> Features:
        x, mask = activations.tokens, activations.mask
        for block in self.blocks[depth:]:
            x, mask = block(x, mask)
        return Features(x, mask)


def pad_readings(values: list[Any]) -> dict[str, Tensor]:
    """Arrays (T, 6) of several rows -> `readings (B, T, 6)` and `mask (B, T)`."""
    arrays = [torch.as_tensor(np.asarray(value), dtype=torch.float32) for value in values]
    for array in arrays:
        if array.ndim != 2 or array.shape[1] != AXES or not len(array):
            raise ValueError(f"expected readings (T, {AXES}), found {tuple(array.shape)}")
    lengths = torch.tensor([[len(array)] for array in arrays])
    padded = nn.utils.rnn.pad_sequence(arrays, batch_first=True)
    return {"readings": padded, "mask": torch.arange(padded.shape[1]) < lengths}


def activity_rows(rows: int, seed: int) -> list[dict[str, Any]]:
    """Rows of `motion` ((T, 6) array of 2 to 6 seconds, or None), `note` and `activity`."""
    rng = np.random.default_rng(seed)
    made = []
    for k in range(rows):
        name = list(ACTIVITIES)[k % len(ACTIVITIES)]
        steps, strength, rotation, words = ACTIVITIES[name]
        seconds = np.arange(int(rng.uniform(2, 6) * RATE)) / RATE
        phase = 2 * np.pi * (steps * rng.normal(1, 0.15) * seconds[:, None] + rng.random(AXES))
        scale = strength * rng.normal(1, 0.25) * np.repeat([1, rotation], AXES // 2)
        readings = scale * np.sin(phase) + rng.normal(0, 0.5, phase.shape)
        note = " ".join(rng.choice(words, 2)) if rng.random() < 0.6 else None
        missing = note is not None and rng.random() < 0.15
        motion = None if missing else readings.astype(np.float32)
        made.append({"motion": motion, "note": note, "activity": name})
    return made


def main(rows: int = 480, epochs: int = 8, seed: int = 0) -> None:
    """Train on the sensor, the notes and both, and compare.

    Args:
        rows: of training; half as many are held out
        epochs: of full training
        seed: of data, weights and order
    """
    data = {"train": activity_rows(rows, seed), "test": activity_rows(rows // 2, seed + 1)}
    check_encoder(
        MotionEncoder(), [row["motion"] for row in data["train"][:4] if row["motion"] is not None]
    )
    inputs = {"motion": "motion", "note": "tiny-bert?width=32&layers=1"}
    print(f"{'inputs':<15} test accuracy of {len(ACTIVITIES)} activities")
    for chosen in (["motion"], ["note"], ["motion", "note"]):
        encoders = {name: inputs[name] for name in chosen}
        model = build_model(encoders, {"activity": "classification"}, data["train"], seed=seed)
        strategy = build_strategy("full", epochs=epochs, lr=2e-3, encoder_lr=2e-3)
        options = TrainingOptions(order="length", seed=seed, progress=False)
        accuracy = run(model, data, strategy, options)["test"]["activity"]["accuracy"]
        print(f"{' + '.join(chosen):<15} {100 * accuracy:.1f} %")


if __name__ == "__main__":
    command(main, "motion_sensor.py")
