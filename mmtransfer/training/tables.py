"""Gradients of large embedding tables over the micro-batches of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn


def embedding_tables(model: nn.Module) -> list[nn.Embedding]:
    """The tables that train and whose gradients may be sparse for a while."""
    return [
        module
        for module in model.modules()
        if type(module) is nn.Embedding
        and module.weight.requires_grad
        and not (module.sparse or module.scale_grad_by_freq)
    ]


@contextlib.contextmanager
def sparse_gradients(tables: Sequence[nn.Embedding], parts: int) -> Iterator[None]:
    """Within, of tables whose gradient has few rows that are not zero, only these rows are held.

    A dense gradient is as large as its table, and each of the `parts` backward passes of a step
    would make one and add it to another.  Afterwards gradients are dense, as everywhere.
    """

    def choose(table: nn.Module, arguments: tuple[Any, ...]) -> None:
        # Sparse gradients are added by putting one behind the other.
        table.sparse = 2 * parts * arguments[0].numel() <= table.num_embeddings  # type: ignore

    hooks = [table.register_forward_pre_hook(choose) for table in tables]
    try:
        yield
    finally:
        for hook, table in zip(hooks, tables, strict=True):
            hook.remove()
            table.sparse = False
            gradient = table.weight.grad
            if gradient is not None and gradient.is_sparse:
                table.weight.grad = gradient.to_dense()
