"""What recipes share: where training starts, pretraining, and the table of contenders."""

from __future__ import annotations

import json

import pytest
import torch

from mmtransfer import Phase, Strategy, TrainingOptions, build_encoder
from mmtransfer.data.blank import with_blank
from mmtransfer.data.stand_ins import glyphs
from mmtransfer.training.recipe import Start, compare, pretrain, shortened, untrained

NETWORK = "mlp?size=28&channels=1&widths=[16]"
QUIET = TrainingOptions(progress=False, track=[])
ROWS = {"train": 20, "validation": 10, "test": 10}


def same(left: torch.nn.Module, right: torch.nn.Module) -> list[bool]:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return [torch.equal(a, b) for a, b in pairs]


@pytest.mark.parametrize("spec", [NETWORK, "tiny-bert", "small-cnn?size=32&widths=[8,8]"])
def test_untrained_is_the_same_architecture_with_other_weights(spec):
    torch.manual_seed(5)
    encoder = build_encoder(spec)
    with torch.no_grad():
        for tensor in encoder.state_dict().values():
            tensor.add_(1)  # trained: statistics of batch norm too
    fresh, again, other = untrained(encoder, 3), untrained(encoder, 3), untrained(encoder, 4)
    assert type(fresh) is type(encoder)
    assert fresh.config() == encoder.config()
    assert all(same(fresh, again))
    assert not all(same(fresh, other))
    learned = [n for n, _ in encoder.named_parameters()] + [
        n for n in encoder.state_dict() if "running" in n
    ]
    for name in learned:
        assert not torch.equal(fresh.state_dict()[name], encoder.state_dict()[name]), name
    assert not fresh.pretrained


@pytest.mark.parametrize("name", ["kwt1-speech-commands"])
def test_constants_of_an_untrained_encoder_are_those_of_the_trained_one(shared, name):
    encoder = build_encoder(f"kwt:{shared / 'models' / name}")
    fresh = untrained(encoder)
    constants = dict(fresh.named_buffers())
    assert constants
    for key, constant in encoder.named_buffers():
        assert torch.equal(constants[key], constant), key
    assert not any(same(fresh.blocks[0], encoder.blocks[0])[:1])


def test_a_start_leaves_the_pretrained_encoder_alone():
    rows = glyphs("AB", ROWS)
    encoder = build_encoder(NETWORK)
    kept = [tensor.clone() for tensor in encoder.state_dict().values()]
    start = Start({"image": encoder}, {"symbol": "classification"}, rows["train"], {"width": 8})
    model = start.pretrained(0)
    assert all(same(model.encoders["image"], encoder))
    pretrain(model, rows, Strategy([Phase(1, encoder_lr=1e-2)]), QUIET)
    assert model.encoders["image"].pretrained
    assert not any(same(model.encoders["image"], encoder))
    found = encoder.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(kept, found, strict=True))


def test_the_table_holds_every_contender_and_seed_and_what_is_left_of_the_source(tmp_path, capsys):
    source, target = glyphs("01", ROWS, "digit"), glyphs("AB", ROWS, "letter")
    source, target = (with_blank(data, "digit", "letter") for data in (source, target))
    tasks = {
        "digit": {"name": "classification", "classes": ["0", "1"]},
        "letter": {"name": "classification", "classes": ["A", "B"]},
    }
    start = Start({"image": build_encoder(NETWORK)}, tasks, target["train"], {"width": 8})
    plan = Strategy([Phase(7, encoder_lr=1e-3)])
    data = target | {"source": source["test"]}
    contenders = {"one": (start.scratch, plan), "two": (start.pretrained, plan)}
    metrics = compare(contenders, data, QUIET, tmp_path / "out", "Letters", 2, quick=True)
    assert {row: set(cells) for row, cells in metrics["table"].items()} == {
        "letter": {"one", "two"},
        "digit (source)": {"one", "two"},
    }
    assert all(len(v) == 2 for cells in metrics["table"].values() for v in cells.values())
    assert len(metrics["history"]) == 1  # quick
    last = metrics["test"]["letter"]["accuracy"]
    assert metrics["table"]["letter"]["two"][-1] == last
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["table"] == metrics["table"]
    assert "digit (source)" in capsys.readouterr().out


def test_shortened_keeps_all_but_the_epochs():
    plan = Strategy([Phase(9, lr=0.5, encoder_lr=0.1), Phase(3)])
    short = shortened(plan)
    assert [phase.epochs for phase in short.phases] == [1, 1]
    assert short.phases[0].encoder_lr == 0.1
    assert plan.phases[0].epochs == 9
