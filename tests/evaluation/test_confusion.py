"""Confusions against scikit-learn, mistakes against a plain sort."""

from __future__ import annotations

import torch
from sklearn.metrics import confusion_matrix as reference

from mmtransfer.evaluation.confusion import confused_pairs, confusion_matrix, worst_mistakes


def test_the_matrix_is_that_of_scikit_learn_and_pairs_are_its_largest_errors(scores) -> None:
    logits, targets = scores
    matrix = confusion_matrix(logits, targets)
    assert matrix.tolist() == reference(targets, logits.argmax(1), labels=range(5)).tolist()
    pairs = confused_pairs(matrix, "abcde")
    assert sum(pair["rows"] for pair in pairs) == int((logits.argmax(1) != targets).sum())
    assert [p["rows"] for p in pairs] == sorted((p["rows"] for p in pairs), reverse=True)
    first = pairs[0]
    t, p = "abcde".index(first["truth"]), "abcde".index(first["predicted"])
    off = matrix.clone().fill_diagonal_(0)
    assert first["rows"] == matrix[t, p] == off.max()
    assert first["share"] == float(matrix[t, p] / matrix[t].sum())
    assert confused_pairs(matrix, "abcde", 2) == pairs[:2]
    assert confusion_matrix(logits[:0], targets[:0]).sum() == 0


def test_the_worst_mistakes_are_the_least_likely_labels(scores) -> None:
    logits, targets = scores
    numbers = torch.arange(300) * 2
    found = worst_mistakes(logits, targets, "abcde", numbers, 10)
    shares = logits.double().softmax(1)
    wrong = [i for i in range(300) if logits[i].argmax() != targets[i]]
    expected = sorted(wrong, key=lambda i: float(shares[i, targets[i]]))[:10]
    assert [mistake["row"] for mistake in found] == [2 * i for i in expected]
    first = expected[0]
    assert found[0] == {
        "row": 2 * first,
        "truth": "abcde"[targets[first]],
        "predicted": "abcde"[logits[first].argmax()],
        "probability": float(shares[first].max()),
        "likelihood": float(shares[first, targets[first]]),
    }
    right = torch.tensor([[2.0, 0.0]])
    assert worst_mistakes(right, torch.tensor([0]), "ab") == []
