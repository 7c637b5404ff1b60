"""A domain discriminator that sees fused vectors together with what the task says of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmtransfer.features import Batch, Outputs
from mmtransfer.methods.alignment import Gradual, both_sides, check_least
from mmtransfer.methods.dann import discriminator, domain_losses, mean_of_sides, ramp, reverse
from mmtransfer.model import TransferModel
from mmtransfer.registry import nearest, register_method


@register_method("cdan")
class CDAN(Gradual):
    """Adversarial alignment conditioned on the classes (Long et al., NeurIPS 2018).

    As `dann`, but the discriminator reads the outer product of the fused vector and the class
    probabilities; where that has more than `largest` numbers, both are multiplied by fixed random
    matrices of that many columns and then with one another, over the root of `largest`.  With
    `entropy` each row counts `1 + exp(-H)`, H being the entropy of its probabilities (CDAN+E).
    Neither probabilities nor weights pass a gradient, and the loss is a mean over rows.  The
    authors' code differs in the weights: their gradient is reversed, too, and each side is divided
    by the sum of its own.

    weight, sharpness, hidden: as in `dann`
    entropy: whether rows of which the model is sure count more
    largest: numbers that the discriminator reads at the most
    task: whose classes, by default the first task's
    """

    needs = ("unlabelled", "fused")

    def __init__(
        self,
        weight: float = 1.0,
        sharpness: float = 10.0,
        hidden: int | None = None,
        entropy: bool = True,
        largest: int = 4096,
        task: str | None = None,
    ) -> None:
        super().__init__()
        check_least("the weight of cdan", weight)
        check_least("the sharpness of cdan", sharpness)
        check_least("the hidden width of cdan", 1 if hidden is None else hidden, 1)
        check_least("largest of cdan", largest, 1)
        self.weight, self.sharpness, self.hidden = weight, sharpness, hidden
        self.entropy, self.largest, self.task = entropy, largest, task

    def build(self, model: TransferModel) -> None:
        name = self._name(model)
        if name not in model.tasks:
            raise ValueError(f"unknown task {name!r} of cdan.{nearest(name, model.tasks)}")
        classes = model.tasks[name].head(1)(torch.zeros(1, 1)).shape[1]
        product = Multilinear(model.fusion.width, classes, self.largest)
        judge = discriminator(product.size, self.hidden or model.fusion.width)
        self.module = nn.Sequential(product, judge)

    def _name(self, model: TransferModel) -> str:
        return next(iter(model.tasks)) if self.task is None else self.task

    def on_loss(self, loss: Tensor, model: TransferModel, batch: Batch, outputs: Outputs) -> Tensor:
        assert isinstance(self.module, nn.Sequential)
        assert outputs.unlabelled is not None
        name, (product, judge) = self._name(model), self.module
        source, here, target, there = both_sides(batch, outputs)
        factor = self.weight * ramp(self.progress, self.sharpness)
        losses = []
        for rows, real, label, logits in (
            (source, here, 1.0, outputs.logits[name]),
            (target, there, 0.0, outputs.unlabelled.logits[name]),
        ):
            probabilities = logits.detach().float().softmax(1)
            found = domain_losses(judge, product(reverse(rows, factor), probabilities), real, label)
            losses.append(found * certainty(probabilities) if self.entropy else found)
        return loss + mean_of_sides(losses, batch)


class Multilinear(nn.Module):
    """The outer product of vectors and probabilities, or a random map of it."""

    vectors: Tensor
    classes: Tensor

    def __init__(self, width: int, classes: int, largest: int) -> None:
        super().__init__()
        self.random = width * classes > largest
        self.size = largest if self.random else width * classes
        if self.random:
            self.register_buffer("vectors", torch.randn(width, largest))
            self.register_buffer("classes", torch.randn(classes, largest))

    def forward(self, vectors: Tensor, probabilities: Tensor) -> Tensor:
        """(B, width), (B, C) -> (B, size)."""
        if self.random:
            return (vectors @ self.vectors) * (probabilities @ self.classes) / self.size**0.5
        return (probabilities.unsqueeze(2) * vectors.unsqueeze(1)).flatten(1)


def certainty(probabilities: Tensor) -> Tensor:
    """(B, C) -> (B,) in [1, 2]: 2 where all is on one class."""
    entropy = torch.special.entr(probabilities).sum(1)
    return 1 + (-entropy).exp()
