"""Several seeds of one fusion trained on the same encoded rows, one by one or all together.

Together, their parameters are stacked and one `torch.func.vmap` runs them all: on a GPU small
models wait for their own kernels to start, so that several cost little more than one.  What is
drawn at random comes from a generator per seed, so that both ways give the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from mmtransfer.data.examples import Examples
from mmtransfer.features import Features
from mmtransfer.fusion.base import Fusion
from mmtransfer.tasks.base import Task
from mmtransfer.training.setup import rate_curve
from mmtransfer.transfer.base import Phase


@dataclass(frozen=True)
class Recipe:
    """How each fusion is trained.

    modality_dropout: each present modality of a row goes missing at this rate, never the last
    """

    epochs: int = 20
    lr: float = 1e-3
    batch_size: int = 64
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip: float = 1.0
    modality_dropout: float = 0.3


class Joined(nn.Module):
    """Fusion and heads on ready features: what `TransferModel` is above its encoders."""

    def __init__(self, fusion: Fusion, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        self.fusion = fusion
        self.heads = nn.ModuleDict({name: fusion.head(t.head) for name, t in tasks.items()})

    def forward(self, tokens: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """tokens (B, T, D), masks (B, T) by modality -> logits (B, C) by task."""
        fused = self.fusion({name: Features(tokens[name], masks[name]) for name in tokens})
        return {name: self.fusion.decide(head, fused) for name, head in self.heads.items()}


@dataclass
class Tape:
    """Masks of drop-out in the order of its calls; first their shapes are noted."""

    shapes: list[tuple[torch.Size, float]] = field(default_factory=list)
    masks: list[Tensor] | None = None

    def draw(self, generator: torch.Generator, device: torch.device) -> list[Tensor]:
        """Masks (0 or 1 / (1 - p)) for one forward pass."""
        draws = [torch.rand(shape, generator=generator, device=device) for shape, _ in self.shapes]
        pairs = zip(draws, self.shapes, strict=True)
        return [(draw >= p).to(draw.dtype) / (1 - p) for draw, (_, p) in pairs]


class GivenDropout(nn.Module):
    """Drop-out whose masks are given: `vmap` could not repeat those of single runs."""

    def __init__(self, p: float, tape: Tape) -> None:
        super().__init__()
        self.p, self.tape = p, tape

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        if self.tape.masks is None:
            self.tape.shapes.append((x.shape, self.p))
            return x
        return x * self.tape.masks.pop(0)


def train(
    build: Callable[[], Joined],
    examples: Examples,
    tasks: Mapping[str, Task],
    seeds: Sequence[int],
    recipe: Recipe,
    device: torch.device | str = "cpu",
    together: bool = False,
) -> list[Joined]:
    """Train one model per seed; -> them in evaluation mode, with the weights of the last step."""
    if not together:
        return [_train(build, examples, tasks, [s], recipe, torch.device(device))[0] for s in seeds]
    return _train(build, examples, tasks, seeds, recipe, torch.device(device))


def _train(
    build: Callable[[], Joined],
    examples: Examples,
    tasks: Mapping[str, Task],
    seeds: Sequence[int],
    recipe: Recipe,
    device: torch.device,
) -> list[Joined]:
    models, statistics = [], examples.statistics()
    for seed in seeds:
        torch.manual_seed(seed)
        models.append(build().to(device).train())
        models[-1].fusion.standardise(
            {n: (m.to(device), d.to(device)) for n, (m, d) in statistics.items()}
        )
    size = min(recipe.batch_size, len(examples))
    base, tape = with_given_dropout(models[0])
    with torch.no_grad():
        base(*batch_of(examples, torch.arange(size), device))
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(
        [
            # Biases and norms are not decayed, as in Phase; the first dimension is that of seeds.
            {
                "params": [p for p in parameters.values() if p.ndim > 2],
                "weight_decay": recipe.weight_decay,
            },
            {"params": [p for p in parameters.values() if p.ndim <= 2], "weight_decay": 0.0},
        ],
        lr=recipe.lr,
        fused=True,
    )
    steps = recipe.epochs * (len(examples) // size)
    curve = rate_curve(Phase(recipe.epochs, recipe.lr, warmup=recipe.warmup), steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, curve)
    draws = [Draws(examples, seed, recipe, size, tape, device) for seed in seeds]

    def forward(
        p: dict[str, Tensor],
        b: dict[str, Tensor],
        tokens: dict[str, Tensor],
        masks: dict[str, Tensor],
        drops: list[Tensor],
    ) -> dict[str, Tensor]:
        tape.masks = list(drops)
        found: dict[str, Tensor] = functional_call(base, (p, b), (tokens, masks))
        return found

    for _ in range(steps):
        drawn = [draw.step() for draw in draws]
        if len(seeds) == 1:
            # Views, whose gradients are views too; those of indexing are copies.
            one = [{n: t.squeeze(0) for n, t in of.items()} for of in (parameters, buffers)]
            tokens, masks, drops, rows = drawn[0]
            logits = {n: z[None] for n, z in forward(one[0], one[1], tokens, masks, drops).items()}
        else:
            tokens, masks, drops, rows = stacked(drawn)
            logits = vmap(forward)(parameters, buffers, tokens, masks, drops)
        loss = joint_loss(logits, examples, rows.reshape(len(seeds), size), tasks)
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()  # the seeds share nothing: each gets the gradient of its own loss
        clip_each([p.grad for p in parameters.values() if p.grad is not None], recipe.clip)
        optimizer.step()
        schedule.step()
    for k, model in enumerate(models):
        model.load_state_dict({n: t[k].detach() for n, t in (parameters | buffers).items()})
    return [model.eval() for model in models]


class Draws:
    """Batches of one seed: order of the rows, modality drop-out, drop-out."""

    def __init__(
        self,
        examples: Examples,
        seed: int,
        recipe: Recipe,
        size: int,
        tape: Tape,
        device: torch.device,
    ) -> None:
        self.examples, self.recipe, self.size = examples, recipe, size
        self.tape, self.device = tape, device
        self.rows = torch.Generator().manual_seed(seed)
        self.drops = torch.Generator(device).manual_seed(seed)
        self.left: list[Tensor] = []

    def step(self) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor], Tensor]:
        """-> tokens and masks by modality, drop-out masks, row numbers (B,)."""
        if not self.left:  # whole batches only, so that all steps have the same shapes
            order = torch.randperm(len(self.examples), generator=self.rows)
            batches = order.split(self.size)
            self.left = [batch for batch in batches if len(batch) == self.size]
        rows = self.left.pop()
        tokens, masks = batch_of(self.examples, rows, self.device)
        kept = self._kept(torch.stack([m.any(1) for m in masks.values()], 1).cpu())
        masks = {
            name: mask & kept[:, k, None].to(self.device)
            for k, (name, mask) in enumerate(masks.items())
        }
        return tokens, masks, self.tape.draw(self.drops, self.device), rows

    def _kept(self, present: Tensor) -> Tensor:
        """(B, M) bool: modalities that stay; where none would, the one with the largest draw."""
        draw = torch.rand(present.shape, generator=self.rows).masked_fill(~present, -1.0)
        kept = present & (draw >= self.recipe.modality_dropout)
        last = draw == draw.max(1, keepdim=True).values
        return kept | (present & last & ~kept.any(1, keepdim=True))


def batch_of(
    examples: Examples, rows: Tensor, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    chosen = {n: (f.tokens[rows], f.mask[rows]) for n, f in examples.features.items()}
    tokens = {n: t.to(device, torch.float32) for n, (t, _) in chosen.items()}
    return tokens, {n: m.to(device) for n, (_, m) in chosen.items()}


def stacked(
    drawn: Sequence[tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor], Tensor]],
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor], Tensor]:
    """Batches of several seeds, with the seeds as first dimension."""
    first = drawn[0]
    tokens = {n: torch.stack([d[0][n] for d in drawn]) for n in first[0]}
    masks = {n: torch.stack([d[1][n] for d in drawn]) for n in first[1]}
    drops = [torch.stack([d[2][k] for d in drawn]) for k in range(len(first[2]))]
    return tokens, masks, drops, torch.stack([d[3] for d in drawn])


def joint_loss(
    logits: Mapping[str, Tensor], examples: Examples, rows: Tensor, tasks: Mapping[str, Task]
) -> Tensor:
    """logits (S, B, C) by task, rows (S, B) -> loss (S,): the sum over tasks of their means."""
    total = torch.zeros(len(rows), device=next(iter(logits.values())).device)
    for name, task in tasks.items():
        targets = examples.targets[name][rows].flatten(0, 1).to(total.device)
        losses = task.loss(logits[name].flatten(0, 1), targets).unflatten(0, rows.shape)
        weights = task.loss_weight(targets).unflatten(0, rows.shape)
        sums = weights.sum(1)
        total = total + task.weight * losses.sum(1) / torch.where(sums > 0, sums, 1)
    return total


def clip_each(gradients: Sequence[Tensor], largest: float) -> None:
    """Clip the gradient norm of each seed, the first dimension, in place."""
    if not largest:
        return
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
    scale = (largest / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)  # (S,)
    for gradient in gradients:
        gradient.mul_(scale.reshape(-1, *[1] * (gradient.ndim - 1)))


def with_given_dropout(model: Joined) -> tuple[Joined, Tape]:
    """A copy whose drop-outs take their masks from a tape."""
    base, tape = copy.deepcopy(model), Tape()
    for module in list(base.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, GivenDropout(child.p, tape))
    return base, tape


@torch.inference_mode()
def predict(
    model: Joined, examples: Examples, device: torch.device | str = "cpu", batch_size: int = 256
) -> dict[str, Tensor]:
    """Logits (N, C) of each task, on the CPU."""
    found: list[dict[str, Tensor]] = []
    for rows in torch.arange(len(examples)).split(batch_size):
        logits = model(*batch_of(examples, rows, torch.device(device)))
        found.append({name: z.cpu() for name, z in logits.items()})
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}
