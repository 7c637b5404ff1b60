"""One step of the optimiser: micro-batches, the loss of all tasks, methods, clipping."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from mmtransfer.features import Activations, Batch, Inputs, Outputs
from mmtransfer.methods.base import Method
from mmtransfer.model import TransferModel, is_trainable
from mmtransfer.training.convolutions import quicken_convolutions
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.setup import (
    compile_encoders,
    forget_compiled,
    rate_curve,
    synchronise_batch_norm,
)
from mmtransfer.training.sharding import is_sharded, load_optimizer_state, optimizer_state
from mmtransfer.training.tables import embedding_tables, sparse_gradients
from mmtransfer.transfer.base import Phase, Strategy


@dataclass
class Step:
    """What is remembered of a step until its loss is looked at; the tensors are on the device.

    loss: this process's share of the loss
    wrong: 1 where the gradients of all processes were looked at and found not finite
    """

    loss: Tensor
    wrong: Tensor
    rate: float
    rows: list[Tensor]


def not_finite(what: str, found: Step) -> FloatingPointError:
    """An error that names the rows of a step; all processes ask together."""
    mine = torch.cat(found.rows).tolist()
    rows = sorted(row for row in gather_object(mine) if row >= 0)
    shown = ", ".join(map(str, rows[:32])) + (", ..." if len(rows) > 32 else "")
    return FloatingPointError(
        f"{what}, in training rows {shown}: look at these rows, lower the rates, or leave "
        "such steps out with on_nan='skip'"
    )


class Optimisation:
    """Model, optimiser and schedule of one phase, made ready for the processes that there are."""

    def __init__(
        self,
        model: TransferModel,
        groups: list[dict[str, Any]],
        phase: Phase,
        steps: int,
        strategy: Strategy,
        options: TrainingOptions,
        accelerator: Accelerator,
    ) -> None:
        self.plain, self.strategy = model, strategy
        self.options, self.accelerator = options, accelerator
        fused = accelerator.device.type in ("cpu", "cuda") and options.precision != "fp16"
        inner = torch.optim.AdamW(groups, fused=fused)
        self.fused = bool(inner.defaults["fused"])
        # Not prepared: a prepared scheduler steps once per process (accelerate 1.15).
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(inner, rate_curve(phase, steps))
        synchronise_batch_norm(model, accelerator)
        if accelerator.device.type == "cpu" and options.precision == "bf16":
            quicken_convolutions(model)
        if accelerator.ddp_handler is not None:
            # A modality that the batch of one process lacks leaves its encoder without a gradient.
            tuned = any(is_trainable(encoder) for encoder in model.encoders.values())
            accelerator.ddp_handler.find_unused_parameters = tuned
        if options.compile:
            compile_encoders(model, "repeated_backward" in strategy.needs)
        self.model: nn.Module
        # By themselves, replicated: they are no part of what DDP and FSDP see in a forward pass.
        self.companions = [
            p for m in strategy.methods if m.module is not None for p in m.module.parameters()
        ]
        self.own = None
        if self.companions:
            decay = phase.weight_decay
            self.own = torch.optim.AdamW(
                self.companions, lr=phase.lr, weight_decay=decay, fused=fused
            )
            self.own_curve = rate_curve(phase, steps), phase.lr
        if is_sharded(model):  # by an earlier phase: it stays so
            self.model, self.optimizer = model, accelerator.prepare_optimizer(inner)
        else:
            if accelerator.is_fsdp2:
                for parameter in model.parameters():  # it takes no other layout (torch 2.11)
                    parameter.data = parameter.data.contiguous()
            self.model, self.optimizer = accelerator.prepare(model, inner)

        # Kept, as walking over all modules for them takes as long as a small step.  Unimodal heads
        # are clipped by themselves: what only looks on must not change the steps of the rest.  So
        # is what methods train.
        heads = [] if model.unimodal is None else list(model.unimodal.parameters())
        aside = {id(p) for p in heads}
        rest = (p for p in self.model.parameters() if id(p) not in aside)
        parts = [[p for p in part if p.requires_grad] for part in (rest, heads)] + [self.companions]
        self.trained = [part for part in parts if part]
        alone = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
        # A method that acts on the loss may ask for gradients, and expects dense ones.
        plain = all(
            type(method).on_loss is Method.on_loss and "second_pass" not in method.needs
            for method in strategy.methods
        )
        self.tables = embedding_tables(model) if alone and plain and not options.compile else []

    def step(self, window: list[Batch], number: int) -> Step:
        """The `number`-th step of the run, over the micro-batches of a window."""
        counts, shares = self._labelled_rows(window)
        for batch in window:
            batch.shares = shares
        with sparse_gradients(self.tables if len(window) > 1 else (), len(window)):
            total = self._gradients(window, counts)
        self.accelerator.unscale_gradients(self.optimizer)  # of fp16, once, before anybody looks

        def again() -> None:
            self.clear()
            self._gradients(window, counts)

        for method in self.strategy.methods:
            method.on_gradients(self.plain, again)
        wrong = self._clip()
        rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        if not self.accelerator.optimizer_step_was_skipped:
            self._step_companions()
            self.scheduler.step()
        self.clear()
        for method in self.strategy.methods:
            method.on_weights(self.plain, number)
        return Step(total, wrong, rate, [batch.index for batch in window])

    def clear(self) -> None:
        """Forget all gradients, those of what methods train too."""
        self.optimizer.zero_grad(set_to_none=True)
        for parameter in self.companions:
            parameter.grad = None

    def _gradients(self, window: list[Batch], counts: Mapping[str, Tensor]) -> Tensor:
        """Gradients of all micro-batches; -> this process's share of the loss of the step."""
        total = torch.zeros((), device=self.accelerator.device)
        for k, batch in enumerate(window):
            total += self._backward(batch, counts, len(window), last=k == len(window) - 1)
        for name in self._absent_everywhere(window):
            self.plain.encoders[name].zero_grad(set_to_none=True)
        self._average_companions()
        return total

    def _backward(
        self, batch: Batch, counts: Mapping[str, Tensor], parts: int, last: bool
    ) -> Tensor:
        """Gradients of one micro-batch out of `parts`; -> its share of the loss of the step."""
        batch = batch.to(self.accelerator.device, non_blocking=True)
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
            with self.accelerator.autocast():
                # FSDP moves all tensors that it finds in an argument; it must find none needlessly.
                others = batch.unlabelled if "unlabelled" in self.plain.demanded else None
                unlabelled = () if others is None else (others,)
                outputs = self.model(batch.inputs, len(batch), *unlabelled)
            losses = self._task_losses(outputs, batch, counts)
            share = torch.stack(list(losses.values())).sum()
            # Blown up to the size of a whole loss, so that what a method adds weighs the same
            # however many parts the step has.
            whole = parts * self.accelerator.num_processes
            outputs.losses = {name: one * whole for name, one in losses.items()}
            batch.counts = {name: count / whole for name, count in counts.items()}
            loss = share * whole
            for method in self.strategy.methods:
                loss = method.on_loss(loss, self.plain, batch, outputs)
            self.accelerator.backward(loss / parts)  # averaged over processes by DDP
        return share.detach()

    def _clip(self) -> Tensor:
        """Clip; -> 1 where gradients are not finite.  Then the step is left out if so wished."""
        skip = self.options.on_nan == "skip"
        scaled = self.accelerator.scaler is not None
        # A scaler leaves steps out by itself, but those of one optimiser without the other.
        ours = bool(self.companions) if scaled else skip
        if not (self.options.clip or skip or ours):
            return torch.zeros((), device=self.accelerator.device)
        largest = self.options.clip or float("inf")
        norms = [nn.utils.clip_grad_norm_(part, largest) for part in self.trained]
        whole = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
        wrong = (~torch.isfinite(torch.stack(whole))).any().float()
        if ours and self.fused:
            self.optimizer.optimizer.found_inf = wrong  # what a gradient scaler tells AdamW
            if self.own is not None:
                self.own.found_inf = wrong  # type: ignore[attr-defined]
        elif ours and wrong:  # waits for the device, which fused ones decide on
            self.clear()
        if scaled and not skip:
            return torch.zeros_like(wrong)  # the scaler looks for its scale: no fault of the rows
        return wrong

    def _task_losses(
        self, outputs: Outputs, batch: Batch, counts: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """This micro-batch's share of the loss of each task, times the task's weight."""
        return {
            name: task.weight
            * task.loss(outputs.logits[name], batch.targets[name]).sum()
            / counts[name]
            for name, task in self.plain.tasks.items()
        }

    def _average_companions(self) -> None:
        """Gradients of what methods train, over processes, unscaled."""
        for parameter in self.companions:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        if self.own is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(self.own)  # and lower the scale if they overflow

    def _step_companions(self) -> None:
        if self.own is None:
            return
        curve, lr = self.own_curve
        for group in self.own.param_groups:
            group["lr"] = lr * curve(self.scheduler.last_epoch)
        self.own.step()

    def _labelled_rows(self, window: list[Batch]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the rows of a step weigh per task, over micro-batches and processes, 1 if none.

        Where methods look at each modality by itself, also `Batch.present` and `Batch.shares`; and
        `Batch.real`, of the unlabelled rows too.
        """
        tasks, demanded = self.plain.tasks, bool(self.plain.demanded)
        for batch in window if demanded else ():
            batch.present = batch.having(self.plain.fusion.modalities)
        weighed = [
            [_weigh(task.loss_weight(batch.targets[name]), batch.present) for batch in window]
            for name, task in tasks.items()
        ]
        others = [batch.unlabelled for batch in window if batch.unlabelled is not None]
        blank = [0.0] * len(self.plain.fusion.modalities) if demanded else []
        weighed += [
            [[float((batch.index >= 0).sum()), *blank] for batch in side]
            for side in (window, others)
            if side
        ]
        counts = torch.tensor([[sum(column) for column in zip(*w, strict=True)] for w in weighed])
        counts = self.accelerator.reduce(
            counts.to(self.accelerator.device, non_blocking=True)
        )  # (tasks + 1 or 2, 1 or 1 + M)
        counts = torch.where(counts > 0, counts, 1)
        parts = len(window) * self.accelerator.num_processes
        counted, real = counts[: len(tasks)], counts[len(tasks) :, 0] / parts
        for k, side in enumerate((window, others)):
            for batch in side:
                batch.real = real[k]
        shares = {n: c[1:] / parts for n, c in zip(tasks, counted, strict=True)} if demanded else {}
        return {n: c[0] for n, c in zip(tasks, counted, strict=True)}, shares

    def _absent_everywhere(self, window: list[Batch]) -> list[str]:
        """With FSDP, the modalities that no process has in this step: stand-ins gave them zeros.

        An optimiser does not step where there is no gradient, but decays where it is zero.
        """
        if not is_sharded(self.plain):
            return []
        names = [name for name, encoder in self.plain.encoders.items() if is_trainable(encoder)]
        others = [batch.unlabelled for batch in window if batch.unlabelled is not None]
        parts = [[batch.inputs.get(name) for batch in (*window, *others)] for name in names]
        counts = [
            sum(len(p.rows) for p in ps if isinstance(p, Inputs | Activations)) for ps in parts
        ]
        found = self.accelerator.reduce(torch.tensor(counts, device=self.accelerator.device))
        return [name for name, count in zip(names, found.tolist(), strict=True) if not count]

    def state(self) -> dict[str, Any]:
        """Optimiser by parameter name, schedule and loss scale; asked by all processes together."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": optimizer_state(self.plain, self.optimizer.optimizer),
            "schedule": self.scheduler.last_epoch,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "companions": self.own.state_dict() if self.own is not None else None,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        load_optimizer_state(self.plain, self.optimizer.optimizer, state["optimizer"])
        self.scheduler.last_epoch = state["schedule"]
        rates = [
            base * curve(state["schedule"])
            for base, curve in zip(self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True)
        ]
        self.scheduler._last_lr = rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        if self.own is not None:
            # With its present groups: whether they are fused depends on the device.
            known = {**self.own.state_dict(), "state": state["companions"]["state"]}
            self.own.load_state_dict(known)
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def release(self) -> None:
        """Take the model out of its wrapping."""
        self.clear()
        forget_compiled(self.plain)
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        # Not free_memory(), whose garbage collection takes longer than many steps.
        self.accelerator._models.clear()
        self.accelerator._optimizers.clear()


def _weigh(weights: Tensor, present: Tensor | None) -> list[float]:
    """Sums of the weights (B,) of all rows and, by modality, of those that are present (B, M)."""
    whole = [float(weights.sum())]
    return whole if present is None else whole + (weights @ present.to(weights.dtype)).tolist()
