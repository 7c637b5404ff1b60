"""The page about plug-ins: its example runs as printed, and each of the three ways leads to it."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "plugins.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.S)


def block(language: str) -> str:
    (found,) = [text for kind, text in BLOCKS if kind == language]
    return found


def python(*arguments: str, path: Path, cwd: Path) -> str:
    """What a new interpreter prints that finds modules and packages in `path`."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": f"{path}:{ROOT}", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def wheel(directory: Path, module: str, settings: str) -> Path:
    """A wheel of one module, with the metadata that a build back-end makes of its settings."""
    project = tomllib.loads(settings)["project"]
    name, version = project["name"], project["version"]
    groups = project["entry-points"].items()
    points = "".join(
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in members.items())
        for group, members in groups
    )
    needs = "".join(f"Requires-Dist: {other}\n" for other in project["dependencies"])
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": module,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": points,
    }
    records = []
    path = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
            records.append(f"{file},sha256={digest.decode()},{len(text.encode())}\n")
        archive.writestr(f"{info}/RECORD", "".join(records) + f"{info}/RECORD,,\n")
    return path


def test_the_example_is_short():
    assert len([line for line in block("python").splitlines() if line.strip()]) <= 30


@pytest.mark.slow
def test_the_example_runs_and_its_import_path_builds_it(tmp_path):
    (tmp_path / "clicks.py").write_text(block("python"))
    printed = python("clicks.py", path=tmp_path, cwd=tmp_path)
    assert float(printed.splitlines()[-1]) > 0.9  # the pages that were looked at tell it
    (specification,) = set(re.findall(r"`(clicks:Clicks\?[^`]*)`", PAGE))
    script = (
        "from mmtransfer import build_encoder\n"
        f"print(build_encoder({specification!r}).pages, build_encoder('clicks:Clicks').pages)"
    )
    assert python("-c", script, path=tmp_path, cwd=tmp_path) == "500 100\n"


@pytest.mark.slow
def test_an_installed_package_brings_its_encoder(tmp_path):
    site = tmp_path / "site"
    built = wheel(tmp_path, block("python"), block("toml"))
    pip = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site)]
    python(*pip, str(built), path=site, cwd=tmp_path)
    listed = python("-m", "mmtransfer.cli", "encoders", path=site, cwd=tmp_path)
    assert re.search(r"^clicks +Pages that a visitor looked at", listed, re.MULTILINE)
    script = (
        "from pathlib import Path\n"
        "from mmtransfer import Encoder, build_encoder\n"
        "encoder = build_encoder('clicks?pages=7')\n"
        "encoder.save(Path('saved'))\n"
        "twin = Encoder.load(Path('saved'))\n"
        "twin.load_state_dict(encoder.state_dict())\n"
        "print(type(twin).__module__, twin.pages, twin.fingerprint() == encoder.fingerprint())"
    )
    assert python("-c", script, path=site, cwd=tmp_path) == "clicks 7 True\n"
