"""Strategies in YAML files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ENDINGS = (".yaml", ".yml")


class _Loader(yaml.SafeLoader):
    """As YAML 1.2: 1e-3 is a number, too."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"),
    list("-+.0123456789"),
)


def is_file(spec: str) -> bool:
    """Whether a strategy is given as a file and not by name."""
    return spec.endswith(ENDINGS)


def read_strategy(path: str | Path) -> dict[str, Any]:
    """The mapping in a file.  Raises `ValueError` if there is something else."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such strategy file: {path}")
    try:
        found = yaml.load(path.read_text(), _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no mapping, found {type(found).__name__}")
    return found
