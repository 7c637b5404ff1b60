"""Multimodal and unimodal gradients of each encoder, combined without a conflict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.base import Method
from mmtransfer.methods.unimodal import local, over_processes, split_like, unimodal_losses, whole
from mmtransfer.model import TransferModel
from mmtransfer.registry import register_method

HALF_SCALE = 1024.0  # gradients in fp16 below 6e-8 would be 0


@register_method("mmpareto")
class MMPareto(Method):
    """Pareto integration of multimodal and unimodal gradients (Wei & Hu, ICML 2024).

    The gradient of the joint loss and that of the modality's own head are added on the parameters
    of its encoder.  Where they conflict, their product being negative, they get twice the weights
    of the shortest vector between them (Désidéri, 2012) and, if that made it shorter, the length of
    the plain sum: one factor for an encoder, so that the direction stays.

    gamma: the result is multiplied by it, which enlarges the noise of the steps
    Raises `ValueError` under FSDP with a wrapping policy: parts of encoders are then split while
    their gradients are asked for.
    """

    needs = ("unimodal", "unimodal_detached", "trained_encoders", "repeated_backward")

    def __init__(self, gamma: float = 1.5) -> None:
        if not gamma > 0:
            raise ValueError(f"gamma of mmpareto must be greater than 0, found {gamma}")
        self.gamma = gamma
        self._gradients: list[Tensor] = []  # of the heads' losses, summed over micro-batches
        self._parts = 0

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._gradients, self._parts = [], 0

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        parameters = trained(model)
        if parameters:
            own = unimodal_losses(model, batch, outputs.unimodal).sum()
            found = own_gradients(own, parameters, outputs)
            if self._parts:
                torch._foreach_add_(self._gradients, found)
            else:
                self._gradients = found
            self._parts += 1
        return loss + unimodal_losses(model, batch, outputs.unimodal_detached).sum()

    def on_gradients(self, model: TransferModel) -> None:
        if not self._parts:
            return
        flat = over_processes(torch.cat([g.flatten() for g in self._gradients]))
        flat /= self._parts * PartialState().num_processes
        sizes = [g.numel() for g in self._gradients]
        own = dict(zip(trained(model), flat.split(sizes), strict=True))
        self._gradients, self._parts = [], 0
        for name in model.fusion.modalities:
            of = [p for p in model.encoders[name].parameters() if p in own and p.grad is not None]
            if not of:
                continue
            found = [p.grad for p in of if p.grad is not None]
            joint = torch.cat([whole(g).flatten() for g in found])
            mixed = self.gamma * combine(joint, torch.cat([own[p] for p in of]))
            for g, values in zip(found, mixed.split([g.numel() for g in found]), strict=True):
                local(g).copy_(split_like(values.view(g.shape), g))


def trained(model: TransferModel) -> list[Tensor]:
    parameters = (p for encoder in model.encoders.values() for p in encoder.parameters())
    return [p for p in parameters if p.requires_grad]


def own_gradients(loss: Tensor, parameters: list[Tensor], outputs: Outputs) -> list[Tensor]:
    """Gradients of the unimodal losses, zeros where there are none; nothing is left in `.grad`."""
    if any(isinstance(p, DTensor) for p in parameters):
        raise ValueError("mmpareto needs encoders that are whole: use DDP, or FSDP with NO_WRAP")
    half = any(logits.dtype == torch.float16 for logits in outputs.logits.values())
    scale = HALF_SCALE if half else 1.0
    found = torch.autograd.grad(loss * scale, parameters, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g / scale
        for p, g in zip(parameters, found, strict=True)
    ]


def combine(joint: Tensor, own: Tensor) -> Tensor:
    """Two gradients (N,) -> the integrated one (N,)."""
    product = joint @ own
    difference = (joint - own).square().sum()
    share = (own.square().sum() - product) / torch.where(difference > 0, difference, 1)
    share = torch.where(product < 0, share, 0.5)  # of the joint gradient
    mixed = 2 * share * joint + 2 * (1 - share) * own
    length, plain = mixed.norm(), (joint + own).norm()
    return mixed * torch.where((length > 0) & (plain > length), plain / length, 1.0)
