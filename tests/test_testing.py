"""The conformance kit lets good plug-ins pass and names every planted defect."""

import uuid
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from mmtransfer.encoders.base import Encoder
from mmtransfer.features import Features, Fused
from mmtransfer.fusion.base import Fusion
from mmtransfer.tasks.classification import IGNORE, Classification
from mmtransfer.testing import ContractError, check_cuts, check_encoder, check_fusion, check_task

SAMPLES = [[1, 2, 3, 4], [5], [6, 7]]


def pad(values: list[list[int]]) -> dict[str, Tensor]:
    """Lists of ids to `ids (B, T)` and `mask (B, T)`."""
    size = max(map(len, values))
    ids = torch.tensor([v + [0] * (size - len(v)) for v in values])
    return {"ids": ids, "mask": torch.arange(size) < torch.tensor([[len(v)] for v in values])}


class Words(Encoder):
    """Keeps the contract: an embedding and a layer per token, padding masked."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.embed, self.layer = nn.Embedding(10, width), nn.Linear(width, width)
        self.collate = pad

    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        return Features(self.layer(self.embed(ids)), mask)


class NotANumberInPadding(Words):
    """Keeps the contract: what lies under the mask is nobody's business."""

    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        features = super().forward(ids, mask)
        filled = features.tokens.masked_fill(~mask.unsqueeze(-1), float("nan"))
        return Features(filled, mask)


class WrongWidth(Words):
    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        return Features(super().forward(ids, mask).tokens[..., 1:], mask)


class PaddingCounts(Words):
    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        return Features.of(super().forward(ids, mask).tokens)


class PaddingLeaks(Words):
    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        tokens = super().forward(ids, mask).tokens
        return Features(tokens + tokens.mean(1, keepdim=True), mask)


class AttendsAcrossTheBatch(Words):
    """`nn.MultiheadAttention` without batch_first, fed (B, T, D)."""

    def __init__(self, width: int = 4) -> None:
        super().__init__(width)
        self.attention = nn.MultiheadAttention(width, 1)

    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        tokens = super().forward(ids, mask).tokens
        return Features(self.attention(tokens, tokens, tokens)[0], mask)


class BatchNormAlwaysTrains(Words):
    def __init__(self, width: int = 4) -> None:
        super().__init__(width)
        self.norm = nn.BatchNorm1d(width)

    def train(self, mode: bool = True) -> "BatchNormAlwaysTrains":
        super().train(mode)
        self.norm.train()
        return self

    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        tokens = super().forward(ids, mask).tokens
        return Features(self.norm(tokens.mT).mT, mask)


class NoRealToken(Words):
    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        return Features(super().forward(ids, mask).tokens, mask & (ids != 5))


class NotFinite(Words):
    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        return Features(super().forward(ids, mask).tokens / 0, mask)


class GivesATensor(Words):
    def forward(self, ids: Tensor, mask: Tensor) -> Any:
        return super().forward(ids, mask).tokens


class LosesRows(Words):
    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        features = super().forward(ids, mask)
        return Features(features.tokens[:1], mask[:1])


class OverlappingStages(Words):
    @property
    def stages(self) -> list[nn.Module]:
        return [self.embed, nn.ModuleList([self.embed, self.layer])]


class EmptyStages(Words):
    @property
    def stages(self) -> list[nn.Module]:
        return []


class StageWithoutParameters(Words):
    @property
    def stages(self) -> list[nn.Module]:
        return [self.embed, nn.ReLU(), self.layer]


class IdleParameter(Words):
    def __init__(self, width: int = 4) -> None:
        super().__init__(width)
        self.idle = nn.Linear(2, 2)


class ConstantFingerprint(Words):
    def fingerprint(self) -> str:
        return "always the same"


class RestlessFingerprint(Words):
    def fingerprint(self) -> str:
        return uuid.uuid4().hex


class ForgetsOnSaving(Words):
    """Draws something that is neither weight nor option."""

    def __init__(self, width: int = 4) -> None:
        super().__init__(width)
        self.shift = torch.randn(width)

    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        return Features(super().forward(ids, mask).tokens + self.shift, mask)


class CollateCannotTravel(Words):
    def __init__(self, width: int = 4) -> None:
        super().__init__(width)
        self.collate = lambda values: pad(values)


class CollateGivesLists(Words):
    def __init__(self, width: int = 4) -> None:
        super().__init__(width)
        self.collate = lists


def lists(values: list[list[int]]) -> dict[str, Any]:
    return {"ids": values}


@pytest.mark.parametrize("kind", [Words, NotANumberInPadding])
def test_a_good_encoder_passes_and_is_left_as_it_was(kind: type[Words]) -> None:
    encoder = kind()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    check_encoder(encoder, SAMPLES)
    assert all(torch.equal(before[name], t) for name, t in encoder.state_dict().items())
    assert all(p.grad is None for p in encoder.parameters())


class Divided(Words):
    """Keeps the contract: a cut behind the embedding, drop-out behind the cut."""

    dropped_below = False

    def __init__(self, width: int = 4) -> None:
        super().__init__(width)
        self.layer = nn.Sequential(nn.Dropout(0.5), self.layer)
        self.drop = nn.Dropout(0.5)

    @property
    def cuts(self) -> Sequence[int]:
        return [1]

    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        return self.above(1, self.below(1, ids=ids, mask=mask))

    def below(self, depth: int, **inputs: Tensor) -> Features:
        x = self.embed(inputs["ids"])
        return Features(self.drop(x) if self.dropped_below else x, inputs["mask"])

    def above(self, depth: int, activations: Features) -> Features:
        return Features(self.layer(activations.tokens), activations.mask)


class DropsWhatIsFrozen(Divided):
    dropped_below = True


class ReversedStages(Words):
    @property
    def stages(self) -> list[nn.Module]:
        return [self.layer, self.embed]


class UnknownModality(Words):
    modality = "picture"


class DoublePrecision(Words):
    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        return Features(super().forward(ids, mask).tokens.double(), mask)


def test_the_check_of_cuts_leaves_no_trace() -> None:
    encoder = Divided().eval()
    encoder.embed.requires_grad_(False)
    state = torch.get_rng_state()
    check_cuts(encoder, SAMPLES)
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module.training for module in encoder.modules())
    assert [p.requires_grad for p in encoder.parameters()] == [False, True, True]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (WrongWidth, "features have width 3, the encoder says width = 4"),
        (PaddingCounts, "does padding leak"),
        (PaddingLeaks, "does padding leak"),
        (AttendsAcrossTheBatch, "other features alone than among others"),
        (BatchNormAlwaysTrains, "batch norm run in training mode"),
        (NoRealToken, "no real token"),
        (NotFinite, "not all finite"),
        (GivesATensor, "forward gave a Tensor, not Features"),
        (LosesRows, "3 samples gave 1 rows"),
        (OverlappingStages, "stages 0 and 1 share a parameter"),
        (EmptyStages, "stages is empty"),
        (StageWithoutParameters, "stage 1 has no parameters"),
        (IdleParameter, r"parameter 'idle\.weight' gets no gradient"),
        (ConstantFingerprint, "ignores a change of weights"),
        (RestlessFingerprint, "changes from call to call"),
        (ForgetsOnSaving, "the reloaded encoder differs"),
        (CollateCannotTravel, "pickle"),
        (CollateGivesLists, "dictionary of tensors"),
        (ReversedStages, r"from input to output, but start in order \[1, 0\]"),
        (UnknownModality, "modality is 'picture', expected one of .*'image'"),
        (DoublePrecision, "features are torch.float64, the parameters torch.float32"),
        (DropsWhatIsFrozen, "drop-out that belongs to no stage"),
    ],
)
def test_a_planted_defect_of_an_encoder_is_named(kind: type[Words], message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ContractError, match=message):
        check_encoder(kind(), SAMPLES)


def test_what_is_no_encoder_and_what_is_no_sample_is_refused() -> None:
    with pytest.raises(ContractError, match="Linear is no subclass of Encoder"):
        check_encoder(nn.Linear(2, 2), SAMPLES)  # type: ignore[arg-type]
    with pytest.raises(ContractError, match="at least two samples"):
        check_encoder(Words(), SAMPLES[:1])


class Sum(Fusion):
    """Keeps the contract: the mean of the projections of those present, with equal weights."""

    def __init__(self, widths: dict[str, int], width: int) -> None:
        super().__init__(widths, width)
        self.projections = nn.ModuleDict({n: nn.Linear(d, width) for n, d in self.widths.items()})

    def vectors(self, features: dict[str, Features]) -> Tensor:
        """(B, M, width) in the order of `modalities`."""
        parts = [self.projections[name](features[name].pooled()) for name in self.modalities]
        return torch.stack(parts, 1)

    def weights(self, features: dict[str, Features]) -> Tensor:
        """(B, M), equal for those present."""
        here = torch.stack([features[name].present for name in self.modalities], 1)
        return here / here.sum(1, keepdim=True).clamp_min(1)

    def forward(self, features: dict[str, Features]) -> Fused:
        vectors, weights = self.vectors(features), self.weights(features)
        weights = weights.to(vectors.dtype)
        return Fused((weights.unsqueeze(-1) * vectors).sum(1), weights)


class MatesLeak(Sum):
    def forward(self, features: dict[str, Features]) -> Fused:
        fused = super().forward(features)
        return Fused(fused.vector - fused.vector.mean(0), fused.weights)


class AttentionAcrossTheBatch(Sum):
    def __init__(self, widths: dict[str, int], width: int) -> None:
        super().__init__(widths, width)
        self.attention = nn.MultiheadAttention(width, 1)

    def forward(self, features: dict[str, Features]) -> Fused:
        vector = super().forward(features).vector  # (B, width): read as one sequence of length B
        return Fused(self.attention(vector, vector, vector)[0])


class IgnoresMasks(Sum):
    def vectors(self, features: dict[str, Features]) -> Tensor:
        parts = [self.projections[n](features[n].tokens.mean(1)) for n in self.modalities]
        return torch.stack(parts, 1)


class HearsTheAbsent(Sum):
    def forward(self, features: dict[str, Features]) -> Fused:
        every = {n: Features.of(f.tokens) for n, f in features.items()}
        return Fused(self.vectors(every).sum(1))


class KeepsKeyOrder(Sum):
    def __init__(self, widths: dict[str, int], width: int) -> None:
        super().__init__(widths, width)
        self.join = nn.Linear(len(widths) * width, width)

    def forward(self, features: dict[str, Features]) -> Fused:
        parts = [self.projections[name](one.pooled()) for name, one in features.items()]
        return Fused(self.join(torch.cat(parts, 1)))


class FactorsInAList(Sum):
    """As in published low-rank fusions: never trained, never saved."""

    def __init__(self, widths: dict[str, int], width: int) -> None:
        super().__init__(widths, width)
        self.factors = [nn.Parameter(torch.randn(width)) for _ in widths]

    def forward(self, features: dict[str, Features]) -> Fused:
        vectors = self.vectors(features)
        here = self.weights(features).unsqueeze(-1).to(vectors.dtype)
        factors = torch.stack(self.factors).to(vectors)
        return Fused((here * vectors * factors).sum(1))


class LayersInAList(Sum):
    def __init__(self, widths: dict[str, int], width: int) -> None:
        super().__init__(widths, width)
        self.layers = [nn.Linear(width, width)]

    def forward(self, features: dict[str, Features]) -> Fused:
        return Fused(self.layers[0](super().forward(features).vector))


class WeighsTheAbsent(Sum):
    def weights(self, features: dict[str, Features]) -> Tensor:
        return torch.full_like(super().weights(features), 1 / len(self.modalities))


class WeightsMissTheSum(Sum):
    def forward(self, features: dict[str, Features]) -> Fused:
        fused = super().forward(features)
        return Fused(fused.vector, fused.weights / 2)


class WeightsOfAnotherShape(Sum):
    def forward(self, features: dict[str, Features]) -> Fused:
        return Fused(super().forward(features).vector, torch.ones(1, 1))


class WrongFusedWidth(Sum):
    def forward(self, features: dict[str, Features]) -> Fused:
        return Fused(super().forward(features).vector[:, 1:])


class NothingIsNotANumber(Sum):
    def weights(self, features: dict[str, Features]) -> Tensor:
        here = torch.stack([features[name].present for name in self.modalities], 1)
        return torch.zeros(here.shape).masked_fill(~here, float("-inf")).softmax(1)


class IdleFusionParameter(Sum):
    def __init__(self, widths: dict[str, int], width: int) -> None:
        super().__init__(widths, width)
        self.idle = nn.Linear(2, 2)


class AlwaysFullPrecision(Sum):
    def forward(self, features: dict[str, Features]) -> Fused:
        fused = super().forward(features)
        return Fused(fused.vector.float(), fused.weights)


class Deaf(Sum):
    def forward(self, features: dict[str, Features]) -> Fused:
        heard = dict(features)
        name = self.modalities[-1]
        if len(features) == 5:
            heard[name] = Features(torch.zeros_like(features[name].tokens), features[name].mask)
        return super().forward(heard)


class OfOneDevice(Sum):
    def forward(self, features: dict[str, Features]) -> Fused:
        fused = super().forward(features)
        dtype = fused.vector.dtype
        return Fused(fused.vector + torch.zeros(fused.vector.shape, dtype=dtype), fused.weights)


class OfOneSize(Sum):
    def forward(self, features: dict[str, Features]) -> Fused:
        fused = super().forward(features)
        size = len(fused.vector)  # a constant of the exported graph, unlike shape[0]
        ones = torch.ones(size, 1, dtype=fused.vector.dtype, device=fused.vector.device)
        return Fused(fused.vector * ones)


class LooksAtItsRows(Sum):
    def forward(self, features: dict[str, Features]) -> Fused:
        fused = super().forward(features)
        return Fused(fused.vector * (1.0 if float(fused.vector.detach().sum()) else 2.0))


def test_a_good_fusion_passes() -> None:
    check_fusion(Sum)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (MatesLeak, "depends on batch mates"),
        (AttentionAcrossTheBatch, "depends on batch mates"),
        (IgnoresMasks, "depends on padding"),
        (HearsTheAbsent, "depends on padding"),
        (KeepsKeyOrder, "depends on the order of the modalities"),
        (FactorsInAList, "'factors' is a plain list"),
        (LayersInAList, "'layers' is a plain list"),
        (WeighsTheAbsent, "an absent modality has a weight"),
        (WeightsMissTheSum, "do not add up to 1"),
        (WeightsOfAnotherShape, r"weights must be \(B, M\)"),
        (WrongFusedWidth, r"vector is \(6, 7\)"),
        (NothingIsNotANumber, "without any modality is not finite"),
        (IdleFusionParameter, r"'idle\.weight' gets no finite gradient"),
        (Deaf, r"with 5 modalities: parameter .* gets a gradient of zeros only"),
        (OfOneDevice, r"another device fails"),
        (LooksAtItsRows, r"another device fails"),
        (OfOneSize, r"with 3 modalities: torch\.export fails"),
        (AlwaysFullPrecision, r"bfloat16: gave torch\.float32 out"),
    ],
)
def test_a_planted_defect_of_a_fusion_is_named(kind: type[Fusion], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_fusion(kind)


def test_what_is_no_fusion_is_refused() -> None:
    with pytest.raises(ContractError, match="Linear is no subclass of Fusion"):
        check_fusion(lambda widths, width: nn.Linear(2, 2))  # type: ignore[arg-type, return-value]


class MeanLoss(Classification):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, ignore_index=IGNORE)


class UnlabelledCosts(Classification):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets.clamp_min(0), reduction="none")


class NoneIsAClass(Classification):
    def encode(self, values: Sequence[Any]) -> Tensor:
        return super().encode(values).clamp_min(0)


class ForgetsClasses(Classification):
    def config(self) -> dict[str, Any]:
        return {**super().config(), "classes": ["pear", "apple", "plum"]}


class UnknownScore(Classification):
    def metrics(self) -> MetricCollection:
        return MetricCollection({"f1_macro": super().metrics()["f1_macro"]})


class PredictsTooFew(Classification):
    def predict(self, logits: Tensor) -> list[dict[str, Any]]:
        return super().predict(logits[1:])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (MeanLoss, "one value per row"),
        (UnlabelledCosts, "an unlabelled row must have loss 0"),
        (NoneIsAClass, "None must be encoded as unlabelled"),
        (ForgetsClasses, "the reloaded task encodes otherwise"),
        (UnknownScore, "score 'accuracy' is none of the metrics"),
        (PredictsTooFew, "one dictionary per row"),
    ],
)
def test_a_planted_defect_of_a_task_is_named(kind: type[Classification], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_task(kind(), ["apple", "pear", "plum", "apple"])
