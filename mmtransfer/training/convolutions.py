"""Convolutions whose gradients a CPU computes slowly in bf16, and how they are computed instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class StridedDepthwise(nn.Conv2d):
    """A depthwise convolution with a stride, whose gradients come from fp32 on a CPU.

    Within bf16 autocast the gradient of its input takes oneDNN 5 to 9 times as long as in fp32
    (torch 2.11); of a training step of MobileNetV2 that is a sixth.
    """

    def forward(self, input: Tensor) -> Tensor:
        slow = input.requires_grad and input.device.type == "cpu"
        if not (slow and torch.is_autocast_enabled("cpu")):
            return super().forward(input)
        settings = self.stride, self.padding, self.dilation, self.groups
        found: Tensor = _GradientsInFp32.apply(input, self.weight, self.bias, settings)
        return found


class _GradientsInFp32(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, ...]
    ) -> Tensor:
        lower = input.to(torch.get_autocast_dtype("cpu"))
        ctx.save_for_backward(lower, weight, bias)
        ctx.settings, ctx.dtype = settings, input.dtype
        return nn.functional.conv2d(lower, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        lower, weight, bias = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        with torch.autocast("cpu", enabled=False):
            of_input, of_weight, of_bias = torch.ops.aten.convolution_backward(
                gradient.float(),
                lower.float(),
                weight.float(),
                None if bias is None else list(bias.shape),
                stride,
                padding,
                dilation,
                False,
                (0, 0),
                groups,
                (*ctx.needs_input_grad[:2], bias is not None and ctx.needs_input_grad[2]),
            )
        return (
            None if of_input is None else of_input.to(ctx.dtype),
            of_weight,
            of_bias,
            None,
        )


def quicken_convolutions(model: nn.Module) -> None:
    """Make each strided depthwise convolution a `StridedDepthwise`; weights and names stay."""
    for module in model.modules():
        if type(module) is not nn.Conv2d or not 1 < module.groups == module.in_channels:
            continue
        if max(module.stride) > 1 and module.padding_mode == "zeros" and module.padding != "valid":
            module.__class__ = StridedDepthwise
