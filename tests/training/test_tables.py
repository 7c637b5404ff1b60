"""Sparse gradients of embedding tables: the same gradients, held for a while by their rows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmtransfer.methods.base import Method
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.tables import embedding_tables, sparse_gradients
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, Strategy

PARTS = [torch.tensor([[1, 2, 2]]), torch.tensor([[0, 7, 2]])]


def descend(table: nn.Embedding, parts: list[torch.Tensor]) -> None:
    for part in parts:
        (table(part).square().sum() / len(parts)).backward()


@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize(("rows", "sparse"), [(12, True), (11, False)])
def test_gradients_are_those_of_a_plain_table(rows, sparse, padding):
    table = nn.Embedding(rows, 4, padding_idx=padding)
    nn.init.normal_(table.weight)
    plain = copy.deepcopy(table)
    with sparse_gradients([table], len(PARTS)):
        descend(table, PARTS)
        assert table.weight.grad.is_sparse == sparse
    descend(plain, PARTS)
    assert not table.weight.grad.is_sparse
    assert not table.sparse
    torch.testing.assert_close(table.weight.grad, plain.weight.grad)
    table.zero_grad()
    descend(table, PARTS)
    assert not table.weight.grad.is_sparse  # what is outside knows nothing of it


def test_gradients_from_elsewhere_are_added():
    table = nn.Embedding(100, 4)
    plain = copy.deepcopy(table)
    with sparse_gradients([table], 2):
        descend(table, PARTS)
        table.weight.square().sum().backward()
        descend(table, PARTS)
    for _ in range(2):
        descend(plain, PARTS)
    plain.weight.square().sum().backward()
    torch.testing.assert_close(table.weight.grad, plain.weight.grad)


def test_tables_that_do_not_train_or_count_rows_are_left_alone():
    frozen, scaled, tuned = (nn.Embedding(9, 2, scale_grad_by_freq=k == 1) for k in range(3))
    frozen.requires_grad_(False)
    assert embedding_tables(nn.ModuleList([frozen, scaled, tuned])) == [tuned]


class Look(Method):
    """Notes how the gradient of the largest table looks when a hook may see it."""

    def __init__(self) -> None:
        self.found: list[bool] = []

    def on_gradients(self, model, again):
        table = max(embedding_tables(model), key=lambda t: t.num_embeddings)
        self.found.append(table.weight.grad.is_sparse)


class LookAtLoss(Look):
    def on_loss(self, loss, model, batch, outputs):
        table = max(embedding_tables(model), key=lambda t: t.num_embeddings)
        (gradient,) = torch.autograd.grad(loss, table.weight, retain_graph=True)
        self.found.append(gradient.is_sparse)
        return loss


def trained(products, method):
    options = TrainingOptions(batch_size=2, accumulation=2, progress=False)
    rows = [row for row in products["train"] if row["text"] and row["product"]]
    model = build_model({"text": "tiny-bert"}, {"product": "classification"}, rows)
    trainer = Trainer(model, rows, None, Strategy([Phase(1, 1e-2, 1e-3)], [method]), options)
    trainer.fit()
    return trainer.losses


def test_training_in_micro_batches_is_the_same_with_and_without(products, monkeypatch):
    method = Look()
    losses = trained(products, method)
    monkeypatch.setattr("mmtransfer.training.optimisation.embedding_tables", lambda model: [])
    plain = trained(products, Look())
    assert method.found
    assert not any(method.found)
    assert losses == pytest.approx(plain, abs=1e-4)


def test_micro_batches_really_have_sparse_gradients(products, monkeypatch):
    seen = []
    plain = torch.Tensor.to_dense

    def to_dense(tensor):
        seen.append(tuple(tensor.shape))
        return plain(tensor)

    monkeypatch.setattr(torch.Tensor, "to_dense", to_dense)
    trained(products, Look())
    vocabulary = 259
    assert len(seen) > 15
    assert {rows for rows, _ in seen} == {vocabulary}


def test_a_method_that_acts_on_the_loss_sees_dense_gradients(products):
    method = LookAtLoss()
    trained(products, method)
    assert method.found
    assert not any(method.found)
