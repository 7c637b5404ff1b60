"""Metrics equal those of scikit-learn, also where a class has no rows."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn import metrics

from mmtransfer.evaluation.classification import (
    WITH_INTERVALS,
    classification_metrics,
    labelled_rows,
    metric_intervals,
    per_class,
    resampled,
)


def test_metrics_equal_scikit_learn(scores):
    logits, targets = scores
    found, guess = classification_metrics(logits, targets), logits.argmax(1)
    assert 3 in guess
    expected = {
        "accuracy": metrics.accuracy_score(targets, guess),
        "balanced_accuracy": metrics.recall_score(
            targets, guess, labels=[0, 1, 2], average="macro"
        ),
        "mcc": metrics.matthews_corrcoef(targets, guess),
    }
    for average in ("macro", "micro", "weighted"):
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            targets, guess, average=average, zero_division=0
        )
        expected |= {
            f"precision_{average}": precision,
            f"recall_{average}": recall,
            f"f1_{average}": f1,
        }
    shares = logits.double().softmax(1)
    truth = torch.nn.functional.one_hot(targets, 5)
    expected["auroc"] = metrics.roc_auc_score(truth[:, :3], shares[:, :3], average="macro")
    expected["average_precision"] = metrics.average_precision_score(truth[:, :3], shares[:, :3])
    expected["top_3"] = metrics.top_k_accuracy_score(targets, logits, k=3, labels=range(5))
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_table_of_classes_says_nothing_of_a_class_without_rows(scores):
    logits, targets = scores
    table, guess = per_class(logits, targets, list("abcde")), logits.argmax(1)
    expected = metrics.precision_recall_fscore_support(
        targets, guess, labels=range(5), zero_division=0
    )
    for c, entry in enumerate(table):
        assert (entry["class"], entry["rows"]) == ("abcde"[c], int((targets == c).sum()))
        numbers = [entry[name] for name in ("precision", "recall", "f1")]
        if c < 3:
            assert numbers == pytest.approx([values[c] for values in expected[:3]], abs=1e-6)
            share = logits.double().softmax(1)[:, c]
            assert entry["auroc"] == pytest.approx(metrics.roc_auc_score(targets == c, share))
        else:
            assert {*numbers, entry["auroc"], entry["average_precision"]} == {None}


def test_a_single_class_and_no_rows_give_no_nan():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.5]])
    alone = classification_metrics(logits, torch.tensor([0, 0]))
    assert all(math.isfinite(value) for value in alone.values())
    assert "auroc" not in alone
    assert alone["balanced_accuracy"] == 0.5
    nobody = torch.zeros(0, dtype=torch.int64)
    assert classification_metrics(logits[:0], nobody) == {}
    assert [entry["rows"] for entry in per_class(logits[:0], nobody, "abc")] == [0, 0, 0]
    assert metric_intervals(logits[:0], nobody) == {}


def test_what_is_resampled_are_the_same_metrics(scores):
    logits, targets = scores
    samples = torch.randint(300, (4, 300), generator=torch.Generator().manual_seed(0))
    samples[0] = torch.arange(300)
    found = resampled(logits, targets)(samples)
    for rows, values in zip(samples, found, strict=True):
        expected = classification_metrics(logits[rows], targets[rows])
        assert values.tolist() == pytest.approx([expected[n] for n in WITH_INTERVALS], abs=1e-6)
    for name, interval in metric_intervals(logits, targets, resamples=200).items():
        assert interval.low < interval.value < interval.high, name


def test_unlabelled_rows_are_left_out_and_bad_logits_named():
    logits, targets = torch.eye(3), torch.tensor([0, -100, 2])
    kept = labelled_rows(logits, targets, targets != -100)
    assert torch.equal(kept[0], logits[[0, 2]])
    assert kept[1].tolist() == [0, 2]
    logits[1, 1] = float("nan")
    with pytest.raises(ValueError, match="1 of 3 rows .* first row 1"):
        labelled_rows(logits, targets, targets != -100)
    with pytest.raises(ValueError, match="2 names of classes for 3 outputs"):
        per_class(torch.eye(3), targets[[0]], "ab")
