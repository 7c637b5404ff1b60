"""The pages about the command line and the report: what they name is what there is."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest
import yaml

from mmtransfer import doctor
from mmtransfer.cli import main
from mmtransfer.commands import report
from mmtransfer.commands.recipe_file import read_recipe
from mmtransfer.report import collect, inputs, page

DOCS = Path(__file__).parents[1] / "docs"
COMMAND_LINE = (DOCS / "command_line.md").read_text()
REPORT = (DOCS / "report.md").read_text()


def test_the_table_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    there = set(re.findall(r"^    ([a-z]+)  ", capsys.readouterr().out, re.M))
    table = COMMAND_LINE.split("\n\n")[1]
    listing, *lines = [line for line in table.splitlines() if "`" in line]
    named = {name.removeprefix("mmtransfer ") for name in re.findall(r"`([^`]*)`", listing)}
    named |= {re.findall(r"`mmtransfer (\w+)", line)[0] for line in lines}
    assert named == there
    for link in re.findall(r"`docs/(\w+\.md)`", COMMAND_LINE + REPORT):
        assert (DOCS / link).is_file(), link


def test_the_recipe_shown_is_read(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", COMMAND_LINE, re.S)
    path = tmp_path / "retail.yaml"
    path.write_text(shown)
    found = read_recipe(path)
    assert found == {"output": "runs/retail"} | yaml.safe_load(shown)
    (command,) = re.findall(r"^    (mmtransfer train .*)", COMMAND_LINE, re.M)
    words = shlex.split(command.replace("retail.yaml", str(path)))
    with pytest.raises(SystemExit) as ended:
        main([*words[1:], "--print_config"])
    assert ended.value.code == 0


def test_the_report_page_has_the_options_and_numbers_of_the_code() -> None:
    options = {word.strip("-") for word in re.findall(r"--[a-z_]+", REPORT)}
    assert options <= set(inspect.signature(report.report).parameters)
    assert f"at most {inputs.SIDE} pixels" in REPORT
    assert f"at most {inputs.SECONDS:.0f} s" in REPORT
    assert f"texts {inputs.CHARACTERS} characters" in REPORT
    for name in re.findall(r"`(\w+\.(?:json|yaml))`", REPORT):
        source = inspect.getsource(collect) + inspect.getsource(page)
        assert name in source, name
    timeout = inspect.signature(doctor.examine).parameters["timeout"].default
    assert f"`--timeout` seconds, {timeout:.0f}" in COMMAND_LINE
