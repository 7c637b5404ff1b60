"""The training loop on accelerate: phases, steps, validation, best weights."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from safetensors.torch import save_file
from torch import Tensor, nn

from mmtransfer.data.rows import Rows
from mmtransfer.evaluation.metrics import Collected, collect, compute_metrics
from mmtransfer.features import Batch, Outputs
from mmtransfer.model import TransferModel, is_trainable
from mmtransfer.training.data import TrainingData
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.progress import Progress
from mmtransfer.training.setup import make_accelerator, rate_curve, windows
from mmtransfer.transfer.base import Phase, Strategy

LOG_EVERY = 20  # steps between two looks at the loss: each look waits for the device


class Trainer:
    """Trains a model by a strategy.

    After `fit` the model holds the weights of the best validation epoch (or the last ones where
    there is no validation data).  Raises `ValueError` at once for data that does not fit the model.
    """

    def __init__(
        self,
        model: TransferModel,
        train: Rows,
        validation: Rows | None,
        strategy: Strategy,
        options: TrainingOptions | None = None,
        output: Path | None = None,
        title: str = "",
    ) -> None:
        self.model, self.strategy = model, strategy
        self.options = options or TrainingOptions()
        self.output = output
        self.accelerator = make_accelerator(self.options, output)
        shown = self.options.progress and self.accelerator.is_main_process
        self.progress = Progress(shown, title)
        splits = {"train": train} | ({} if validation is None else {"validation": validation})
        self.data = TrainingData(
            model, splits, strategy, self.options, self.accelerator, self.progress
        )
        self.history: list[dict[str, Any]] = []
        self.losses: list[float] = []  # of every step
        self.seconds = {"training": 0.0, "evaluation": 0.0}
        self.best_score, self.best_state = -math.inf, dict[str, Tensor]()
        self.step = 0
        self.model.to(self.accelerator.device)

    # -- the loop ---------------------------------------------------------------------------------

    def fit(self) -> list[dict[str, Any]]:
        """Run all phases; -> one record per epoch."""
        set_seed(self.options.seed, device_specific=True)
        if self.output is not None:
            count, device = self.accelerator.num_processes, self.accelerator.device.type
            processes = f"{count} process{'es' if count > 1 else ''} on {device}"
            batch = f"{self.options.batch_size} rows per step"
            self.progress.line(f"{processes}, {batch}, precision {self.options.precision}")
        for number, phase in enumerate(self.strategy.phases):
            self._fit_phase(number, phase)
        self.model.eval()
        self.accelerator.wait_for_everyone()
        return self.history

    def _fit_phase(self, number: int, phase: Phase) -> None:
        groups = phase.apply(self.model)
        self.best_state |= self._trained_state()
        self.data.begin_phase()
        stores = self.data.stores_of("train", self.data.splits["train"])
        if number == 0 and stores:
            statistics = {n: store.statistics() for n, store in stores.items()}
            self.model.fusion.standardise(
                {n: (torch.from_numpy(m), torch.from_numpy(d)) for n, (m, d) in statistics.items()}
            )
        loader, batches = self.data.train_loader()
        fused = self.accelerator.device.type in ("cpu", "cuda") and self.options.precision != "fp16"
        optimizer = torch.optim.AdamW(groups, fused=fused)
        curve = rate_curve(phase, phase.epochs * batches.steps)
        # Not prepared: a prepared scheduler steps once per process (accelerate 1.15).
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, curve)
        model, optimizer = self.accelerator.prepare(self.model, optimizer)
        stale, best = 0, -math.inf  # of this phase: a probe's score must not end fine-tuning
        for epoch in range(phase.epochs):
            batches.epoch = len(self.history)
            loader.collate_fn.epoch.fill_(batches.epoch)
            started = time.perf_counter()
            self.model.train()
            pending: list[Tensor] = []
            title = f"phase {number + 1} epoch {epoch + 1}/{phase.epochs}"
            steps = windows(self.data.noted("train", loader), self.options.accumulation)
            for window in self.progress.track(steps, title, batches.steps):
                pending.append(self._train_step(model, optimizer, scheduler, window))
                if len(pending) == LOG_EVERY:
                    self._log_losses(pending, scheduler)
            self._log_losses(pending, scheduler)
            self.seconds["training"] += time.perf_counter() - started
            score = self._end_epoch(number, epoch, batches.steps)
            if self.output is not None:  # the lines of many short runs would bury everything
                self.progress.line(f"{title}  {summary(self.history[-1])}")
            stale = 0 if score > best else stale + 1
            best = max(best, score)
            if 0 < self.options.patience <= stale and "validation" in self.data.splits:
                break
        optimizer.zero_grad(set_to_none=True)
        self.model = self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        self.accelerator.free_memory()
        self.model.load_state_dict(self.best_state, strict=False)  # frozen parts are as they were

    def _train_step(
        self, model: nn.Module, optimizer: Any, scheduler: Any, window: list[Batch]
    ) -> Tensor:
        """One optimiser step over the micro-batches of a window; -> its loss, on the device."""
        counts = self._labelled_rows(window)
        loss_of_step = torch.zeros((), device=self.accelerator.device)
        for k, batch in enumerate(window):
            batch = batch.to(self.accelerator.device, non_blocking=True)
            last = k == len(window) - 1
            sync = contextlib.nullcontext() if last else self.accelerator.no_sync(model)
            with sync:
                outputs = model(batch.inputs, len(batch))
                loss = self._task_loss(outputs, batch, counts)
                loss_of_step += loss.detach()
                # This part's share of the step, blown up to the size of a whole loss, so that what
                # a method adds weighs the same however many parts the step has.
                loss = loss * (len(window) * self.accelerator.num_processes)
                for method in self.strategy.methods:
                    loss = method.on_loss(loss, self.model, batch, outputs)
                self.accelerator.backward(loss / len(window))  # averaged over processes by DDP
        self.accelerator.unscale_gradients(optimizer)  # of fp16, once, before anybody looks
        for method in self.strategy.methods:
            method.on_gradients(self.model)
        if self.options.clip:
            nn.utils.clip_grad_norm_(model.parameters(), self.options.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not self.accelerator.optimizer_step_was_skipped:
            scheduler.step()
        self.step += 1
        for method in self.strategy.methods:
            method.on_weights(self.model, self.step)
        return loss_of_step

    def _task_loss(self, outputs: Outputs, batch: Batch, counts: Mapping[str, Tensor]) -> Tensor:
        losses = [
            task.weight * task.loss(outputs.logits[name], batch.targets[name]).sum() / counts[name]
            for name, task in self.model.tasks.items()
        ]
        return torch.stack(losses).sum()

    def _labelled_rows(self, window: list[Batch]) -> dict[str, Tensor]:
        """Per task, what the rows of a step weigh over micro-batches and processes, 1 if none."""
        tasks = self.model.tasks
        counts = torch.tensor(
            [
                sum(float(task.loss_weight(batch.targets[name]).sum()) for batch in window)
                for name, task in tasks.items()
            ]
        ).to(self.accelerator.device, non_blocking=True)
        counts = self.accelerator.reduce(counts)
        counts = torch.where(counts > 0, counts, 1)
        return dict(zip(tasks, counts, strict=True))

    def _log_losses(self, pending: list[Tensor], scheduler: Any) -> None:
        """Bring the losses of the last steps to the host, summed over processes, and clear them."""
        if not pending:
            return
        losses = self.accelerator.reduce(torch.stack(pending)).tolist()
        pending.clear()
        first = len(self.losses)
        self.losses += losses
        for k, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss of step {first + k + 1} is {loss}: lower the rates, or clip"
                )
        self.progress.show(loss=sum(losses) / len(losses))
        values = {"train/loss": sum(losses) / len(losses), "train/rate": scheduler.get_last_lr()[0]}
        self.accelerator.log(values, step=len(self.losses))

    def _end_epoch(self, number: int, epoch: int, steps: int) -> float:
        """Validate, keep the best weights; -> the score of this epoch, -inf without validation."""
        record: dict[str, Any] = {
            "phase": number + 1,
            "epoch": epoch + 1,
            "train_loss": sum(self.losses[-steps:]) / steps,
        }
        score = -math.inf
        if "validation" in self.data.splits:
            record["validation"] = self.evaluate(self.data.splits["validation"], "validation")
            score = self.score(record["validation"])
            scalars = {
                f"validation/{task}/{metric}": value
                for task, values in record["validation"].items()
                for metric, value in values.items()
            }
            self.accelerator.log(scalars, step=len(self.losses))
        self.history.append(record)
        # Of equal epochs the later one, which has seen more; without labels simply the last.
        if score >= self.best_score:
            self.best_score = score
            self.best_state |= self._trained_state()
            if self.output is not None and self.accelerator.is_main_process:
                aside = self.output / "best.safetensors.part"
                save_file(self.best_state, aside)
                aside.rename(self.output / "best.safetensors")
        return score

    def _trained_state(self) -> dict[str, Tensor]:
        """Parameters and buffers of all parts that train now, as copies on the CPU."""
        trained = [n for n, e in self.model.encoders.items() if is_trainable(e)]
        prefixes = ("fusion.", "heads.", *(f"encoders.{name}." for name in trained))
        state = self.model.state_dict()
        return {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in state.items()
            if name.startswith(prefixes)
        }

    def score(self, metrics: Mapping[str, Mapping[str, float]]) -> float:
        """What the best epoch is chosen by: the mean over tasks of their main metric."""
        scores = [
            metrics[name][task.score]
            for name, task in self.model.tasks.items()
            if task.score in metrics[name]
        ]
        return sum(scores) / len(scores) if scores else -math.inf

    # -- looking at the result --------------------------------------------------------------------

    def evaluate(self, rows: Rows, split: str = "test") -> dict[str, dict[str, float]]:
        """Metrics of the present weights, the same for any number of processes."""
        return compute_metrics(self.model.tasks, self.collect(rows, split))

    def collect(self, rows: Rows, split: str = "test") -> Collected:
        """Logits of every row, once, in order, on all processes."""
        loader = self.data.evaluation_loader(split, rows)
        started = time.perf_counter()
        training = self.model.training
        self.model.eval()
        with self.accelerator.autocast():
            collected = collect(self.model, self.data.noted(split, loader), self.accelerator.device)
        self.model.train(training)
        self.seconds["evaluation"] += time.perf_counter() - started
        return collected

    def save(self, directory: Path) -> None:
        """Write the model, from the main process, while the others wait."""
        if self.accelerator.is_main_process:
            self.model.save_pretrained(directory)
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Unfreeze the model and end the trackers; the processes live on (see `end_processes`)."""
        self.model.requires_grad_(True)
        self.data.loaders.clear()
        for tracker in self.accelerator.trackers:
            tracker.finish()


def summary(record: Mapping[str, Any]) -> str:
    """One line about an epoch."""
    parts = [f"loss {record['train_loss']:.4f}"]
    for task, metrics in record.get("validation", {}).items():
        shown = {k: v for k, v in metrics.items() if k not in ("rows", "loss")}
        parts += [f"{task} {name} {value:.4f}" for name, value in shown.items()]
    return "  ".join(parts)
