"""Mistakes that would end in somebody else's error message end in a sentence about the plug-in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtransfer import Encoder, Features, Fused, Fusion
from mmtransfer.tasks.classification import Classification
from mmtransfer.testing import ContractError, check_encoder, check_fusion, check_task


def series(values: list[list[float]]) -> dict[str, Tensor]:
    """Lists of numbers to `x (B, T, 1)` and `mask (B, T)`."""
    size = max(map(len, values))
    x = torch.tensor([v + [0.0] * (size - len(v)) for v in values]).unsqueeze(-1)
    return {"x": x, "mask": torch.arange(size) < torch.tensor([[len(v)] for v in values])}


class Good(Encoder):
    """A layer per token."""

    def __init__(self, width: int = 4, gain: float = 1.0) -> None:
        super().__init__()
        self.width, self.gain = width, gain
        self.first, self.second = nn.Linear(1, width), nn.Linear(width, width)
        self.collate = series

    def forward(self, x: Tensor, mask: Tensor) -> Features:
        return Features(self.second(torch.tanh(self.first(self.gain * x))), mask)


class WithoutWidth(Good):
    def __init__(self) -> None:
        super().__init__()
        del self.width


class WithoutCollate(Good):
    def __init__(self) -> None:
        super().__init__()
        del self.collate


class CollateRaises(Good):
    def __init__(self) -> None:
        super().__init__()
        self.collate = texts


def texts(values: list[Any]) -> dict[str, Tensor]:
    return {"ids": torch.tensor([len(value.split()) for value in values])}


class OtherKeys(Good):
    def forward(self, samples: Tensor, mask: Tensor) -> Features:  # type: ignore[override]
        return super().forward(samples, mask)


class OneVectorOfWrongRank(Good):
    def forward(self, x: Tensor, mask: Tensor) -> Features:
        return Features(super().forward(x, mask).pooled(), mask)


class MaskOfNumbers(Good):
    def forward(self, x: Tensor, mask: Tensor) -> Features:
        return Features(super().forward(x, mask).tokens, mask.long())


class DropsOutAlways(Good):
    def forward(self, x: Tensor, mask: Tensor) -> Features:
        return Features(F.dropout(super().forward(x, mask).tokens), mask)


class CollateUsesWeights(Good):
    def __init__(self) -> None:
        super().__init__()
        self.collate = self.scaled

    def scaled(self, values: list[list[float]]) -> dict[str, Tensor]:
        inputs = series(values)
        return {**inputs, "x": inputs["x"] * self.first.weight[0]}


class OptionNotKept(Good):
    def __init__(self, width: int = 4, depth: int = 2) -> None:
        super().__init__(width)


class OptionLost(Good):
    def config(self) -> dict[str, Any]:
        return {k: v for k, v in super().config().items() if k != "gain"}


class WidthLost(Good):
    def config(self) -> dict[str, Any]:
        return {k: v for k, v in super().config().items() if k != "width"}


class OptionThatJSONCannotHold(Good):
    def __init__(self, width: int = 4, scale: Tensor | None = None) -> None:
        super().__init__(width)
        self.scale = torch.ones(1)


class LayersInAList(Good):
    def __init__(self) -> None:
        super().__init__()
        self.more = [nn.Linear(4, 4)]

    def forward(self, x: Tensor, mask: Tensor) -> Features:
        return Features(self.more[0](super().forward(x, mask).tokens), mask)


class ForeignStage(Good):
    @property
    def stages(self) -> list[nn.Module]:
        return [self.first, nn.Linear(4, 4)]


class StagesByName(Good):
    @property
    def stages(self) -> list[Any]:
        return ["first", "second"]


class FingerprintOfTheFirstLayer(Good):
    def fingerprint(self) -> str:
        return str(self.first.weight.sum().item()) + str(self.first.bias.sum().item())


class CutThatIsNone(Good):
    @property
    def cuts(self) -> Sequence[int]:
        return [1]


def test_the_good_one_passes() -> None:
    check_encoder(Good(), [[1.0, 2.0, 3.0], [4.0]])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (WithoutWidth, "width must be set to the D of the features"),
        (WithoutCollate, r"collate\(values\) is missing"),
        (
            CollateRaises,
            "collate fails with AttributeError: 'list' object has no attribute 'split'",
        ),
        (OtherKeys, r"forward on what collate gave \(x, mask\) fails .* keyword argument 'x'"),
        (OneVectorOfWrongRank, r"forward on .* fails .* need tokens \(B, T, D\) and mask \(B, T\)"),
        (MaskOfNumbers, r"the mask must be bool, found torch\.int64"),
        (DropsOutAlways, "differ from call to call in evaluation mode: is there drop-out"),
        (CollateUsesWeights, "collate touches parameters"),
        (OptionNotKept, "keep the constructor argument 'depth' as the attribute self.depth"),
        (lambda: OptionLost(gain=2.0), "the reloaded encoder differs: is an option lost"),
        (lambda: WidthLost(width=6), "loading the weights into the reloaded encoder .*option lost"),
        (OptionThatJSONCannotHold, "config.* plain values that JSON holds: .* Tensor"),
        (LayersInAList, "'more' is a plain list: its parameters are neither trained nor saved"),
        (ForeignStage, "stage 1 is no part of the encoder"),
        (StagesByName, "stage 0 is a str, expected a module"),
        (FingerprintOfTheFirstLayer, r"ignores a change of weights \('second\.bias'\)"),
        (CutThatIsNone, r"cut 1: below\(\) fails with NotImplementedError"),
    ],
)
def test_an_encoder_is_told_what_is_wrong_with_it(build: Any, message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ContractError, match=message):
        check_encoder(build(), [[1.0, 2.0, 3.0], [4.0]])


def test_a_class_inside_a_function_is_refused() -> None:
    class Inside(Good): ...

    with pytest.raises(ContractError, match="Inside is defined inside a function"):
        check_encoder(Inside(), [[1.0], [2.0]])


class Mean(Fusion):
    """Mean of the projected vectors of those present."""

    def __init__(self, widths: dict[str, int], width: int) -> None:
        super().__init__(widths, width)
        self.projections = nn.ModuleDict({n: nn.Linear(d, width) for n, d in self.widths.items()})

    def forward(self, features: dict[str, Features]) -> Fused:
        here = torch.stack([features[n].present for n in self.modalities], 1)  # (B, M)
        vectors = [self.projections[n](features[n].pooled()) for n in self.modalities]
        stacked = torch.stack(vectors, 1) * here.unsqueeze(-1).to(vectors[0].dtype)
        return Fused(stacked.sum(1) / here.sum(1, keepdim=True).clamp_min(1).to(stacked.dtype))


class OtherArguments(Fusion):
    def __init__(self, width: int) -> None:
        super().__init__({"a": width}, width)


class WidthsKeptBack(Mean):
    def __init__(self, widths: dict[str, int], width: int) -> None:
        super().__init__(widths, width)
        self.widths = dict.fromkeys(widths, width)


class NamesItsModalities(Mean):
    def forward(self, features: dict[str, Features]) -> Fused:
        return Fused(self.projections["image"](features["image"].pooled()))


class GivesTheVector(Mean):
    def forward(self, features: dict[str, Features]) -> Any:
        return super().forward(features).vector


class FactorsInADictionary(Mean):
    def __init__(self, widths: dict[str, int], width: int) -> None:
        super().__init__(widths, width)
        self.factors = {name: nn.Parameter(torch.ones(width)) for name in widths}


class HearsTheAbsent(Mean):
    def forward(self, features: dict[str, Features]) -> Fused:
        # Padding is left alone here: only rows without the modality are read as if they had it.
        shown = {
            n: Features(f.tokens, f.mask | ~f.present.unsqueeze(1)) for n, f in features.items()
        }
        return super().forward(shown)


class NoiseInEvaluation(Mean):
    def forward(self, features: dict[str, Features]) -> Fused:
        return Fused(F.dropout(super().forward(features).vector))


class NeedsSomething(Mean):
    def forward(self, features: dict[str, Features]) -> Fused:
        if not any(bool(f.present.any()) for f in features.values()):
            raise RuntimeError("nothing to fuse")
        return super().forward(features)


def test_the_good_fusion_passes() -> None:
    check_fusion(Mean)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OtherArguments, r"building it from \(widths, width\) fails with TypeError"),
        (WidthsKeptBack, r"must be passed on to super\(\)\.__init__"),
        (NamesItsModalities, "with 1 modalities: forward fails with KeyError: 'image'"),
        (GivesTheVector, "forward gave a Tensor, not Fused"),
        (FactorsInADictionary, "'factors' is a plain dict: its parameters are neither trained"),
        (HearsTheAbsent, "depends on the values of an absent modality"),
        (NoiseInEvaluation, "differs from call to call in evaluation mode"),
        (NeedsSomething, "rows without any modality fails .* nothing to fuse"),
    ],
)
def test_a_fusion_is_told_what_is_wrong_with_it(kind: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_fusion(kind)


class EncodeNeedsLabels(Classification):
    def encode(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor([self._classes.index(value) for value in values])


class LabelsAreLost(Classification):
    def labelled(self, targets: Tensor) -> Tensor:
        return targets > 0  # class 0 is a class, too


class PredictsTensors(Classification):
    def predict(self, logits: Tensor) -> list[dict[str, Any]]:
        return [{"label": label} for label in logits.argmax(-1)]


class LossOfLogarithms(Classification):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return torch.where(self.labelled(targets), torch.log(logits[:, 0] * 0), 0.0)


class MetricsOfOtherShape(Classification):
    def metrics(self) -> Any:
        found = super().metrics()
        found.update = lambda logits: None
        return found


class HeadForgotten(Classification):
    def head(self, width: int) -> Any:
        return None


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (EncodeNeedsLabels, "encode of the values and None fails with ValueError: None"),
        (LabelsAreLost, "rows that have a label are not those of labelled"),
        (PredictsTensors, "predict must give plain values that JSON holds: .*Tensor"),
        (LossOfLogarithms, "the loss is not finite"),
        (MetricsOfOtherShape, "metrics fails with TypeError"),
        (HeadForgotten, "head fails with TypeError: 'NoneType' object is not callable"),
    ],
)
def test_a_task_is_told_what_is_wrong_with_it(kind: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_task(kind(), ["apple", "pear", "apple"])


def test_what_is_no_task_is_refused() -> None:
    with pytest.raises(ContractError, match="Linear is no subclass of Task"):
        check_task(nn.Linear(2, 2), ["apple"])  # type: ignore[arg-type]
