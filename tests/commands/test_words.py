"""Words of a command line: lists and flags without quotes, the nearest of what is misspelt."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from mmtransfer.cli import main
from mmtransfer.commands.words import prepared
from mmtransfer.training.options import TrainingOptions


def look(names: list[str], deep: bool = False, wanted: list[str] | None = None) -> None: ...
def touch(place: str, force: bool = False) -> None: ...


def learn(training: TrainingOptions = TrainingOptions()) -> None: ...  # noqa: B008 - only read


COMMANDS = {"look": look, "store": {"_help": "x", "touch": touch}, "learn": learn}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["look", "a", "b", "--deep"], ["look", '["a", "b"]', "--deep=true"]),
        (["look", "a"], ["look", '["a"]']),
        (["look", "a", "--wanted", "x", "y"], ["look", '["a"]', "--wanted", '["x", "y"]']),
        (["store", "touch", "a"], ["store", "touch", "a"]),
        (["store", "touch", "a", "--force"], ["store", "touch", "a", "--force=true"]),
        (["store", "touch", "--force", "a"], ["store", "touch", "--force=true", "a"]),
        (["store", "touch", "--force", "False", "a"], ["store", "touch", "--force", "False", "a"]),
        (["--help"], ["--help"]),
        ([], []),
    ],
)
def test_lists_and_flags_need_no_quotes(words: list[str], expected: list[str]) -> None:
    assert prepared(COMMANDS, words) == expected


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lok"], "unknown command 'lok'. Did you mean 'look'?"),
        (["store", "toch"], "unknown command 'toch'. Did you mean 'touch'? Valid: touch."),
        (["look", "a", "--dep"], "unknown option --dep. Did you mean '--deep'?"),
        (["store", "touch", "a", "--froce=true"], "Did you mean '--force'?"),
        (["look", "--names", "a"], "--names is no option here, it comes without a name: NAMES"),
        (["learn", "--training.batchsize", "3"], "Did you mean 'batch_size'?"),
        (["learn", "--training.batchsize=3"], "--training has no option 'batchsize'"),
    ],
)
def test_misspelt_names_are_refused_with_the_nearest(words: list[str], told: str) -> None:
    with pytest.raises(ValueError, match="unknown|no option") as refused:
        prepared(COMMANDS, words)
    assert told in str(refused.value)


def test_a_command_by_itself_has_names_for_all() -> None:
    assert prepared(touch, ["--place", "a", "--force"]) == ["--place", "a", "--force=true"]


def test_a_misspelt_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["reprot"])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "unknown command 'reprot'. Did you mean 'report'?" in err


def test_the_shell_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script in a bash of its own, as if these lines were typed."""
    pytest.importorskip("shtab")
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    with pytest.raises(SystemExit) as ended:
        main(["--print_completion", "shtab-bash"])
    assert ended.value.code == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    typed = {
        "mmtransfer rep": {"report"},
        "mmtransfer report --spl": {"--split"},
        "mmtransfer train --strat": {"--strategy", "--strategy_options"},
        "mmtransfer choose --ver": {"--verify"},
        "mmtransfer cache ve": {"verify"},
    }
    for line, expected in typed.items():
        words = line.split()
        ask = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
        ask += "_shtab_mmtransfer; printf '%s\\n' \"${COMPREPLY[@]}\""
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        assert expected <= set(done.stdout.split()), (line, done)
        assert all(word.startswith(words[-1]) for word in done.stdout.split())


@pytest.mark.parametrize(
    "family", ["encoders", "fusions", "tasks", "strategies", "methods", "scores"]
)
def test_lists_come_as_json(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    from mmtransfer import registry

    main([family, "--json"])
    assert json.loads(capsys.readouterr().out) == getattr(registry, family).describe()


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    assert "train" in capsys.readouterr().out
    main(["--version"])
    assert capsys.readouterr().out.startswith("mmtransfer ")


def test_a_directory_is_no_file_of_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test.parquet").touch()
    with pytest.raises(SystemExit):
        main(["predict", "model", str(tmp_path)])
    assert "name one of its parquet files (test.parquet)" in capsys.readouterr().err
