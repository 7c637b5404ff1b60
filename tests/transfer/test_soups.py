"""Soups and the curve of WiSE-FT: weights by hand, what is chosen, what does not go together."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from mmtransfer.methods.wise_ft import WiSEFT
from mmtransfer.temperature import Temperature
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model
from mmtransfer.training.trainer import Trainer
from mmtransfer.transfer.adapters import add_adapters, merge_adapters
from mmtransfer.transfer.base import Phase, Strategy
from mmtransfer.transfer.soups import alpha_curve, greedy_soup, uniform_soup

ROWS = [{"a": [float(i), 1.0], "kind": "xy"[i % 2]} for i in range(6)]


def model_at(value: float, widths: str = "[4]", rows=ROWS):
    encoders = {"a": f"mlp?shape=[2]&widths={widths}"}
    model = build_model(encoders, {"kind": "classification"}, rows, "gated", 4)
    for parameter in model.parameters():
        parameter.data.fill_(value)
    return model


def value_of(model) -> float:
    values = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert values.max() - values.min() < 1e-6
    return float(values[0])


def test_a_uniform_soup_is_the_mean_of_models_and_directories(tmp_path):
    models = [model_at(value) for value in (1.0, 2.0, 6.0)]
    models[1].save_pretrained(tmp_path / "saved")
    soup = uniform_soup([models[0], tmp_path / "saved", models[2]])
    assert value_of(soup) == pytest.approx(3.0)
    assert [value_of(model) for model in models] == [1.0, 2.0, 6.0]
    assert not soup.training
    other = uniform_soup([model_at(0.1)] * 3)
    assert torch.equal(other.heads["kind"].bias, model_at(0.1).heads["kind"].bias)


def test_a_greedy_soup_takes_what_helps_best_first():
    """The best place is 2: of 1.5 and 8 the first is nearer, 2.5 joins, 8 would spoil it."""

    def near_two(model) -> float:
        return -abs(value_of(model) - 2.0)

    models = [model_at(value) for value in (8.0, 2.75, 1.5)]
    found = greedy_soup(models, near_two)
    assert found.chosen == [2, 1]
    assert value_of(found.model) == pytest.approx(2.125)
    assert found.scores == pytest.approx([-6.0, -0.75, -0.5])
    assert found.score == pytest.approx(-0.125)
    assert found.score >= max(found.scores)


def test_the_temperature_of_the_first_model_is_not_that_of_the_soup():
    models = [model_at(value) for value in (1.0, 2.0)]
    models[0].temperature = Temperature({"kind": 7.0})
    for soup in (uniform_soup(models), greedy_soup(models, value_of).model):
        assert soup.temperature == Temperature()
    assert models[0].temperature.by_task == {"kind": 7.0}


def test_what_does_not_go_together_is_an_error():
    with pytest.raises(ValueError, match="at least one model"):
        uniform_soup([])
    with pytest.raises(ValueError, match=r"model 1 is of another architecture .* e.g. 'encoders.a"):
        uniform_soup([model_at(1.0), model_at(1.0, "[3, 4]")])
    others = [row | {"kind": row["kind"] + "!"} for row in ROWS]
    with pytest.raises(ValueError, match=r"model 1 has task 'kind' as .*x!"):
        uniform_soup([model_at(1.0), model_at(1.0, rows=others)])


def test_the_curve_goes_from_start_to_end_and_leaves_the_model_as_it_was(tmp_path):
    start, end = model_at(1.0), model_at(3.0)
    start.save_pretrained(tmp_path)
    for given in (start, tmp_path, start.state_dict()):
        curve = alpha_curve(end, given, value_of, [0.0, 0.25, 1.0])
        assert curve == pytest.approx({0.0: 1.0, 0.25: 1.5, 1.0: 3.0})
        assert value_of(end) == 3.0
    with pytest.raises(RuntimeError):
        alpha_curve(end, start, lambda model: (_ for _ in ()).throw(RuntimeError))
    assert value_of(end) == 3.0


def test_new_parts_stay_as_trained():
    start, end = model_at(1.0), model_at(3.0)
    encoders = {n: t for n, t in start.state_dict().items() if n.startswith("encoders.")}

    def ends(model) -> tuple[float, float]:
        parts = model.encoders["a"].layers[0][0], model.heads["kind"]
        return tuple(part.bias[0].item() for part in parts)

    assert alpha_curve(end, encoders, ends, [0.5]) == {0.5: (2.0, 3.0)}
    with pytest.raises(ValueError, match=r"start has 'x' \(2,\), the model no such weights"):
        alpha_curve(end, {"x": torch.zeros(2)}, ends)


def test_the_default_curve_has_eleven_places():
    assert list(alpha_curve(model_at(1.0), model_at(0.0), value_of)) == pytest.approx(
        [k / 10 for k in range(11)]
    )


def adapted(seed: int, kind: str):
    """A model whose adapters have been trained."""
    model = model_at(0.5)
    torch.manual_seed(9)
    nn.init.normal_(model.encoders["a"].layers[0][0].weight)
    before = {id(p) for p in model.parameters()}
    add_adapters(model, {"a": {"name": kind, "rank": 1}})
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if id(parameter) not in before:
            nn.init.normal_(parameter, 1.0)
    return model


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_adapters_are_merged_before_they_are_averaged(kind, tmp_path):
    models = [adapted(seed, kind) for seed in range(3)]
    merged = deepcopy(models)
    for model in merged:
        merge_adapters(model)
    models[1].save_pretrained(tmp_path)
    given = [models[0], tmp_path, merged[2]]
    expected = uniform_soup(merged).state_dict()
    for soup in (uniform_soup(given), greedy_soup(given, lambda model: 0.0).model):
        torch.testing.assert_close(soup.state_dict(), expected)
    assert models[0].state_dict().keys() != expected.keys()  # it has its adapters still
    curve = alpha_curve(
        merged[0], models[1], lambda m: m.encoders["a"].layers[0][0].weight[0, 0].item()
    )
    start = merged[1].encoders["a"].layers[0][0].weight[0, 0].item()
    assert curve[0.0] == pytest.approx(start)
    with pytest.raises(ValueError, match="the model has adapters.*call merge_adapters first"):
        alpha_curve(models[0], models[1], value_of)


def tuned(alpha: float, phases: list[Phase], validation=None) -> Trainer:
    method = WiSEFT(alpha)
    model = build_model({"a": "mlp?shape=[2]&widths=[4]"}, {"kind": "classification"}, ROWS)
    options = TrainingOptions(progress=False, track=[])
    trainer = Trainer(model, ROWS, validation, Strategy(phases, [method]), options)
    trainer.fit()
    return trainer


PROBE, TUNING = Phase(2, 1e-2), Phase(3, 1e-2, 1e-1)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("phases", [[PROBE, TUNING], [TUNING, PROBE]], ids=["before", "after"])
def test_wise_ft_tells_both_ends_whatever_its_alpha(alpha, phases):
    whole, trainer = tuned(1.0, phases), tuned(alpha, phases)
    if phases[0] is PROBE:
        start = tuned(1.0, [PROBE, Phase(1, 1e-12, 1e-12)]).model.state_dict()
    else:  # heads go on from where encoders were kept: it is another run for every alpha
        start = tuned(1.0, [Phase(1, 1e-12, 1e-12)]).model.state_dict()

    def encoder(model) -> dict[str, torch.Tensor]:
        names = [n for n in start if n.startswith("encoders.") or phases[0] is PROBE]
        return {n: model.state_dict()[n].clone() for n in names}

    kept, end = encoder(trainer.model), encoder(whole.model)
    curve = alpha_curve(trainer.model, trainer.strategy.methods[0], encoder, [0.0, alpha, 1.0])
    for found, expected in ((0.0, start), (alpha, kept), (1.0, end)):
        for name, value in curve[found].items():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, kept[name]) for name, value in encoder(trainer.model).items())


def test_a_curve_over_validation_rows_is_that_over_the_same_rows_elsewhere():
    trainer = tuned(0.5, [TUNING, PROBE], ROWS)
    method = trainer.strategy.methods[0]
    here, there = (
        alpha_curve(
            trainer.model, method, lambda m, rows=rows: trainer.evaluate(rows, "validation")
        )
        for rows in (ROWS, list(ROWS))
    )
    assert here == there
    assert len({found["kind"]["loss"] for found in here.values()}) == len(here)


def test_where_a_run_ended_must_be_told_by_what_it_kept():
    method, model = WiSEFT(0.0), model_at(1.0)
    with pytest.raises(ValueError, match="lies where wise_ft started.*alpha is 0"):
        alpha_curve(model, method, value_of)
    method.on_gradients(model, lambda: None)
    with pytest.raises(ValueError, match="lies where wise_ft started.*alpha is 0"):
        alpha_curve(model, method, value_of)
