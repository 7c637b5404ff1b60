"""Metrics count labelled rows only, and come out the same as scikit-learn's."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss
from torch.nn.functional import cross_entropy

from mmtransfer.evaluation.metrics import Collected, compute_metrics
from mmtransfer.tasks.classification import IGNORE, Classification


def test_metrics_equal_scikit_learn_on_the_labelled_rows():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=generator)
    targets = torch.randint(0, 4, (50,), generator=generator)
    targets[::7] = IGNORE
    kept = targets != IGNORE
    found = compute_metrics({"y": Classification("abcd")}, Collected({"y": logits}, {"y": targets}))
    truth, guess = targets[kept], logits[kept].argmax(1)
    assert found["y"]["rows"] == int(kept.sum())
    assert found["y"]["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert found["y"]["f1_macro"] == pytest.approx(f1_score(truth, guess, average="macro"))
    expected = log_loss(truth, logits[kept].double().softmax(1), labels=range(4))
    assert found["y"]["loss"] == pytest.approx(expected, abs=1e-5)


def test_a_task_without_labels_has_no_scores():
    collected = Collected({"y": torch.zeros(3, 2)}, {"y": torch.full((3,), IGNORE)})
    assert compute_metrics({"y": Classification("ab")}, collected) == {"y": {"rows": 0}}


def test_the_loss_is_weighed_like_that_of_training():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 3, generator=generator)
    targets = torch.randint(0, 3, (20,), generator=generator)
    targets[::6] = IGNORE
    task = Classification("abc", class_weights=[0.1, 1.0, 4.0])
    found = compute_metrics({"y": task}, Collected({"y": logits}, {"y": targets}))
    expected = cross_entropy(logits, targets, torch.tensor([0.1, 1.0, 4.0]), ignore_index=IGNORE)
    assert found["y"]["loss"] == pytest.approx(float(expected), abs=1e-6)
