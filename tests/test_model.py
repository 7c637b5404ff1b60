"""The model: who runs on which rows, what stays frozen, and what comes back from disk."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmtransfer.data.collate import Collate
from mmtransfer.encoders.base import Encoder, build_encoder
from mmtransfer.features import Features, Fused, Inputs, proper_subsets
from mmtransfer.fusion.base import Fusion, build_fusion
from mmtransfer.model import ON_DEMAND, TransferModel
from mmtransfer.tasks.classification import Classification

Maker = Callable[..., bytes]


class Numbers(Encoder):
    """Lists of three numbers, through batch norm and dropout; remembers the rows that it saw."""

    def __init__(self, width: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.dropout = width, dropout
        self.first = nn.Sequential(nn.Linear(3, width), nn.Dropout(dropout))
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.collate = numbers
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Features:
        self.seen.append(x)
        return Features.of(self.second(self.norm(self.first(x))))


def numbers(values: list[Any]) -> dict[str, Tensor]:
    return {"x": torch.tensor(values, dtype=torch.float32)}


class Unweighted(Fusion):
    """A sum that gives no weights and holds no modules named after modalities."""

    def __init__(self, widths: dict[str, int], width: int) -> None:
        super().__init__(widths, width)

    def forward(self, features: dict[str, Features]) -> Fused:
        return Fused(sum(f.pooled()[:, : self.width] for f in features.values()))  # type: ignore[arg-type]


def build(fusion: str = "gated", classes: str = "xyz", **encoders: Encoder) -> TransferModel:
    torch.manual_seed(0)
    encoders = encoders or {"a": Numbers(), "b": Numbers(5)}
    joined = build_fusion(fusion, {name: e.width for name, e in encoders.items()}, 8)
    tasks = {"kind": Classification(list(classes)), "good": Classification([False, True])}
    return TransferModel(encoders, joined, tasks)


def given(rows: list[int], seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return Inputs({"x": torch.randn(len(rows), 3, generator=generator)}, torch.tensor(rows))


def test_an_encoder_runs_only_on_the_rows_that_have_its_modality() -> None:
    model = build().eval()
    a, b = given([1, 3]), given([0, 1, 2, 3, 4], 1)
    model({"a": a, "b": b}, 5)
    assert torch.equal(model.encoders["a"].seen[0], a.values["x"])
    assert torch.equal(model.encoders["b"].seen[0], b.values["x"])
    model({"b": b}, 5)
    model({"a": Inputs({"x": torch.zeros(0, 3)}, torch.zeros(0, dtype=torch.int64)), "b": b}, 5)
    assert len(model.encoders["a"].seen) == 1, "an encoder ran on a batch without its modality"
    assert len(model.encoders["b"].seen) == 3


@pytest.mark.parametrize("rows", [[1, 3], [4, 0, 2], [2]])
def test_features_come_back_to_their_rows(rows: list[int]) -> None:
    model, a, b = build().eval(), given(rows), given([0, 1, 2, 3, 4], 1)
    whole = model({"a": a, "b": b}, 5)
    for row in range(5):
        alone: dict[str, Inputs] = {
            "b": Inputs({"x": b.values["x"][row : row + 1]}, torch.zeros(1).long())
        }
        if row in rows:
            x = a.values["x"][rows.index(row)].unsqueeze(0)
            alone["a"] = Inputs({"x": x}, torch.zeros(1, dtype=torch.int64))
        single = model(alone, 1)
        for task, logits in whole.logits.items():
            torch.testing.assert_close(single.logits[task][0], logits[row])
        torch.testing.assert_close(single.weights[0], whole.weights[row])


def test_batch_norm_sees_no_absent_rows() -> None:
    model, a = build().train(), given([1, 3, 4])
    reference = nn.BatchNorm1d(4)
    reference(model.encoders["a"].first(a.values["x"]))
    model({"a": a, "b": given([0, 1, 2, 3, 4], 1)}, 5)
    norm = model.encoders["a"].norm
    torch.testing.assert_close(norm.running_mean, reference.running_mean)
    torch.testing.assert_close(norm.running_var, reference.running_var)


def test_a_batch_without_a_modality_leaves_its_batch_norm_alone() -> None:
    model = build().train()
    before = model.encoders["a"].norm.running_mean.clone()
    model({"b": given([0, 1, 2], 1)}, 3)
    assert torch.equal(model.encoders["a"].norm.running_mean, before)


def test_ready_features_give_the_same_bits_as_encoder_inputs() -> None:
    model = build().eval()
    inputs = {"a": given([1, 3]), "b": given([0, 1, 2, 3, 4], 1)}
    ready = {name: model.encode(name, one, 5) for name, one in inputs.items()}
    ran = [len(model.encoders[name].seen) for name in inputs]
    direct, from_features = model(inputs, 5), model(ready, 5)
    for task in direct.logits:
        assert torch.equal(direct.logits[task], from_features.logits[task])
    assert torch.equal(direct.weights, from_features.weights)
    assert [len(model.encoders[n].seen) - r for n, r in zip(inputs, ran, strict=True)] == [1, 1]


def test_gradients_reach_what_is_trained_and_nothing_that_is_frozen() -> None:
    model = build().train()
    model.encoders["a"].requires_grad_(False)
    inputs = {"a": given([0, 1, 2, 3]), "b": given([0, 1, 2, 3], 1)}
    assert not model.encode("a", inputs["a"], 4).tokens.requires_grad
    sum((x * torch.randn_like(x)).sum() for x in model(inputs, 4).logits.values()).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("encoders.a"):
            assert parameter.grad is None, name
        elif not name.startswith("fusion.absent"):
            assert parameter.grad is not None, name


def test_a_frozen_encoder_does_not_drift_when_the_model_trains() -> None:
    model = build(a=Numbers(dropout=0.5), b=Numbers(5))
    model.encoders["a"].requires_grad_(False)
    model.train()
    assert not any(module.training for module in model.encoders["a"].modules())
    before = {n: t.clone() for n, t in model.encoders["a"].state_dict().items()}
    inputs = given([0, 1, 2])
    first, second = (model.encode("a", inputs, 3).tokens for _ in range(2))
    assert torch.equal(first, second), "dropout acts in a frozen encoder"
    after = model.encoders["a"].state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before), "batch norm drifts"
    assert model.fusion.training
    assert model.encoders["b"].norm.training


def test_dropout_acts_in_an_encoder_that_is_trained() -> None:
    model = build(a=Numbers(dropout=0.5), b=Numbers(5)).train()
    inputs = given([0, 1, 2])
    first, second = (model.encode("a", inputs, 3).tokens for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    first, second = (model.encode("a", inputs, 3).tokens for _ in range(2))
    assert torch.equal(first, second)


def test_dropout_acts_in_the_trained_part_of_an_encoder_and_not_in_the_frozen() -> None:
    model = build(a=Numbers(dropout=0.5), b=Numbers(5))
    encoder = model.encoders["a"]
    encoder.first.requires_grad_(False)
    model.train()
    assert not any(module.training for module in encoder.first.modules())
    assert all(module.training for module in encoder.second.modules())


def test_pretrained_batch_norm_stays_in_eval_even_when_trained() -> None:
    model = build()
    model.encoders["a"].pretrained = True
    model.train()
    assert not model.encoders["a"].norm.training
    assert model.encoders["a"].norm.weight.requires_grad
    assert model.encoders["b"].norm.training
    model({"a": given([0, 1, 2])}, 3)
    assert model.encoders["a"].norm.num_batches_tracked == 0


def test_the_fusion_must_expect_what_the_encoders_give() -> None:
    fusion = build_fusion("concat", {"a": 4}, 8)
    tasks = {"kind": Classification(["x", "y"])}
    for encoders in ({"a": Numbers(5)}, {"b": Numbers(4)}, {"a": Numbers(4), "b": Numbers(4)}):
        with pytest.raises(ValueError, match="the encoders give .* the fusion expects .*'a': 4"):
            TransferModel(encoders, fusion, tasks)
    with pytest.raises(ValueError, match="at least one task"):
        TransferModel({"a": Numbers(4)}, fusion, {})


BAD_NAMES = ["a.b", "keys", "values", "type", "train"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_columns_with_names_that_cannot_be_used_are_named(name: str) -> None:
    kind, message = Classification(["x"]), f"{name!r}.*rename the column"
    with pytest.raises(ValueError, match=message):
        TransferModel({name: Numbers()}, Unweighted({name: 4}, 4), {"kind": kind})
    with pytest.raises(ValueError, match=message):
        TransferModel({"a": Numbers()}, Unweighted({"a": 4}, 4), {name: kind})


@pytest.mark.parametrize("name", ["a.b", "values", "copy"])
@pytest.mark.parametrize("fusion", ["concat", "gated"])
def test_fusions_name_the_columns_that_cannot_be_used(fusion: str, name: str) -> None:
    # The fusion is built before the model: its error is the one that a user meets.
    with pytest.raises(ValueError, match=f"{name!r}.*rename the column"):
        build_fusion(fusion, {name: 4, "other": 4}, 4)


def test_a_task_cannot_take_the_place_of_the_weights_in_predictions() -> None:
    with pytest.raises(ValueError, match=r"'weights'.*rename the column"):
        TransferModel({"a": Numbers()}, Unweighted({"a": 4}, 4), {"weights": Classification(["x"])})


ROWS = [
    {"a": [1.0, 2.0, 3.0], "b": [0.0, 1.0, 0.0]},
    {"a": [1.0, 2.0, 3.0]},
    {"a": None, "b": [0.0, 1.0, 0.0]},
    {"a": [0.0, 0.0, 1.0], "b": None, "more": "columns"},
    {"a": None},
]


def test_rows_may_have_any_modalities_and_absent_ones_weigh_nothing() -> None:
    answers = build().predict(ROWS)
    for row, answer in zip(ROWS, answers, strict=True):
        present = {name for name in "ab" if row.get(name) is not None}
        assert {n for n, w in answer["weights"].items() if w > 0} == (present or set("ab"))
        assert sum(answer["weights"].values()) == pytest.approx(1)
    assert answers[1]["weights"] == {"a": 1, "b": 0}


def test_answers_are_the_models_own_and_plain_values() -> None:
    model = build().eval()
    answers = model.predict(ROWS)
    assert json.loads(json.dumps(answers)) == answers
    batch = Collate(model.encoders, {})(list(enumerate(ROWS)))
    outputs = model(batch.inputs, len(ROWS))
    for task, classes in {"kind": list("xyz"), "good": [False, True]}.items():
        best, code = outputs.logits[task].softmax(1).max(1)
        assert [a[task]["label"] for a in answers] == [classes[c] for c in code]
        assert [a[task]["probability"] for a in answers] == pytest.approx(best.tolist())


def test_batches_do_not_show_in_the_answers() -> None:
    model = build(a=Numbers(dropout=0.5), b=Numbers(5)).train()
    whole, single = model.predict(ROWS), model.predict(ROWS, batch_size=1)
    for one, other in zip(whole, single, strict=True):
        assert one["kind"]["label"] == other["kind"]["label"]
        assert one["kind"]["probability"] == pytest.approx(other["kind"]["probability"], abs=1e-6)
        assert one["weights"] == pytest.approx(other["weights"], abs=1e-6)


def test_predicting_leaves_the_mode_as_it_was_even_when_it_fails() -> None:
    model = build()
    for mode in (True, False):
        model.train(mode)
        model.predict(ROWS)
        assert model.training is mode
        with pytest.raises(ValueError, match="column 'a'"):
            model.predict([{"a": "no numbers"}])
        assert model.training is mode


def test_a_fusion_without_weights_gives_none() -> None:
    model = TransferModel(
        {"a": Numbers()}, Unweighted({"a": 4}, 4), {"kind": Classification(["x", "y"])}
    )
    assert [answer["weights"] for answer in model.predict([{"a": [1, 2, 3]}])] == [None]


def test_no_rows_give_no_answers() -> None:
    assert build().predict([]) == []


def test_rows_with_none_of_the_columns_are_refused() -> None:
    model = build(picture=Numbers(), text=Numbers())
    with pytest.raises(
        ValueError, match=r"no row has any .*'picture', 'text'.*found.*'pictures'.*mean 'pictures'"
    ):
        model.predict([{"pictures": [1.0, 2.0, 3.0], "price": 3}])


def test_an_unreadable_value_names_row_and_column_or_counts_as_missing(picture: Maker) -> None:
    encoders = {"image": build_encoder("tiny-vit?width=16&layers=1"), "a": Numbers()}
    model = build(**encoders)
    rows: list[dict[str, Any]] = [{"image": picture(k), "a": [k, 1.0, 2.0]} for k in range(5)]
    rows[3]["image"] = b"no picture"
    with pytest.raises(ValueError, match="row 3, column 'image' cannot be read"):
        model.predict(rows, batch_size=2)
    answers = model.predict(rows, batch_size=2, on_error="missing")
    rows[3]["image"] = None
    assert answers == model.predict(rows, batch_size=2)
    assert answers[3]["weights"] == {"a": 1, "image": 0}
    with pytest.raises(ValueError, match="unknown on_error 'mising'.*mean 'missing'"):
        model.predict(rows, on_error="mising")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small model on disk."""
    build().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_answers_with_the_same_bits(saved: Path) -> None:
    model, twin = build().eval(), TransferModel.from_pretrained(saved)
    assert twin.predict(ROWS) == model.predict(ROWS)
    assert not twin.training
    assert {k: str(v) for k, v in twin.state_dict().items()} == {
        k: str(v) for k, v in model.state_dict().items()
    }
    assert all(encoder.pretrained for encoder in twin.encoders.values())
    files = {p.suffix for p in saved.rglob("*") if p.is_file()}
    assert not files & {".bin", ".pt", ".pth", ".pkl", ".pickle"}


def test_a_fresh_process_without_network_gives_the_same_bits(
    picture: Maker, clip: Maker, tmp_path: Path
) -> None:
    encoders = {
        "image": build_encoder("tiny-vit?width=16&layers=2&size=16"),
        "text": build_encoder("tiny-bert?width=16&layers=2&pool=mean"),
        "sound": build_encoder("tiny-wav2vec2?width=16&layers=1"),
    }
    model = build(**encoders).eval()
    with torch.no_grad():  # as after training: nothing at its initial value
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.fusion.standardise({n: (torch.randn(16), torch.rand(16) + 0.5) for n in encoders})
    (tmp_path / "picture.png").write_bytes(picture())
    (tmp_path / "clip.wav").write_bytes(clip(seconds=0.2))
    image, sound = str(tmp_path / "picture.png"), str(tmp_path / "clip.wav")
    rows = [
        {"image": image, "text": "apple", "sound": sound},
        {"image": image, "text": "a longer text", "sound": None},
        {"text": ""},
    ]
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    script = """
import json, sys
from pathlib import Path
from safetensors.torch import save_file
from mmtransfer import TransferModel
from mmtransfer.data.collate import Collate
folder = Path(sys.argv[1])
model = TransferModel.from_pretrained(folder / "model")
rows = json.loads((folder / "rows.json").read_text())
outputs = model(Collate(model.encoders, {})(list(enumerate(rows))).inputs, len(rows))
save_file({**outputs.logits, "weights": outputs.weights}, folder / "outputs.safetensors")
"""
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}
    environment["HF_HOME"] = str(tmp_path / "empty")  # nothing can come from a cache either
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    again = load_file(tmp_path / "outputs.safetensors")
    with torch.no_grad():
        outputs = model(Collate(model.encoders, {})(list(enumerate(rows))).inputs, len(rows))
    assert torch.equal(again.pop("weights"), outputs.weights)
    assert again.keys() == outputs.logits.keys()
    assert all(torch.equal(again[task], logits) for task, logits in outputs.logits.items())


@pytest.mark.parametrize("path", ["/no/such/model", "./nowhere", "~/nowhere-at-all", "a/b/c"])
def test_a_path_where_nothing_is_says_so(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=path):
        TransferModel.from_pretrained(path)


def test_a_directory_that_is_no_model_says_what_it_lacks(saved: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no saved model: it has no config\.json"):
        TransferModel.from_pretrained(empty)
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no model\.safetensors"):
        TransferModel.from_pretrained(saved)


def test_a_model_of_another_library_is_no_model(saved: Path) -> None:
    (saved / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="another library's model"):
        TransferModel.from_pretrained(saved)


def test_a_model_that_lacks_an_encoder_says_where(saved: Path) -> None:
    (saved / "encoders" / "b" / "encoder.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"encoders/b holds no saved encoder"):
        TransferModel.from_pretrained(saved)


def test_weights_of_another_architecture_say_where_they_differ(saved: Path, tmp_path: Path) -> None:
    weights = saved / "model.safetensors"
    for other, message in {
        "shape": r"'heads\.kind\.weight' has shape \(2, 8\), expected \(3, 8\)",
        "missing": r"1 tensors are missing, the first 'heads\.good\.bias'",
        "foreign": r"1 belong to no part, the first 'heads\.other\.bias'",
    }.items():
        build().save_pretrained(saved)
        state = load_file(weights)
        if other == "shape":
            build(classes="xy").save_pretrained(tmp_path / "other")
            state = load_file(tmp_path / "other" / "model.safetensors")
        elif other == "missing":
            del state["heads.good.bias"]
        else:
            state["heads.other.bias"] = torch.zeros(1)
        save_file(state, weights)
        with pytest.raises(ValueError, match=f"comes from another architecture.*{message}"):
            TransferModel.from_pretrained(saved)


@pytest.mark.parametrize("part", ["fusion", "tasks", "encoders"])
def test_a_saved_model_cannot_have_other_classes_called(
    part: str, saved: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "called"
    harm = {"class": "subprocess:Popen", "args": ["touch", str(mark)]}
    if part == "encoders":
        (saved / "encoders" / "a" / "encoder.json").write_text(json.dumps(harm))
    else:
        config = json.loads((saved / "config.json").read_text())
        config[part] = harm if part == "fusion" else {"kind": harm}
        (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'subprocess:Popen' is not an? "):
        TransferModel.from_pretrained(saved)
    assert not mark.exists()


def test_values_that_belong_to_no_row_only_carry_gradients() -> None:
    """A process that must take part in a step without rows of a modality: zeros, not absence."""
    model = build().train()
    spare = Inputs({"x": torch.randn(1, 3)}, torch.zeros(0, dtype=torch.int64))
    b = given([0, 1, 2, 3, 4], 1)
    before = model.encoders["a"].norm.running_mean.clone()
    with_spare = model({"a": spare, "b": b}, 5)
    assert torch.equal(model.encoders["a"].norm.running_mean, before)
    assert model.encoders["a"].training
    without = model({"b": b}, 5)
    assert torch.equal(with_spare.logits["kind"], without.logits["kind"])
    with_spare.logits["kind"].sum().backward()
    gradients = [p.grad for p in model.encoders["a"].parameters()]
    assert all(g is not None and not g.any() for g in gradients)


@pytest.mark.parametrize("fusion", ["gated", "late", "transformer"])
def test_outputs_of_subsets_are_those_with_the_others_absent(fusion: str) -> None:
    model = build(fusion, a=Numbers(), b=Numbers(5), c=Numbers(6))
    model.provide(["subsets"])
    inputs = {n: given([0, 1, 2, 3], k) for k, n in enumerate("abc")}
    ready = {n: model.eval().encode(n, one, 4) for n, one in inputs.items()}
    assert model(ready, 4).subsets is None
    found = model.train()(ready, 4).subsets["kind"]
    assert found.shape == (4, 6, 3)
    assert not found.requires_grad
    for k, subset in enumerate(proper_subsets(["a", "b", "c"])):
        alone = model.eval()({n: ready[n] for n in subset}, 4).logits["kind"]
        torch.testing.assert_close(found[:, k], alone)


def test_asking_for_more_outputs_changes_none_of_the_others() -> None:
    model = build(a=Numbers(dropout=0.5), b=Numbers(5)).train()
    model.fusion.drop.p = 0.3
    inputs = {"a": given([0, 1, 2]), "b": given([0, 1, 2], 1)}

    def run() -> Tensor:
        torch.manual_seed(5)
        return torch.cat([model(inputs, 3).logits["kind"], torch.rand(1, 3)])

    plain = run()
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    model.provide(ON_DEMAND, seed=7)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(run(), plain)
    assert model.fusion.drop.training
    first = {n: t.clone() for n, t in model.unimodal.state_dict().items()}
    model.provide(ON_DEMAND, seed=7)
    assert all(torch.equal(first[n], t) for n, t in model.unimodal.state_dict().items())
    model.provide(())
    assert model.unimodal is None
    with pytest.raises(ValueError, match=r"unknown output 'unimodel'.*mean 'unimodal'"):
        model.provide(["unimodel"])


def test_unimodal_heads_see_one_modality_each_and_only_the_attached_reach_its_encoder() -> None:
    model = build().train()
    model.provide(["unimodal", "unimodal_detached"])
    inputs = {"a": given([0, 1, 2]), "b": given([0, 1, 2], 1)}
    outputs = model(inputs, 3)
    assert torch.equal(outputs.unimodal["kind"], outputs.unimodal_detached["kind"])
    assert outputs.unimodal["good"].shape == (3, 2, 2)
    outputs.unimodal_detached["kind"][:, 0].sum().backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"unimodal.heads.a.kind.weight", "unimodal.heads.a.kind.bias"}
    torch.randn_like(outputs.unimodal["kind"][:, 0]).mul(
        outputs.unimodal["kind"][:, 0]
    ).sum().backward()
    assert any(p.grad is not None for p in model.encoders["a"].parameters())
    assert all(p.grad is None or not p.grad.any() for p in model.encoders["b"].parameters())


def test_unimodal_heads_see_standardised_features() -> None:
    model = build()
    model.provide(["unimodal"])
    features = Features.of(torch.randn(50, 4) * 3 + 7)
    mean, deviation = features.pooled().mean(0), features.pooled().std(0)
    model.standardise({"a": (mean, deviation)})
    found = model.train()({"a": features}, 50).unimodal["kind"][:, 0]
    head = model.unimodal.heads["a"]["kind"]
    torch.testing.assert_close(found, head((features.pooled() - mean) / deviation))
