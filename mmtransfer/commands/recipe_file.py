"""YAML files of trainings: from a path among the words of a command line to its configuration."""

from __future__ import annotations

import json
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import yaml

from mmtransfer.registry import nearest

COLUMNS = ("image", "text", "audio")  # as recipes/retail_product.py names its encoders
ELSEWHERE = ("seeds",)  # of that recipe's story, which has data of its own


def recipe_words(words: list[str]) -> list[str]:
    """`train FILE.yaml ...` -> `train --config=CONFIGURATION ...`; options after it override it.

    Raises `FileNotFoundError` without such a file, `ValueError` for one that is no recipe.
    """
    if len(words) < 2 or words[1].startswith("-"):
        return words
    path = Path(words[1])
    text = yaml.safe_dump(read_recipe(path), sort_keys=False)
    return [words[0], f"--config={text}", *words[2:]]


def read_recipe(path: Path) -> dict[str, Any]:
    """The configuration of a file, with all encoders by column.

    Takes what `mmtransfer train` writes as config.yaml, and what `recipes/retail_product.py` reads
    and writes.
    """
    from mmtransfer.commands.train import train_command
    from mmtransfer.training.options import TrainingOptions

    if not path.is_file():
        raise FileNotFoundError(f"no such recipe: {path}")
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no recipe: expected options by name, found {found!r:.80}")
    known = [*signature(train_command).parameters, *COLUMNS, *ELSEWHERE]
    for name in found:
        if name not in known:
            raise ValueError(f"{path}: {foreign(path, str(name), known)}")
    training = [option.name for option in fields(TrainingOptions)]
    for name in found.get("training") or {}:
        if name not in training:
            raise ValueError(f"{path}: training has no option {name!r}.{nearest(name, training)}")
    columns = {name: found.pop(name, None) for name in COLUMNS}
    encoders = {name: spec for name, spec in columns.items() if spec}
    if encoders:
        found["encoders"] = encoders | (found.get("encoders") or {})
    for name in ELSEWHERE:
        found.pop(name, None)
    return {"output": str(Path("runs") / path.stem)} | found


def foreign(path: Path, name: str, known: list[str]) -> str:
    """What an unknown option means: the file may be the configuration of another script's run."""
    record = path.parent / "run.json"
    if path.name == "config.yaml" and record.is_file():
        script = json.loads(record.read_text()).get("script")
        if script:
            return (
                f"{name!r} is an option of {Path(script).name}, whose run this was: "
                f"python {script} --config {path}"
            )
    return f"a recipe has no option {name!r}.{nearest(name, known)}"
