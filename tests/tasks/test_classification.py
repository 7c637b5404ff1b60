"""Classification: labels in and out, the loss and the metrics against their references."""

import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from mmtransfer.tasks.base import Task, build_task
from mmtransfer.tasks.classification import IGNORE, Classification
from mmtransfer.testing import check_task

LABELS = st.one_of(
    st.lists(st.text(max_size=5), min_size=1, max_size=20),
    st.lists(st.integers(-50, 50), min_size=1, max_size=20),
)
GAPS = st.lists(st.sampled_from([None, math.nan]), max_size=3)


@given(LABELS, GAPS, st.randoms())
@settings(deadline=None)
def test_labels_come_back_through_codes_and_logits(labels: Any, gaps: Any, random: Any) -> None:
    values = [*labels, *gaps]
    random.shuffle(values)
    task = Classification()
    task.fit(values)
    assert task.classes == sorted(set(labels))
    codes = task.encode(values)
    assert codes.dtype == torch.int64
    known = task.labelled(codes)
    assert known.sum() == len(labels)
    logits = F.one_hot(codes[known], len(task.classes)) * 30.0
    answers = [answer["label"] for answer in task.predict(logits)]
    assert answers == [v for v in values if not (v is None or v != v)]
    twin = Task.from_config(json.loads(json.dumps(task.config())))
    assert torch.equal(twin.encode(values), codes)


@pytest.mark.parametrize(
    "nothing", [None, math.nan, float("nan"), np.nan, np.float64("nan"), np.float32("nan")]
)
def test_none_and_every_nan_are_unlabelled(nothing: Any) -> None:
    task = Classification(["a", "b"])
    codes = task.encode([nothing, "b", nothing])
    assert codes.tolist() == [IGNORE, 1, IGNORE]
    assert task.labelled(codes).tolist() == [False, True, False]
    learned = Classification()
    learned.fit([nothing, "b"])
    assert learned.classes == ["b"]


def test_the_contract_holds() -> None:
    check_task(Classification(), ["pear", "apple", None, "pear", "plum"])


def test_a_label_outside_the_classes_names_itself_and_the_nearest() -> None:
    task = Classification(["apple", "pear", "plum"])
    with pytest.raises(ValueError, match="label 'appel' is none of the 3 classes.*mean 'apple'"):
        task.encode(["pear", "appel"])
    with pytest.raises(ValueError, match="label '' is none"):
        task.encode([""])
    with pytest.raises(ValueError, match="label 7 is none of the 2 classes"):
        Classification([1, 2]).encode([7])


def test_given_classes_are_checked_against_the_training_column() -> None:
    task = Classification(["apple", "pear"])
    with pytest.raises(ValueError, match="label 'plum'"):
        task.fit(["apple", "plum"])
    assert task.classes == ["apple", "pear"]


def test_a_column_without_labels_teaches_no_classes() -> None:
    with pytest.raises(ValueError, match="no labelled row"):
        Classification().fit([None, math.nan])
    for use in (lambda t: t.encode(["a"]), lambda t: t.head(3), lambda t: t.metrics()):
        with pytest.raises(ValueError, match=r"not known yet: call fit\(values\) or give classes"):
            use(Classification())


def test_a_class_given_twice_is_refused() -> None:
    # One of its two outputs could never be right.
    with pytest.raises(ValueError, match="apple"):
        Classification(["apple", "pear", "apple"])


def test_classes_of_a_numpy_column_can_be_saved() -> None:
    task = Classification()
    task.fit(list(np.array([3, 1, 3])))
    twin = Task.from_config(json.loads(json.dumps(task.config())))
    assert twin.encode([1, 3]).tolist() == [0, 1]


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_smoothing_that_is_no_share_is_refused(smoothing: float) -> None:
    with pytest.raises(
        ValueError, match=rf"label_smoothing must lie in \[0, 1\), found {smoothing}"
    ):
        Classification(label_smoothing=smoothing)


def test_tasks_are_built_by_name_and_mistakes_named() -> None:
    task = build_task({"name": "classification", "classes": ["a"], "weight": 0.5})
    assert isinstance(task, Classification)
    assert (task.classes, task.weight) == (["a"], 0.5)
    with pytest.raises(ValueError, match="unknown task 'clasification'.*mean 'classification'"):
        build_task("clasification")
    with pytest.raises(ValueError, match="no option 'label_smothing'.*mean 'label_smoothing'"):
        build_task("classification", label_smothing=0.1)


def test_the_loss_is_cross_entropy_per_row() -> None:
    torch.manual_seed(0)
    task = Classification(list("abcde"))
    logits, targets = torch.randn(20, 5, requires_grad=True), torch.randint(5, (20,))
    loss = task.loss(logits, targets)
    torch.testing.assert_close(loss.mean(), F.cross_entropy(logits, targets))
    assert loss.shape == (20,)


def test_unlabelled_rows_have_no_loss_and_no_gradient() -> None:
    task = Classification(list("abc"), label_smoothing=0.1)
    logits = torch.randn(4, 3, requires_grad=True)
    targets = torch.tensor([0, IGNORE, 2, IGNORE])
    loss = task.loss(logits, targets)
    assert loss[[1, 3]].tolist() == [0, 0]
    loss.sum().backward()
    assert not logits.grad[[1, 3]].any()
    assert logits.grad[[0, 2]].abs().min() > 0


def test_a_batch_without_any_label_has_a_finite_loss_of_zero() -> None:
    task = Classification(list("abc"))
    logits = torch.randn(2, 3, requires_grad=True)
    loss = task.loss(logits, torch.tensor([IGNORE, IGNORE])).sum()
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_labels_are_smoothed_in_training_and_never_in_evaluation() -> None:
    task = Classification(list("abcd"), label_smoothing=0.2)
    logits, targets = torch.randn(9, 4), torch.randint(4, (9,))
    training = task.loss(logits, targets)
    torch.testing.assert_close(
        training.mean(), F.cross_entropy(logits, targets, label_smoothing=0.2)
    )
    with torch.no_grad():
        evaluation = task.loss(logits, targets)
    torch.testing.assert_close(evaluation.mean(), F.cross_entropy(logits, targets))


def test_the_loss_of_half_precision_logits_is_taken_in_full_precision() -> None:
    task = Classification(list("abcd"))
    logits, targets = torch.randn(50, 4).bfloat16(), torch.randint(4, (50,))
    loss = task.loss(logits, targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, F.cross_entropy(logits.float(), targets, reduction="none"))


def test_predictions_are_the_largest_softmax_and_plain_values() -> None:
    task = Classification(["x", "y", "z"])
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
    answers = task.predict(logits)
    assert [answer["label"] for answer in answers] == ["y", "x"]
    expected = logits.softmax(1).amax(1).tolist()
    assert [answer["probability"] for answer in answers] == pytest.approx(expected)
    assert json.loads(json.dumps(answers)) == answers


@given(st.integers(2, 12), st.integers(1, 30), st.integers(0, 2**32))
@settings(deadline=None, max_examples=25)
def test_metrics_are_those_of_scikit_learn(classes: int, rows: int, seed: int) -> None:
    # With few rows and many classes some occur neither in the targets nor in the predictions.
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator)
    targets = torch.randint(classes, (rows,), generator=generator)
    task = Classification(range(classes))
    metrics = task.metrics()
    for chunk in zip(logits.split(7), targets.split(7), strict=True):  # in batches, as in a loop
        metrics.update(*chunk)
    found = {name: value.item() for name, value in metrics.compute().items()}
    guesses = logits.argmax(1)
    assert found["accuracy"] == pytest.approx(accuracy_score(targets, guesses), abs=1e-6)
    expected = f1_score(targets, guesses, average="macro", zero_division=0)
    assert found["f1_macro"] == pytest.approx(expected, abs=1e-6)
    assert task.score in found


WEIGHTED = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=40).filter(
    lambda labels: {"a", "b", "c"} <= set(labels)
)


@given(WEIGHTED)
@settings(deadline=None)
def test_balanced_class_weights_are_those_of_scikit_learn(values: list[Any]) -> None:
    task = Classification(class_weights="balanced")
    task.fit(values)
    known = [value for value in values if value is not None]
    expected = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=known)
    assert task.config()["class_weights"] == pytest.approx(expected.tolist())
    twin = Task.from_config(json.loads(json.dumps(task.config())))
    targets = task.encode(values)
    assert torch.equal(twin.loss_weight(targets), task.loss_weight(targets))
    assert task.loss_weight(targets).sum() == pytest.approx(len(known), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_mean_is_that_of_pytorch(smoothing: float) -> None:
    torch.manual_seed(0)
    weights = [0.2, 3.0, 1.0, 0.05]
    task = Classification(list("abcd"), label_smoothing=smoothing, class_weights=weights)
    logits, targets = torch.randn(30, 4, requires_grad=True), torch.randint(4, (30,))
    targets[::5] = IGNORE
    mean = task.loss(logits, targets).sum() / task.loss_weight(targets).sum()
    expected = F.cross_entropy(
        logits,
        targets,
        torch.tensor(weights),
        ignore_index=IGNORE,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(mean, expected)
    assert task.loss_weight(targets)[::5].tolist() == [0] * 6


def test_without_class_weights_every_labelled_row_counts_the_same() -> None:
    task = Classification(list("ab"))
    assert task.loss_weight(torch.tensor([0, IGNORE, 1])).tolist() == [1, 0, 1]
    assert task.config()["class_weights"] is None


def test_class_weights_by_name_stand_for_the_classes_given() -> None:
    task = Classification(class_weights={"3": 2.0, 7: 0.5})  # YAML gives text, Python numbers
    task.fit([1, 3, 7, None])
    assert task.loss_weight(torch.tensor([0, 1, 2])).tolist() == [1.0, 2.0, 0.5]
    twin = Task.from_config(json.loads(json.dumps(task.config())))
    assert twin.loss_weight(torch.tensor([0, 1, 2])).tolist() == [1.0, 2.0, 0.5]
    twin.fit([1, 3])
    assert twin.loss_weight(torch.tensor([2])).tolist() == [0.5]


def test_balanced_weights_follow_the_column_and_need_one() -> None:
    task = Classification(["a", "b", "c"], class_weights="balanced")
    with pytest.raises(ValueError, match="balanced class weights are not known yet"):
        task.loss(torch.zeros(1, 3), torch.tensor([0]))
    task.fit(["a", "a", "b"])
    assert task.loss_weight(torch.tensor([0, 1, 2])).tolist() == [0.5, 1.0, 1.0]
    task.fit(["a", "b", "c"])
    assert task.loss_weight(torch.tensor([0, 1, 2])).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("blanced", "unknown class_weights 'blanced'. Did you mean 'balanced'"),
        ({"appel": 2.0}, "class_weights names no class: 'appel'. Did you mean 'apple'"),
        ([1.0], "class_weights must be 2 numbers, one per class, found 1"),
        ([1.0, 0.0], "class_weights must be positive numbers, found 0.0"),
        ({"pear": math.inf}, "class_weights must be positive numbers, found inf"),
    ],
)
def test_class_weights_that_fit_no_classes_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classification(["apple", "pear"], class_weights=weights)


def test_the_contract_holds_with_class_weights() -> None:
    check_task(Classification(class_weights="balanced"), ["pear", "apple", None, "pear", "plum"])


def test_metrics_cost_nothing_before_they_are_needed():
    code = "import sys, mmtransfer.training.run; sys.exit('torchmetrics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_area_under_the_roc_curve_is_that_of_scikit_learn_and_chooses_the_epoch():
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 3, generator=generator)
    truth = torch.randint(3, (60,), generator=generator)
    task = Classification(["a", "b", "c"], score="auroc")
    assert task.score == "auroc"
    assert Classification.from_config(task.config()).score == "auroc"
    metrics = task.metrics()
    metrics.update(logits, truth)
    expected = roc_auc_score(truth, logits.softmax(-1), multi_class="ovr", average="macro")
    assert float(metrics.compute()["auroc"]) == pytest.approx(expected, abs=1e-6)
    assert "auroc" not in Classification(["a", "b"]).metrics()
    with pytest.raises(ValueError, match="Did you mean 'auroc'"):
        Classification(score="auroc_")


def test_metrics_of_one_class_are_refused_in_plain_words() -> None:
    with pytest.raises(ValueError, match="two classes or more, found only 'x'"):
        Classification(["x"]).metrics()
