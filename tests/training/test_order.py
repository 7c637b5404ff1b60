"""The order of training rows: what the options choose, and that training follows it."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mmtransfer.data.orders import Balanced, BlockShuffled, LengthGrouped, Shuffled
from mmtransfer.data.parquet import ParquetRows
from mmtransfer.methods.base import Method
from mmtransfer.tasks.base import Task
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.order import check_order, choose_order, labels_of, lengths_of
from mmtransfer.training.run import build_model
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.base import Phase, Strategy, build_strategy

TASKS = {"product": "classification", "category": "classification"}
TINY = {"image": "tiny-vit", "text": "tiny-bert", "audio": "tiny-wav2vec2"}


def options(**changed) -> TrainingOptions:
    return TrainingOptions(**{"batch_size": 8, "progress": False, **changed})


@pytest.fixture(scope="module")
def model(products):
    return build_model(TINY, TASKS, products["train"], "gated", 16)


def test_the_options_choose_the_order(products, model, tmp_path):
    rows = products["train"]
    kinds = {"shuffled": Shuffled, "length": LengthGrouped, "balanced": Balanced}
    for name, kind in kinds.items():
        assert type(choose_order(rows, model, options(order=name), {})) is kind
    table = pa.Table.from_pylist(rows[6:])  # without the NaN among the categories
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    whole = ParquetRows([tmp_path / "a.parquet"])
    assert type(choose_order(whole, model, options(), {})) is Shuffled  # all of it fits the cache
    assert whole.resident > 9
    large = ParquetRows([tmp_path / "a.parquet"], cache=whole.kept[0].nbytes * 4)
    order = choose_order(large, model, options(), {})
    assert isinstance(order, BlockShuffled)
    assert (large.resident, order.window) == (4, 2)


def test_balanced_looks_at_the_task_that_is_named(products, model):
    rows = products["train"]
    order = choose_order(rows, model, options(order="balanced", balance_by="category"), {})
    expected = labels_of(rows, "category", model.tasks["category"])
    assert torch.equal(order.labels, expected)
    assert expected[5] == -1
    assert expected[expected >= 0].tolist() == [
        model.tasks["category"].classes.index(row["category"])
        for i, row in enumerate(rows)
        if i != 5
    ]
    rooted = choose_order(rows, model, options(order="balanced", balance=0.5), {})
    assert rooted.power == 0.5

    class Price(Task):
        def encode(self, values):
            return torch.rand(len(values))

    with pytest.raises(
        ValueError, match=r"one class per row, but the targets of 'price' are \(40,\)"
    ):
        labels_of([row | {"price": 1.5} for row in rows], "price", Price())


def test_lengths_are_of_what_trains_and_measured_once(products, model):
    rows, known = products["train"], {}
    Phase(1, encoder_lr={"text": 1e-3, "image": 1e-3}).apply(model)
    lengths = lengths_of(rows, model, known)
    assert set(known) == {"text"}
    texts = torch.tensor([float(len(row["text"] or "")) for row in rows])
    torch.testing.assert_close(lengths, texts / texts[texts > 0].mean())
    Phase(1).apply(model)  # nothing trains: the stored features differ in length too
    known["text"] = torch.zeros(40)
    lengths_of(rows, model, known)
    assert set(known) == {"text", "audio"}
    assert not known["text"].any()
    model.requires_grad_(True)
    photos = build_model({"image": "tiny-vit"}, TASKS, rows, "gated", 16)
    assert torch.equal(lengths_of(rows, photos, {}), torch.ones(40))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"order": "lenght"}, "unknown order 'lenght'. Did you mean 'length'"),
        ({"balance_by": "product"}, "balance_by is for order 'balanced', found order 'shuffled'"),
        ({"balance": 2.0}, r"balance must lie in \[0, 1\], found 2.0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1, found 0"),
        ({"shuffle_buffer": 0}, "shuffle_buffer must be at least 1, found 0"),
    ],
)
def test_bad_options_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        options(**changed)


def test_what_the_data_does_not_allow_is_said_before_training(products, model):
    rows = products["train"]
    with pytest.raises(ValueError, match="names no task: found 'prodct'. Did you mean 'product'"):
        check_order(rows, model.tasks, options(order="balanced", balance_by="prodct"))
    with pytest.raises(ValueError, match="steps_per_epoch is for streams, found 3"):
        check_order(rows, model.tasks, options(steps_per_epoch=3))


@pytest.mark.parametrize("order", ["length", "balanced"])
def test_training_follows_the_order(products, order):
    seen = []

    class Spy(Method):
        def on_rows(self, rows, context):
            seen.append([i for i, _ in rows])

    model = build_model({"text": TINY["text"]}, TASKS, products["train"], "gated", 16)
    strategy = Strategy([Phase(2, encoder_lr=1e-3)], [Spy()])
    chosen = options(order=order)
    trainer = Trainer(model, products["train"], None, strategy, chosen)
    trainer.fit()
    expected = choose_order(products["train"], model, chosen, {})
    drawn = [i for epoch in range(2) for i in expected(epoch).tolist()]
    assert [i for rows in seen for i in rows] == drawn
    assert len(trainer.losses) == 10


def test_training_from_a_parquet_file_is_training_from_its_rows(products, tmp_path):
    """Also where the file is larger than what is kept of it."""
    table = pa.Table.from_pylist(products["train"][6:])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    rows = ParquetRows([tmp_path / "a.parquet"])
    small = ParquetRows([tmp_path / "a.parquet"], cache=1)
    losses = []
    for data, workers in ((table.to_pylist(), 0), (rows, 0), (rows, 2), (small, 0), (small, 2)):
        model = build_model({"text": TINY["text"]}, TASKS, data, "gated", 16)
        strategy = Strategy([Phase(2, encoder_lr=1e-3)])
        trainer = Trainer(model, data, data, strategy, options(workers=workers))
        trainer.fit()
        losses.append(trainer.losses)
    assert losses[0] == losses[1] == losses[2]
    assert losses[3] == losses[4] != losses[0]  # by blocks


def test_a_loss_with_class_weights_is_that_of_pytorch(products):
    """However the step is cut, and although every micro-batch has other weights."""
    losses = {}
    for accumulation in (1, 3):
        task = {"name": "classification", "class_weights": "balanced"}
        text = {"text": TINY["text"]}
        model = build_model(text, {"category": task}, products["train"], "gated", 16)
        strategy = Strategy([Phase(2, lr=1e-2, encoder_lr=1e-3)])
        chosen = options(accumulation=accumulation, batch_size=40)
        trainer = Trainer(model, products["train"], None, strategy, chosen)
        before = trainer.evaluate(products["train"])["category"]["loss"]
        trainer.fit()
        losses[accumulation] = trainer.losses
        assert trainer.losses[0] == pytest.approx(before, abs=1e-5)
    assert losses[1] == pytest.approx(losses[3], abs=1e-4)


def test_balanced_draws_are_the_same_whatever_the_workers_and_after_a_resume(products, tmp_path):
    """With pictures mixed, augmented and dropped: all that is random about a draw."""

    def train(output, workers=0, until=0, resume=False):
        model = build_model(TINY, TASKS, products["train"], "gated", 16)
        methods = ["modality_dropout", "mixup", Until(until)]
        strategy = build_strategy("full", methods, epochs=2)
        chosen = options(
            order="balanced", augment=True, workers=workers, checkpoint_steps=2, track=[]
        )
        trainer = Trainer(model, products["train"], None, strategy, chosen, output)
        try:
            trainer.fit(resume)
        except KeyboardInterrupt:
            pass
        finally:
            trainer.close()
        return trainer.losses

    class Until(Method):
        def __init__(self, step):
            self.last = step

        def config(self):
            return {}

        def on_weights(self, model, step):
            if step == self.last:
                raise KeyboardInterrupt

    alone = train(tmp_path / "alone")
    assert train(tmp_path / "workers", workers=2) == alone
    train(tmp_path / "cut", until=3)
    assert train(tmp_path / "cut", resume=True) == alone
