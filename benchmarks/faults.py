"""What goes wrong in long runs, done on purpose: kills, full disks, broken files, NaN.

    python benchmarks/faults.py                # all of them; a table, results/faults.json
    python benchmarks/faults.py --only kill-1  # those whose name begins so

Prints `N faults, N survived`, and exits with 1 unless all were.  A fault is survived when the run
ends as it does without the fault, to the last bit where the outcome says so, or stops with an error
that says what is wrong and loses nothing.  Everything is imported once and forked for each run.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import importlib
import json
import math
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from rich.console import Console
from rich.table import Table

import mmtransfer.training.checkpoint as checkpoint
import mmtransfer.training.features as features
import mmtransfer.training.run as run_module
import mmtransfer.training.state as state_module
from mmtransfer.data.products import product_rows
from mmtransfer.methods.base import Method
from mmtransfer.model import TransferModel
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, check_output, run
from mmtransfer.training.setup import end_processes
from mmtransfer.training.stop import Stopped
from mmtransfer.training.surroundings import hardware, versions
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import build_strategy

TASKS = {"product": "classification", "category": "classification"}
TINY = {"image": "tiny-vit", "text": "tiny-bert", "audio": "tiny-wav2vec2"}
TRAIN = product_rows("target/train", rows=37)  # the last step of an epoch is short
for i, row in enumerate(TRAIN):
    row["audio"] = row["audio"] if i % 4 == 0 else None  # a process often has no sound at all
VALIDATION = product_rows("target/validation", rows=19)
STEPS = 16  # of a run: two epochs of a probe, two of fine-tuning
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "NO_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


@dataclass
class Plan:
    """One run: what goes wrong in it, where, and how it is carried out."""

    act: Callable[[], None] | None = None
    at: int = 0  # after this step
    within: tuple[Any, str, int] | None = None  # module, function: at the n-th call of it
    rank: int | None = None  # only there
    processes: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    resume: bool = False
    poison: int = 0  # the loss of this step is no number
    without_rights: bool = False  # the rights of files hold, even if root started this
    memory: int = 0  # forward passes of more rows than this find none
    whole: bool = False  # `run`, with the model and the metrics in the output directory
    overwrite: bool = False
    other: bool = False  # one training text is another
    unreadable: bool = False  # one training picture is no picture


class Act(Method):
    """Does something right after a step."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.at, self.act = at, act

    def config(self) -> dict[str, Any]:
        return {"class": "act"}  # the same whatever it does, as the run is the same

    def on_weights(self, model: Any, step: int) -> None:
        if step == self.at:
            self.act()


class Poison(Method):
    """Makes the loss of a step no number."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def config(self) -> dict[str, Any]:
        return {"class": "poison"}

    def on_loss(self, loss: Any, model: Any, batch: Any, outputs: Any) -> Any:
        self.calls += 1
        return loss * (math.nan if self.calls == self.at else 1.0)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def kill_a_worker() -> None:
    multiprocessing.active_children()[0].kill()


def fill_the_disk(size: int = 50_000) -> None:
    """No file may grow beyond some bytes from now on: writes fail as they do on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def act_within(module: Any, name: str, number: int, act: Callable[[], None]) -> None:
    """Act at the `number`-th call of a function; of a file being written, half is there by then."""
    plain, calls = getattr(module, name), 0

    def function(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            if name == "write_file":
                arguments[0].write_bytes(arguments[1][: len(arguments[1]) // 2])
            act()
        return plain(*arguments, **options)

    setattr(module, name, function)


def train(output: Path, plan: Plan) -> None:
    """One process of a run; leaves the model and the curves beside the output directory."""
    act = plan.act if plan.rank in (None, int(os.environ.get("RANK", 0))) else None
    if act and plan.within:
        act_within(*plan.within, act)
    if plan.without_rights and os.getuid() == 0:
        no_capabilities = (ctypes.c_uint32 * 6)()
        assert not ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), no_capabilities)
    if plan.memory:
        limit_memory(plan.memory)
    methods = ["modality_dropout", Act(plan.at, act or (lambda: None)), Poison(plan.poison)]
    strategy = build_strategy("lp_ft", methods, probe_epochs=2, epochs=2, encoder_lr=1e-3, lr=5e-3)
    chosen = {"augment": True, "track": [], "checkpoint_steps": 3, "progress": True}
    options = TrainingOptions(
        **{"batch_size": 10, "evaluation_batch_size": 7, **chosen, **plan.options}
    )
    rows = [dict(row) for row in TRAIN]
    rows[7] |= {"text": "something else"} if plan.other else {}
    rows[8] |= {"image": b"no picture"} if plan.unreadable else {}
    if not plan.whole:
        check_output(output, resume=plan.resume)
    model = build_model(TINY, TASKS, rows, "gated", 16, seed=0, dropout=0.2)
    if plan.whole:
        splits = {"train": rows, "validation": VALIDATION}
        again = {"resume": plan.resume, "overwrite": plan.overwrite}
        run(model, splits, strategy, options, output, arguments=plan.options, **again)
        end_processes()
        return
    trainer = Trainer(model, rows, VALIDATION, strategy, options, output)
    history = trainer.fit(plan.resume)
    trainer.save(output.with_suffix(".model"))
    if trainer.accelerator.is_main_process:
        curves = {"losses": trainer.losses, "history": history, "skipped": trainer.skipped_steps}
        output.with_suffix(".json").write_text(json.dumps(curves))
    trainer.close()
    end_processes()


def limit_memory(rows: int) -> None:
    plain = TransferModel.forward

    def forward(self: TransferModel, inputs: Any, size: int) -> Any:
        if self.training and size > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, inputs, size)

    TransferModel.forward = forward  # type: ignore[method-assign]


def import_all() -> None:
    """Import what runs need here, once: forked processes find it there."""
    build_model(TINY, TASKS, TRAIN)
    build_strategy("lp_ft", ["modality_dropout"])
    for name in ("torch.utils.tensorboard", "torchmetrics.functional", "torch.distributed.fsdp"):
        importlib.import_module(name)


def start(output: Path, plan: Plan) -> list[int]:
    """Fork the processes of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(plan.processes):
        child = os.fork()
        if child == 0:
            os.environ |= {"ACCELERATE_USE_CPU": "true", **plan.environment}
            if plan.processes > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": port}
                os.environ |= {"WORLD_SIZE": str(plan.processes), "MASTER_ADDR": "127.0.0.1"}
            told = output.with_suffix(f".{rank}.log").open("wb")
            os.dup2(told.fileno(), 1)
            os.dup2(told.fileno(), 2)
            status = 1
            try:
                train(output, plan)
                status = 0
            except Stopped:
                status = 0
            except BaseException:
                fill_the_disk(resource.RLIM_INFINITY)  # what is told goes into a file, too
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return children


def finish(children: list[int]) -> list[int]:
    """Wait; when one process fails the others are ended, as launchers do.  -> exit statuses."""
    statuses: dict[int, int | None] = dict.fromkeys(children)
    patience = math.inf
    while None in statuses.values():
        for child in [c for c, s in statuses.items() if s is None]:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                statuses[child] = os.waitstatus_to_exitcode(status)
                if statuses[child]:
                    patience = min(patience, time.monotonic() + 1)  # they may have the same to say
            elif time.monotonic() > patience:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [s for s in statuses.values() if s is not None]


def go(output: Path, **plan: Any) -> list[int]:
    return finish(start(output, Plan(**plan)))


def said(output: Path, rank: int = 0) -> str:
    return " ".join(output.with_suffix(f".{rank}.log").read_text().split())


def held(output: Path) -> dict[str, bytes]:
    return {str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*") if p.is_file()}


def result(output: Path) -> tuple[bytes, str, list[dict[str, str]]]:
    """Weights to the last bit, losses and metrics, and `training.csv` but for its speed columns."""
    weights = output.with_suffix(".model") / "model.safetensors"
    with (output / "training.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        line.pop("rows_per_second"), line.pop("memory_mb")
    return weights.read_bytes(), output.with_suffix(".json").read_text(), lines


class Bench:
    """Runs without faults, to compare with, one of each kind."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0
        self.whole: dict[str, Path] = {}

    def new(self) -> Path:
        self.count += 1
        return self.root / f"run-{self.count}"

    def undisturbed(self, **plan: Any) -> Path:
        key = repr(sorted((k, str(v)) for k, v in plan.items()))
        if key not in self.whole:
            output = self.new()
            statuses = go(output, **plan)
            assert not any(statuses), f"the run without a fault failed: {said(output)[-500:]}"
            self.whole[key] = output
        return self.whole[key]

    def goes_on(self, output: Path, **plan: Any) -> str:
        """Resume, and compare with the run without a fault."""
        statuses = go(output, **plan, resume=True)
        assert not any(statuses), f"the resumed run failed: {said(output)[-500:]}"
        assert result(output) == result(self.undisturbed(**plan)), "other weights or curves"
        return "resumed, bit-equal"


# -- the faults: each returns its outcome, or fails an assertion ----------------------------------


def killed(bench: Bench, **fault: Any) -> str:
    kind = {k: v for k, v in fault.items() if k in ("processes", "environment", "options")}
    output = bench.new()
    statuses = go(output, act=kill, **fault)
    assert -signal.SIGKILL in statuses, f"was not killed: {statuses}, {said(output)[-300:]}"
    return bench.goes_on(output, **kind)


def asked_to_stop(bench: Bench, **fault: Any) -> str:
    kind = {k: v for k, v in fault.items() if k in ("processes", "environment", "options")}
    output = bench.new()
    if fault.pop("fresh", False):  # else there would be nothing to encode
        fault["environment"] = {"MMTRANSFER_CACHE": str(output.with_suffix(".cache"))}
    started = time.monotonic()
    statuses = go(output, act=ask_to_stop, **fault)
    assert not any(statuses), f"exit status {statuses}: {said(output)[-300:]}"
    assert time.monotonic() - started < 30
    assert "stopped by SIGTERM" in said(output), said(output)[-300:]
    return "exit 0; " + bench.goes_on(output, **kind)


def disk_full(bench: Bench, processes: int) -> str:
    output = bench.new()
    statuses = go(output, act=fill_the_disk, at=10, processes=processes)
    assert all(statuses), "the run went on without its checkpoint"
    told = said(output)
    assert "the checkpoint of step 12 cannot be written" in told, told[-500:]
    assert "that of step 9 is whole" in told, told[-500:]
    return "clear error, last checkpoint whole; " + bench.goes_on(output, processes=processes)


def log_full(bench: Bench) -> str:
    output = bench.new()

    def fill() -> None:
        fill_the_disk((output / "training.csv").stat().st_size + 20)  # the next line is torn

    statuses = go(output, act=fill, at=10)
    assert all(statuses), "the run went on without its log"
    assert "training.csv cannot be written" in said(output), said(output)[-500:]
    return "clear error; " + bench.goes_on(output)


def full_at_the_end(bench: Bench) -> str:
    output = bench.new()
    statuses = go(
        output, act=fill_the_disk, within=(checkpoint, "replace_directory", 1), whole=True
    )
    assert all(statuses), "the run went on without its model"
    assert "the model cannot be written" in said(output), said(output)[-500:]
    assert not list(output.glob("model*")), "half a model was left"
    assert not any(go(output, resume=True, whole=True)), said(output)[-500:]
    model = Path("model") / "model.safetensors"
    assert (output / model).read_bytes() == (bench.undisturbed(whole=True) / model).read_bytes()
    return "clear error, no half model; resumed, bit-equal"


def all_damaged(bench: Bench) -> str:
    output = bench.new()
    go(output, act=kill, at=14)
    manifests = {path: path.read_bytes() for path in output.glob("checkpoints/*/manifest.json")}
    for path in manifests:
        path.unlink()
    assert all(go(output, resume=True)), "began anew without a word"
    assert "is whole" in said(output), said(output)[-500:]
    for path, content in manifests.items():  # out of a copy, as the error says
        path.write_bytes(content)
    return "stopped, nothing removed; repaired, " + bench.goes_on(output)


def other_data(bench: Bench) -> str:
    output = bench.new()
    go(output, act=kill, at=11)
    before = held(output)
    assert all(go(output, resume=True, other=True)), "went on with other data"
    assert "is of another run (train text: was" in said(output), said(output)[-500:]
    assert held(output) == before
    return "refused, nothing changed; " + bench.goes_on(output)


def refused(bench: Bench, **plan: Any) -> str:
    output = bench.new()
    assert not any(go(output, whole=True)), said(output)[-500:]
    before = held(output)
    assert all(go(output, whole=True, **plan)), "was not refused"
    assert "ValueError" in said(output), said(output)[-500:]
    assert held(output) == before, "the earlier run is not what it was"
    return "refused, the earlier run as it was"


def stopped_before_training(bench: Bench) -> str:
    output = bench.new()
    statuses = go(output, act=ask_to_stop, within=(run_module, "fingerprints", 1), whole=True)
    assert not any(statuses), f"exit status {statuses}: {said(output)[-300:]}"
    assert "stopped by SIGTERM after step 0" in said(output), said(output)[-300:]
    return "exit 0, nothing written"


def finished_resumed(bench: Bench) -> str:
    output, found = bench.new(), []
    for resume in (False, True):
        kind = {"whole": True, "unreadable": True, "options": {"on_error": "missing"}}
        assert not any(go(output, resume=resume, **kind)), said(output)[-500:]
        metrics = json.loads((output / "metrics.json").read_text())
        found.append({n: metrics[n] for n in ("validation", "history", "steps", "unreadable")})
    assert found[0]["unreadable"] == {"train": {"image": 1}}, found[0]["unreadable"]
    assert found[0] == found[1], "other results"
    return "the same results, what was unreadable as well"


def damaged(bench: Bench, damage: Callable[[Path], None]) -> str:
    output = bench.new()
    go(output, act=kill, at=14)
    newest = sorted((output / "checkpoints").glob("step-*"))[-1]
    damage(newest)
    outcome = bench.goes_on(output)
    assert f"{newest.name} is left out" in said(output), said(output)[-500:]
    return f"warned, used the one before; {outcome}"


def flip_a_bit(directory: Path, weights: str = "trained") -> None:
    file = directory / f"{weights}.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def cut_short(directory: Path) -> None:
    os.truncate(directory / "training.pt", 1000)


def lose_the_manifest(directory: Path) -> None:
    (directory / "manifest.json").unlink()


def worker_killed(bench: Bench, **where: Any) -> str:
    output = bench.new()
    fresh = {"MMTRANSFER_CACHE": str(output.with_suffix(".cache"))}  # there is all to encode
    small = {"evaluation_batch_size": 2}  # the one that is killed still has some to do
    options = {"workers": 2, **small}
    statuses = go(output, act=kill_a_worker, options=options, environment=fresh, **where)
    own = {"MMTRANSFER_CACHE": str(bench.root / "small")}  # encoded in batches of that size
    whole = bench.undisturbed(options=small, environment=own)
    assert not any(statuses), said(output)[-500:]
    assert "replaced killed loader workers" in said(output), said(output)[-300:]
    assert result(output) == result(whole), "other weights or curves"
    return "replaced, bit-equal"


def nan_raised(bench: Bench, processes: int) -> str:
    output = bench.new()
    statuses = go(output, poison=5, processes=processes)
    told = said(output)
    assert all(statuses)
    # What a method makes of the loss is first seen in the gradients.
    assert "the gradients of step 5 are not finite, in training rows" in told, told[-500:]
    return "stopped, step and rows named"


def nan_skipped(bench: Bench, processes: int) -> str:
    output = bench.new()
    statuses = go(output, poison=5, processes=processes, options={"on_nan": "skip"})
    assert not any(statuses), said(output)[-500:]
    found = json.loads(output.with_suffix(".json").read_text())
    assert found["skipped"] == 1, found["skipped"]
    assert all(math.isfinite(record["train_loss"]) for record in found["history"])
    return "left out, counted, run finished"


def out_of_memory(bench: Bench) -> str:
    output = bench.new()
    statuses = go(output, memory=5, options={"on_oom": "halve"})
    assert not any(statuses), said(output)[-500:]
    assert "goes on with accumulation 2" in said(output)
    losses = [
        json.loads(o.with_suffix(".json").read_text())["losses"]
        for o in (output, bench.undisturbed(options={"accumulation": 2}))
    ]
    assert losses[0] == losses[1], "other losses than with accumulation 2 from the start"
    return "half the rows, twice the micro-batches, same steps"


def read_only(bench: Bench) -> str:
    output = bench.new()
    output.mkdir()
    output.chmod(0o555)
    statuses = go(output, without_rights=True)
    assert all(statuses)
    assert "cannot be written" in said(output), said(output)[-500:]
    return "refused at once"


def other_count(bench: Bench, before: int, after: int) -> str:
    output = bench.new()
    go(output, act=kill, at=11, processes=before)
    statuses = go(output, processes=after, resume=True)
    assert not any(statuses), said(output)[-500:]
    assert f"processes: was {before}, is {after}" in said(output), said(output)[-500:]
    mine, whole = (
        json.loads(o.with_suffix(".json").read_text())["losses"]
        for o in (output, bench.undisturbed(processes=before))
    )
    assert mine[:9] == whole[:9]
    assert len(mine) == len(whole)
    return "same global batches, inexactness said"


def store_raced(bench: Bench) -> str:
    cache = {"MMTRANSFER_CACHE": str(bench.root / "raced")}
    outputs = [bench.new(), bench.new()]
    runs = [start(output, Plan(environment=cache)) for output in outputs]
    for children, output in zip(runs, outputs, strict=True):
        assert not any(finish(children)), said(output)[-500:]
        assert result(output) == result(bench.undisturbed())
    assert not list((bench.root / "raced" / "features").glob("*.part"))
    return "both finished, bit-equal, nothing left over"


def store_killed(bench: Bench) -> str:
    cache = {"MMTRANSFER_CACHE": str(bench.root / "half")}
    output = bench.new()
    within = (features, "finish_store", 2)
    assert go(output, act=kill, within=within, environment=cache) == [-signal.SIGKILL]
    again = bench.new()
    assert not any(go(again, environment=cache)), said(again)[-500:]
    assert result(again) == result(bench.undisturbed())
    return "half a store is no store: encoded anew, bit-equal"


def faults() -> dict[str, Callable[[Bench], str]]:
    """All faults by name."""
    write, evaluation = (checkpoint, "write_file"), (state_module, "collect")
    found: dict[str, Callable[[Bench], str]] = {}
    for processes, steps, writes in (
        (1, range(1, 17), (1, 2, 5, 9, 14, 20)),
        (2, (1, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16), (1, 2, 6, 11, 17, 21)),
    ):
        for at in steps:
            name = f"kill-{processes} after step {at}"
            found[name] = lambda b, p=processes, a=at: killed(b, at=a, processes=p)
        for number in writes:
            name = f"kill-{processes} within checkpoint file {number}"
            found[name] = lambda b, p=processes, n=number: killed(
                b, within=(*write, n), processes=p
            )
    for at in (5, 12):
        found[f"kill-fsdp after step {at}"] = lambda b, a=at: killed(
            b, at=a, processes=2, environment=FSDP
        )
    found["kill-fsdp within checkpoint file 6"] = lambda b: killed(
        b, within=(*write, 6), processes=2, environment=FSDP
    )
    found["kill-2 one process alone"] = lambda b: killed(b, at=11, rank=1, processes=2)
    found["kill-1 with loader workers"] = lambda b: killed(b, at=11, options={"workers": 2})
    found["kill-1 with accumulation"] = lambda b: killed(b, at=11, options={"accumulation": 2})
    for processes in (1, 2):
        count = {"processes": processes}
        places: dict[str, dict[str, Any]] = {
            "in a step": {"at": 12},
            "in an evaluation": {"within": (*evaluation, 3)},
            "while encoding": {"within": (features, "write_shard", 2), "fresh": True},
        }
        for place, fault in places.items():
            found[f"sigterm-{processes} {place}"] = lambda b, f=fault, c=count: asked_to_stop(
                b, **f, **c
            )
        found[f"disk-full-{processes}"] = lambda b, p=processes: disk_full(b, p)
        found[f"nan-{processes} stop"] = lambda b, p=processes: nan_raised(b, p)
        found[f"nan-{processes} skip"] = lambda b, p=processes: nan_skipped(b, p)
    found["corrupt one bit flipped"] = lambda b: damaged(b, flip_a_bit)
    found["corrupt file cut short"] = lambda b: damaged(b, cut_short)
    found["corrupt no manifest"] = lambda b: damaged(b, lose_the_manifest)
    found["corrupt best weights"] = lambda b: damaged(b, lambda d: flip_a_bit(d, "best"))
    found["corrupt every checkpoint"] = all_damaged
    found["worker killed in training"] = lambda b: worker_killed(b, at=10)
    found["worker killed while encoding"] = lambda b: worker_killed(
        b, within=(features.Extraction, "__call__", 2)
    )
    found["refused resume with other data"] = other_data
    found["refused resume with another seed"] = lambda b: refused(
        b, resume=True, options={"seed": 5}
    )
    found["refused overwrite"] = lambda b: refused(
        b, overwrite=True, options={"batch_size": 2, "accumulation": 4}
    )
    found["finished run resumed"] = finished_resumed
    found["sigterm-1 before training"] = stopped_before_training
    found["disk-full in training.csv"] = log_full
    found["disk-full at the end"] = full_at_the_end
    found["memory out"] = out_of_memory
    found["read-only output"] = read_only
    found["processes 2 to 1"] = lambda b: other_count(b, 2, 1)
    found["processes 1 to 2"] = lambda b: other_count(b, 1, 2)
    found["store killed half-way"] = store_killed
    found["store written by two runs"] = store_raced
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="faults whose name begins so")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--list", action="store_true", help="only print the names")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(faults()))
        return 0
    chosen = {n: f for n, f in faults().items() if n.startswith(arguments.only)}
    if not chosen:
        raise SystemExit(f"no fault begins with {arguments.only!r}: {', '.join(faults())}")
    torch.set_num_threads(1)
    import_all()
    table = Table("fault", "outcome", "seconds", box=None)
    results, survived = {}, 0
    with tempfile.TemporaryDirectory() as root:
        os.environ["MMTRANSFER_CACHE"] = str(Path(root) / "cache")
        bench = Bench(Path(root))
        for name, fault in chosen.items():
            started = time.monotonic()
            try:
                outcome, fine = fault(bench), True
            except AssertionError as error:
                outcome, fine = f"NOT SURVIVED: {error}", False
            seconds = time.monotonic() - started
            survived += fine
            results[name] = {"outcome": outcome, "survived": fine, "seconds": round(seconds, 1)}
            table.add_row(name, outcome, f"{seconds:.1f}")
            print(f"{name}: {outcome}", file=sys.stderr, flush=True)
    Console().print(table)
    print(f"{len(chosen)} faults, {survived} survived")
    arguments.output.mkdir(parents=True, exist_ok=True)
    found = {"versions": versions(), "hardware": hardware(), "faults": results}
    (arguments.output / "faults.json").write_text(json.dumps(found, indent=2))
    return 0 if survived == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
