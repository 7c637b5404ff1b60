"""The launch configurations start what they say."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from mmtransfer.cli import main

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs" / "accelerate"
SEVERAL = {  # (machines, processes on each), the arguments that a user has to add
    "ddp_8gpu": ((1, 8), []),
    "fsdp2_8gpu": ((1, 8), []),
    "two_machines": ((2, 8), ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"]),
    "cpu": ((1, 2), []),
}


def rates_of(output: Path) -> list[float]:
    """The rate of every step."""
    with (output / "training.csv").open(newline="") as file:
        return [float(line["rate"]) for line in csv.DictReader(file) if line["rate"]]


def launch_arguments(name: str, added: list[str]):
    given = ["--config_file", str(CONFIGS / f"{name}.yaml"), *added, "script.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    return arguments


def test_every_configuration_is_tested():
    assert {path.stem for path in CONFIGS.iterdir()} == {*SEVERAL, "single_gpu"}


@pytest.mark.parametrize("name", ["single_gpu", *SEVERAL])
def test_keys_are_known_and_the_first_lines_say_how_to_launch(name):
    path = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(path))  # refuses unknown keys, but not inside a section
    options = vars(launch_command_parser().parse_args(["script.py"]))
    assert set(config.fsdp_config) <= options.keys()
    comment = "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))
    assert f"accelerate launch --config_file recipes/configs/accelerate/{name}.yaml" in comment


@pytest.mark.parametrize("name", SEVERAL)
def test_as_many_processes_are_started_as_said(name):
    (machines, processes), added = SEVERAL[name]
    arguments = launch_arguments(name, added)
    prepare_multi_gpu_env(arguments)
    assert arguments.multi_gpu or arguments.use_fsdp  # else only one process is started
    assert not arguments.cpu
    assert int(arguments.nproc_per_node) == processes
    assert int(getattr(arguments, "nnodes", 1)) == machines
    if machines > 1:
        assert (arguments.node_rank, arguments.rdzv_endpoint) == (1, "10.0.0.1:29500")


def test_one_gpu_is_one_plain_process():
    arguments = launch_arguments("single_gpu", [])
    command, environment = prepare_simple_launcher_cmd_env(arguments)
    assert not arguments.multi_gpu
    assert not arguments.use_fsdp
    assert command == [sys.executable, "script.py"]
    assert environment["ACCELERATE_USE_CPU"] == "False"


def test_a_machine_without_a_rank_is_refused():
    with pytest.raises(TypeError):
        prepare_multi_gpu_env(launch_arguments("two_machines", ["--main_process_ip", "10.0.0.1"]))


def test_fsdp_shards_the_model_as_one_unit(monkeypatch):
    arguments = launch_arguments("fsdp2_8gpu", [])
    for name, value in prepare_multi_gpu_env(arguments).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.auto_wrap_policy is None
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert not plugin.cpu_ram_efficient_loading
    assert type(plugin.cpu_offload).__name__ == "OffloadPolicy"  # the one that does nothing


@pytest.mark.slow
def test_the_cpu_configuration_trains_one_model_on_two_processes(cpu_run, launched, tmp_path):
    record = json.loads((cpu_run / "run.json").read_text())
    assert [machine["devices"] for machine in record["machines"]] == [["cpu", "cpu"]]
    assert record["batch"]["rows_per_process"] == 5
    done = launched(sys.executable, output=tmp_path / "one", ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        json.loads((path / "metrics.json").read_text()) for path in (tmp_path / "one", cpu_run)
    )
    assert (one["processes"], two["processes"]) == (1, 2)
    losses = [[epoch["train_loss"] for epoch in metrics["history"]] for metrics in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    rates = [rates_of(path) for path in (tmp_path / "one", cpu_run)]
    assert rates[0] == rates[1]  # neither scaled nor run through faster
    assert len(rates[0]) == 6
    assert rates[0][-1] < 0.3 * max(rates[0])


@pytest.mark.slow
def test_sigterm_to_the_launcher_leaves_a_checkpoint_to_go_on_from(launched, tmp_path):
    """The launcher's exit status is its own; its processes save and leave within its patience."""
    output = tmp_path / "out"
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--config_file")
    how = {"output": output, "given": ("--epochs", "150"), "ACCELERATE_USE_CPU": "true"}
    config = str(CONFIGS / "cpu.yaml")
    log = output / "training.csv"
    started = launched(
        *launcher,
        config,
        stop_when=lambda: log.is_file() and len(log.read_text().splitlines()) > 1,
        **how,
    )
    assert "stopped by SIGTERM after step" in started.stderr
    manifests = list((output / "checkpoints").glob("step-*/manifest.json"))
    assert [json.loads(path.read_text())["processes"] for path in manifests] == [2]
    assert not (output / "metrics.json").exists()
    how["given"] += ("--resume",)
    done = launched(*launcher, config, **how)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((output / "metrics.json").read_text())["steps"] == 450
    assert len(rates_of(output)) == 450


@pytest.mark.slow
def test_a_run_of_two_processes_is_repeated_on_two(cpu_run, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)  # the record knows
    main(["rerun", str(cpu_run), "--output", str(tmp_path / "again")])
    assert "tensors bit-equal" in capsys.readouterr().out
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the processes find each other")
def test_processes_that_would_each_train_alone_are_refused(launched, tmp_path):
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--config_file")
    config = str(CONFIGS / "cpu.yaml")
    done = launched(*launcher, config, output=tmp_path / "out", ACCELERATE_USE_CPU="false")
    assert done.returncode != 0
    assert "2 processes were started, but each would train alone" in done.stderr
    assert "set ACCELERATE_USE_CPU=true" in done.stderr
    assert not (tmp_path / "out").exists()
