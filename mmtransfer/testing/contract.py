"""What the checks of the conformance kit have in common."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmtransfer.registry import Configurable


class ContractError(AssertionError):
    """A part of the contract does not hold; the message says which, in plain words."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)


@contextmanager
def saying(what: str) -> Iterator[None]:
    """An error that a plug-in raises inside becomes a `ContractError` that says where."""
    try:
        yield
    except ContractError as error:
        raise ContractError(f"{what}: {error}") from error
    except Exception as error:
        raise ContractError(f"{what} fails with {type(error).__name__}: {error}") from error


def check_saved_form(part: Configurable) -> None:
    """The class can be found again, and its options are what JSON can hold."""
    require(
        "<locals>" not in type(part).__qualname__,
        f"{type(part).__name__} is defined inside a function, where no saved model finds it: move "
        "it to the top of a module",
    )
    with saying("config()"):
        config = part.config()
    try:
        same = json.loads(json.dumps(config)) is not None
    except TypeError as error:
        raise ContractError(f"config() must be plain values that JSON holds: {error}") from error
    require(same, "config() gave nothing")


def check_registered(module: nn.Module) -> None:
    """No parameter hides in a plain list or dictionary, where it is neither trained nor saved."""
    known = {id(p) for p in module.parameters()}
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            if not isinstance(value, list | tuple | dict):
                continue
            held: list[nn.Parameter] = []
            for item in value.values() if isinstance(value, dict) else value:
                if isinstance(item, nn.Module):
                    held += item.parameters()
                elif isinstance(item, nn.Parameter):
                    held.append(item)
            where = f"{name}.{attribute}" if name else attribute
            require(
                all(id(p) in known for p in held),
                f"{where!r} is a plain {type(value).__name__}: its parameters are neither trained "
                "nor saved (use nn.ModuleList, nn.ModuleDict or nn.ParameterList)",
            )


def same_numbers(found: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding, which may depend on where in memory tensors happen to lie."""
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
