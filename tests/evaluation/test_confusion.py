"""Confusions against scikit-learn, mistakes against a plain sort."""

from __future__ import annotations

import torch
from sklearn.metrics import confusion_matrix as reference

from mmtransfer.evaluation.confusion import confused_pairs, confusion_matrix, worst_mistakes


def test_the_matrix_is_that_of_scikit_learn_and_pairs_are_its_largest_errors(scores) -> None:
    logits, targets = scores
    matrix = confusion_matrix(logits, targets)
    assert matrix.tolist() == reference(targets, logits.argmax(1), labels=range(5)).tolist()
    pairs = confused_pairs(logits, targets, "abcde")
    assert sum(pair["rows"] for pair in pairs) == int((logits.argmax(1) != targets).sum())
    assert [p["rows"] for p in pairs] == sorted((p["rows"] for p in pairs), reverse=True)
    first = pairs[0]
    t, p = "abcde".index(first["truth"]), "abcde".index(first["predicted"])
    off = matrix.clone().fill_diagonal_(0)
    assert first["rows"] == matrix[t, p] == off.max()
    assert first["share"] == float(matrix[t, p] / matrix[t].sum())
    assert confused_pairs(logits, targets, "abcde", count=2) == pairs[:2]
    assert confusion_matrix(logits[:0], targets[:0]).sum() == 0


def test_pairs_keep_the_rows_where_the_model_was_surest(scores) -> None:
    logits, targets = scores
    numbers = torch.arange(300) * 2
    best, predicted = logits.double().softmax(1).max(1)
    found = confused_pairs(logits, targets, "abcde", numbers, examples=3)
    assert len(found) > 2
    for pair in found:
        truth, guess = "abcde".index(pair["truth"]), "abcde".index(pair["predicted"])
        rows = [i for i in range(300) if (targets[i], predicted[i]) == (truth, guess)]
        expected = sorted(rows, key=lambda i: -float(best[i]))[:3]
        assert [example["row"] for example in pair["examples"]] == [2 * i for i in expected]
        assert pair["examples"][0]["probability"] == float(best[expected[0]])
        assert pair["examples"][0]["likelihood"] == float(
            logits[expected[0]].double().softmax(0)[truth]
        )


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
