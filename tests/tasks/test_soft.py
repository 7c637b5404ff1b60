"""Soft labels: shares of classes, and a loss that is the mixture of the losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mmtransfer.tasks.classification import IGNORE, Classification
from mmtransfer.tasks.soft import Soft, mix_labels

ABC = ["a", "b", "c"]


def test_shares_go_to_their_classes():
    task = Classification(ABC)
    found = task.encode([Soft((("a", 0.7), ("c", 0.3))), "b", None, Soft((("b", 0.4), ("b", 0.6)))])
    expected = [[0.7, 0, 0.3], [0, 1, 0], [IGNORE] * 3, [0, 1, 0]]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert task.labelled(found).tolist() == [True, True, False, True]


def test_without_soft_labels_targets_are_class_numbers():
    codes = Classification(ABC).encode(["a", None, "c"])
    assert codes.dtype == torch.int64
    assert codes.tolist() == [0, IGNORE, 2]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_both_labels_by_their_shares(smoothing):
    torch.manual_seed(0)
    task = Classification(ABC, label_smoothing=smoothing)
    logits = torch.randn(4, 3, requires_grad=True)
    shares = [0.2, 0.5, 0.9, 1.0]
    soft = task.encode([mix_labels("a", "c", share) for share in shares])
    share = torch.tensor(shares)
    first, second = (task.loss(logits, task.encode([label] * 4)) for label in ("a", "c"))
    expected = share * first + (1 - share) * second
    torch.testing.assert_close(task.loss(logits, soft), expected)
    torch.testing.assert_close(
        torch.autograd.grad(task.loss(logits, soft).sum(), logits, retain_graph=True),
        torch.autograd.grad(expected.sum(), logits),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hard_rows_of_a_soft_batch_have_their_usual_loss(smoothing):
    task = Classification(ABC, label_smoothing=smoothing)
    logits = torch.randn(3, 3, requires_grad=True)
    hard = task.loss(logits, task.encode(["b", None, "a"]))
    soft = task.loss(logits, task.encode(["b", None, Soft((("a", 1.0),))]))
    torch.testing.assert_close(soft, hard)
    assert soft[1] == 0
    (gradient,) = torch.autograd.grad(soft.sum(), logits)
    assert not gradient[1].any()
    assert gradient[[0, 2]].abs().min() > 0


def test_soft_labels_are_never_smoothed_in_evaluation():
    task = Classification(ABC, label_smoothing=0.3)
    logits = torch.randn(1, 3)
    with torch.no_grad():
        found = task.loss(logits, task.encode([mix_labels("a", "b", 0.5)]))
    expected = -F.log_softmax(logits, 1)[:, :2].mean(1)
    torch.testing.assert_close(found, expected)


def test_mixtures_of_mixtures_add_up():
    half = mix_labels("a", "b", 0.5)
    quarter = mix_labels(half, "c", 0.5)
    assert dict(quarter.parts) == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5})


@pytest.mark.parametrize("parts", [(), (("a", 0.5),), (("a", 1.5), ("b", -0.5))])
def test_shares_that_are_none_are_refused(parts):
    with pytest.raises(ValueError, match="add up to 1"):
        Soft(parts)


def test_a_label_outside_the_classes_is_named_inside_a_mixture_too():
    with pytest.raises(ValueError, match="label 'd' is none of the 3 classes"):
        Classification(ABC).encode([mix_labels("a", "d", 0.5)])


def test_a_mixture_with_an_unlabelled_part_is_unlabelled():
    task = Classification(ABC)
    found = task.encode([mix_labels("a", math.nan, 0.5)])
    assert not task.labelled(found).any()
