"""Shapley values add up, equal the mean over all orders, and see through noise."""

from __future__ import annotations

import itertools

import pytest
import torch

from mmtransfer.evaluation.contributions import WORTHS, contributions, explain, shares, worth
from mmtransfer.evaluation.encoded import encode_rows, subset_logits

MODALITIES = ("image", "sound", "text")


def drawn(names: str, rows: int = 7) -> dict[tuple[str, ...], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    kept = [s for k in range(len(names) + 1) for s in itertools.combinations(names, k)]
    return {s: torch.randn(rows, generator=generator, dtype=torch.float64) for s in kept}


@pytest.mark.parametrize("names", ["a", "ab", "abc", "abcd"])
def test_shares_are_the_mean_gain_over_all_orders_of_joining(names: str) -> None:
    values = drawn(names)
    found = shares(values, names)
    for m, name in enumerate(names):
        gains = []
        for order in itertools.permutations(names):
            before = tuple(sorted(order[: order.index(name)]))
            gains.append(values[tuple(sorted((*before, name)))] - values[before])
        torch.testing.assert_close(found[:, m], torch.stack(gains).mean(0))
    whole = values[tuple(names)] - values[()]
    torch.testing.assert_close(found.sum(1), whole, rtol=0, atol=1e-13)


def test_a_lacking_subset_is_named() -> None:
    values = drawn("ab")
    del values["b",]
    with pytest.raises(ValueError, match=r"1 subsets .* \('b',\)"):
        shares(values, "ab")


def test_worth_in_closed_form() -> None:
    logits, targets = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([1, 1])
    assert worth(logits, targets).tolist() == [1, 0]
    expected = logits.double().softmax(1)[:, 1].log()
    torch.testing.assert_close(worth(logits, targets, "log_likelihood"), expected)
    with pytest.raises(ValueError, match="'accurcy'.*'accuracy'"):
        worth(logits, targets, "accurcy")


@pytest.mark.parametrize("kind", WORTHS)
def test_noise_contributes_nothing_and_the_rest_adds_up(
    confused_by_noise, kind: str, rows_of
) -> None:
    rows = rows_of(600, 1, noise="text")
    examples, _ = encode_rows(confused_by_noise, rows)
    logits = subset_logits(confused_by_noise, examples)["label"]
    found = contributions(logits, examples.targets["label"], MODALITIES, kind)
    total = sum(share.value for share in found.of_modalities.values())
    assert total == pytest.approx(found.all - found.none, abs=1e-12)
    text = found.of_modalities["text"]
    assert text.low <= 0 <= text.high
    for name in ("image", "sound"):
        assert found.of_modalities[name].low > 0.1


def test_contributions_of_a_prediction_add_up_and_skip_what_is_missing(trained, rows_of) -> None:
    rows = rows_of(60, 2)
    examples, _ = encode_rows(trained, rows)
    logits = subset_logits(trained, examples)["label"]
    for scale in ("probability", "logit"):
        found = explain(logits, MODALITIES, scale)
        total = found.contributions.sum(1)
        torch.testing.assert_close(total, found.all - found.none, rtol=0, atol=1e-12)
        for m, name in enumerate(MODALITIES):
            missing = [i for i, row in enumerate(rows) if row[name] is None]
            assert missing
            torch.testing.assert_close(
                found.contributions[missing, m],
                torch.zeros(len(missing), dtype=torch.float64),
                rtol=0,
                atol=1e-6,
            )
    best = logits[MODALITIES].double().softmax(1).max(1)
    torch.testing.assert_close(explain(logits, MODALITIES).all, best.values)
    assert torch.equal(explain(logits, MODALITIES).predicted, best.indices)
    with pytest.raises(ValueError, match="'logits'.*'logit'"):
        explain(logits, MODALITIES, "logits")
