"""The training loop on accelerate: phases, epochs, validation, best weights."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

import torch
from accelerate.utils import set_seed
from accelerate.utils.memory import should_reduce_batch_size

from mmtransfer.features import Batch
from mmtransfer.temperature import Temperature
from mmtransfer.training.checkpoint import Checkpoint
from mmtransfer.training.identity import digest_of
from mmtransfer.training.log import summary
from mmtransfer.training.look import LookAtData
from mmtransfer.training.optimisation import Optimisation, not_finite
from mmtransfer.training.resume import exactness
from mmtransfer.training.setup import give_back_memory, launched_as, share_buffers
from mmtransfer.training.sharding import averaged, load_whole, resharded
from mmtransfer.training.state import Position, RunState
from mmtransfer.transfer.adapters import merge_adapters, save_adapters
from mmtransfer.transfer.base import Phase
from mmtransfer.transfer.parts import parameter_counts

LOOK_STEPS, LOOK_SECONDS = 20, 2.0  # a look at the loss waits for the device: not at every step


class Trainer(RunState):
    """Trains a model by a strategy.

    After `fit` the model holds the weights of the best validation epoch (or the last ones where
    there is no validation data).  With an output directory there are checkpoints, from which
    `fit(resume=True)` goes on to the very same weights.  Raises `ValueError` at once for data,
    phases and methods that do not fit the model; until `fit` nothing is written.
    """

    def fit(self, resume: bool = False) -> list[dict[str, Any]]:
        """Run all phases; -> one record per epoch.

        resume: go on from the newest complete checkpoint of the output directory, if there is one
        Raises `Stopped`, an exit with status 0, after a SIGTERM and a checkpoint.
        """
        with self.stop:
            if resume and self.saved is None:
                self.take_up()
            self.leave_if_asked()
            saved, self.saved = self.saved, None
            set_seed(self.options.seed, device_specific=True)
            if self.output is not None:  # the lines of many short runs would bury everything
                self.progress.line(launched_as(self.options, self.accelerator))
                if saved is not None:
                    self.progress.line(exactness(saved, self.step, self._setting()))
            self.log.begin(self.step, len(self.history))
            self.model.temperature = Temperature()  # an earlier one was fitted to other weights
            for number in range(self.position.phase, len(self.strategy.phases)):
                self._fit_phase(number, self.strategy.phases[number], saved)
                saved = None
            if saved is not None:  # all phases had ended
                self.strategy.phases[-1].apply(self.model)
                self.data.begin_phase()
                self._restore(saved)
        self.data.ended = True
        self.counts = parameter_counts(self.model, self.trained)
        if self.strategy.adapters:
            if self.output is not None and self.accelerator.is_main_process:
                save_adapters(self.model, self.output / "adapters")
            if self.strategy.merge:
                merge_adapters(self.model)
        self.model.eval()
        self.accelerator.wait_for_everyone()
        return self.history

    def _fit_phase(self, number: int, phase: Phase, saved: Checkpoint | None) -> None:
        resharded(self.model)
        groups = phase.apply(self.model)
        self.trained |= {name for name, p in self.model.named_parameters() if p.requires_grad}
        if self.checkpoints is not None:
            self.frozen = digest_of(self.model, self.trained)
        if saved is None:
            self.position = Position(number)
        if not self.position.epoch and not self.position.step:
            self._keep_best()
        self.data.begin_phase()
        if number == 0:
            self.model.standardise(self.data.statistics())
        if number == 0 and saved is None:
            self._begin()
        loader, batches = self.data.train_loader(self.accumulation)
        steps = phase.epochs * batches.steps
        self.optimisation = Optimisation(
            self.model, groups, phase, steps, self.strategy, self.options, self.accelerator
        )
        if saved is not None:
            self._restore(saved)
        while self.position.epoch < phase.epochs and not self._worn_out():
            title = f"phase {number + 1} epoch {self.position.epoch + 1}/{phase.epochs}"
            started = time.perf_counter()
            while self.position.step < batches.steps:
                batches.epoch, batches.start = len(self.history), self.position.step
                read = self.data.windows("train", loader, self.accumulation)
                read = self.data.beside(read, self.step, self.accumulation)
                try:
                    shown = self.progress.track(read, title, batches.steps, batches.start)
                    self._run_steps(shown, batches.steps)
                except RuntimeError as error:
                    self._halve_batches(error)
                    loader, batches = self.data.train_loader(self.accumulation)
            self.seconds["training"] += time.perf_counter() - started
            self._end_epoch(batches.steps)
            if self.output is not None:
                self.progress.line(f"{title}  {summary(self.history[-1])}")
        self.optimisation.release()
        self.optimisation = None
        load_whole(self.model, self.best_state)  # frozen parts are as they were
        give_back_memory()
        self.position = Position(number + 1)
        self.checkpoint()

    def _begin(self) -> None:
        """What is looked at once, before the first step."""
        if "source" in self.data.splits:
            self.before = self.evaluate(self.data.splits["source"], "source")
        look = LookAtData(self.model, self.data, self.accelerator)
        with torch.random.fork_rng(devices=()):
            for method in self.strategy.methods:
                method.begin(self.model, look)

    def _run_steps(self, windows: Iterable[list[Batch]], steps: int) -> None:
        """The rest of an epoch of so many steps; now and then a look at the losses."""
        assert self.optimisation is not None
        look, every = 1, self.options.checkpoint_steps
        self.model.train()
        self.log.restart_clock()
        for window in windows:
            self.pending.append(self.optimisation.step(window, self.step + 1))
            self.position.step += 1
            due = every > 0 and self.step % every == 0
            if len(self.pending) >= look or due or self.position.step == steps:
                look, stop, late = self._look()
                if stop:
                    self._leave()
                if due or late:
                    self.checkpoint()

    def _look(self) -> tuple[int, bool, bool]:
        """Bring the losses since the last look to the host, summed over processes.

        -> steps until the next look, whether to stop, whether a checkpoint is due; on all processes
        """
        pending, self.pending = self.pending, []
        n, main = len(pending), self.accelerator.is_main_process
        age = (time.monotonic() - self.last_checkpoint) / 60
        late = self.checkpoints is not None and 0 < self.options.checkpoint_minutes <= age
        own = torch.tensor([self.stop.requested, main and late, main and self.log.elapsed() / n])
        values = [*(s.loss for s in pending), *(s.wrong for s in pending)]
        packed = torch.cat([torch.stack(values), own.to(values[0])])
        found = self.accelerator.reduce(packed).tolist()
        losses, wrong, (stop, due, pace) = found[:n], found[n : 2 * n], found[2 * n :]
        for k, loss in enumerate(losses if self.options.on_nan == "raise" else ()):
            number = self.step + k + 1
            if not math.isfinite(loss):
                raise not_finite(f"the loss of step {number} is {loss}", pending[k])
            if wrong[k]:
                raise not_finite(f"the gradients of step {number} are not finite", pending[k])
        rates = [s.rate for s in pending]
        where = {"phase": self.position.phase + 1, "epoch": len(self.history) + 1}
        told = self.log.steps(self.step + 1, losses, rates, where, n * self.options.batch_size)
        self.losses += losses
        self.skipped_steps += sum(count > 0 for count in wrong)
        self.progress.show(loss=sum(losses) / n, **told)
        return max(1, min(LOOK_STEPS, int(LOOK_SECONDS / max(pace, 1e-9)))), stop > 0, due > 0

    def _halve_batches(self, error: RuntimeError) -> None:
        """After running out of memory: twice the micro-batches per step, each of half the rows."""
        alone = self.accelerator.num_processes == 1  # else the others wait for gradients
        smaller = 2 * self.accumulation * self.accelerator.num_processes
        if not (should_reduce_batch_size(error) and alone and self.options.on_oom == "halve"):
            raise error
        if smaller > self.options.batch_size:
            raise error
        assert self.optimisation is not None
        self.optimisation.clear()
        for method in self.strategy.methods:
            method.load_state_dict(method.state_dict())  # without the step that broke off
        if self.pending:
            self._look()
        self.accumulation *= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.progress.line(
            f"out of memory in step {self.step + 1}: goes on with accumulation {self.accumulation}"
        )

    def _end_epoch(self, steps: int) -> None:
        """Validate, keep the best weights, count the epoch."""
        known = [loss for loss in self.losses[-steps:] if math.isfinite(loss)]
        record: dict[str, Any] = {
            "phase": self.position.phase + 1,
            "epoch": self.position.epoch + 1,
            "train_loss": sum(known) / max(1, len(known)),
        }
        share_buffers(self.model, self.accelerator)
        score = -math.inf
        with averaged(self.model, self.strategy.methods) as replaced:
            if "validation" in self.data.splits:
                record["validation"] = self.evaluate(self.data.splits["validation"], "validation")
                score = self.score(record["validation"])
                where = {"phase": record["phase"], "epoch": len(self.history) + 1}
                self.log.epoch(self.step, where, record["validation"])
            self.history.append(record)
            # Of equal epochs the later one, which has seen more; without labels simply the last.
            if score >= self.best_score:
                self.best_score = score
                self._keep_best(replaced)
        now = self.position
        self.position = Position(
            now.phase,
            now.epoch + 1,
            best=max(now.best, score),  # of this phase: a probe's score must not end fine-tuning
            stale=0 if score > now.best else now.stale + 1,
        )

    def _keep_best(self, replaced: bool = False) -> None:
        if replaced or "validation" in self.data.splits:  # else the last weights are the best
            self.best_state |= self._trained_state()

    def _worn_out(self) -> bool:
        patience = self.options.patience
        return 0 < patience <= self.position.stale and "validation" in self.data.splits
