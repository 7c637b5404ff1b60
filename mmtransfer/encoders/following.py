"""Parts without parameters that are in training mode where the part before them is."""

from __future__ import annotations

from typing import Any

from torch import nn


class _Follow:
    """A forward pre-hook; a class, because copies of the model must follow their own leader."""

    def __init__(self, leader: nn.Module) -> None:
        self.leader = leader

    def __call__(self, part: nn.Module, inputs: Any) -> None:
        part.train(self.leader.training)


class _FollowRate(_Follow):
    """For models that drop out by a function, at the rate that their `dropout` says."""

    def __init__(self, leader: nn.Module, rate: float) -> None:
        super().__init__(leader)
        self.rate = rate

    def __call__(self, part: nn.Module, inputs: Any) -> None:
        part.dropout = self.rate if self.leader.training else 0.0  # type: ignore[assignment]


def follow(part: nn.Module, leader: nn.Module) -> None:
    """Drop-out behind a stem is off where the stem is frozen.

    What a frozen stem gives must not change from step to step.
    """
    part.register_forward_pre_hook(_Follow(leader))


def follow_rate(model: Any, leader: nn.Module) -> None:
    """As `follow`, for the number `model.dropout`, which belongs to the stem alone."""
    model.register_forward_pre_hook(_FollowRate(leader, model.dropout))
