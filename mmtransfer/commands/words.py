"""The words of a command line: conveniences that jsonargparse lacks, and errors that suggest."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from json import dumps
from typing import Any

from mmtransfer.registry import nearest

#: commands by name, each a function or such a mapping with its "_help"; or one function alone
Components = Callable[..., Any] | Mapping[str, Any]
OWN = ("config", "print_config", "print_completion", "help")  # options that jsonargparse adds
SAID = ("true", "false", "yes", "no", "null")  # what a bool may be given as


def prepared(components: Components, words: list[str]) -> list[str]:
    """The words as jsonargparse understands them.

    Raises `ValueError` for an unknown command or option, with the nearest one.
    """
    check_words(components, words)
    words = leading_list(components, words)
    return bare_lists(components, bare_flags(components, words))


def check_words(components: Components, words: list[str]) -> None:
    """Raise `ValueError` for an unknown command or option, with the nearest one."""
    rest = list(words)
    unnamed = isinstance(components, Mapping)  # what one of several commands needs has no name
    while isinstance(components, Mapping):
        if not rest or rest[0].startswith("-"):
            return  # jsonargparse lists the commands
        name, names = rest.pop(0), [name for name in components if name != "_help"]
        if name not in names:
            raise ValueError(f"unknown command {name!r}.{nearest(name, names)}")
        components = components[name]
    parameters = inspect.signature(components).parameters
    bare = [name for name, p in parameters.items() if unnamed and p.default is p.empty]
    options = [*(name for name in parameters if name not in bare), *OWN]
    for word in rest:
        name, _, part = word[2:].split("=")[0].rstrip("+").partition(".")
        if not word.startswith("--") or not name:
            continue
        if name in bare:
            asked = " ".join(map(str.upper, bare))
            raise ValueError(f"--{name} is no option here, it comes without a name: {asked}")
        if name not in options:
            valid = [f"--{option}" for option in options]
            raise ValueError(f"unknown option --{name}.{nearest(f'--{name}', valid)}")
        default = parameters[name].default if name in parameters else None
        if part and is_dataclass(default):
            known = [field.name for field in fields(default)]
            if part.split(".")[0] not in known:
                raise ValueError(f"--{name} has no option {part!r}.{nearest(part, known)}")


def leading_list(components: Components, words: list[str]) -> list[str]:
    """Let `report A B` mean `report '["A", "B"]'`, where the first parameter is a list."""
    if not isinstance(components, Mapping) or not words or words[0] not in components:
        return words
    function = components[words[0]]
    if isinstance(function, Mapping):
        return words
    first = next(iter(inspect.signature(function).parameters.values()), None)
    if first is None or first.default is not first.empty:
        return words
    end = next((k for k, word in enumerate(words) if word.startswith("-")), len(words))
    if not str(first.annotation).startswith("list[str]") or end < 2:
        return words
    return [words[0], dumps(words[1:end]), *words[end:]]


def bare_flags(components: Components, words: list[str]) -> list[str]:
    """Let `--overwrite` alone mean `--overwrite true`, for every option that is a bool.

    Alone is before anything but a word for yes, no or nothing: `--json MODEL DATA` is a flag, too.
    """
    flags = _options(components, "bool")
    following = [*words[1:], "--"]
    return [
        f"{word}=true" if word in flags and after.lower() not in SAID else word
        for word, after in zip(words, following, strict=False)
    ]


def bare_lists(components: Components, words: list[str]) -> list[str]:
    """Let `--encoders a b` mean `--encoders '["a", "b"]'`, for every option that is a list."""
    lists = _options(components, "list[str]")
    found: list[str] = []
    words = list(words)
    while words:
        word = words.pop(0)
        found.append(word)
        values: list[str] = []
        while word in lists and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        if (len(values) == 1 and values[0][:1] in ("[", "{")) or values == ["null"]:
            found += values
        elif values:
            found.append(dumps(values))
    return found


def _options(components: Components, kind: str) -> set[str]:
    """Options of all functions whose type begins so."""
    return {
        f"--{name}"
        for function in _functions(components)
        for name, parameter in inspect.signature(function).parameters.items()
        if str(parameter.annotation).startswith(kind)
    }


def _functions(components: Components) -> list[Callable[..., Any]]:
    if isinstance(components, Mapping):
        parts = [part for name, part in components.items() if name != "_help"]
        return [function for part in parts for function in _functions(part)]
    return [components]
