"""A strategy: phases that say what trains when and how fast, and methods that act on the loop."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from mmtransfer.features import RowContext
from mmtransfer.methods.base import Method, build_method
from mmtransfer.model import ON_DEMAND, TransferModel
from mmtransfer.registry import check_options, nearest, strategies

SCHEDULES = ("cosine", "constant")
#: what a method may need: outputs of the model, and what phases and data must be like
NEEDS = (
    *ON_DEMAND,
    "trained_encoders",
    "numbered_rows",
    "repeated_backward",
    "second_pass",
    "source",
    "unmixed_rows",
)
SPLIT_NEEDS = ("unlabelled", "source")


@dataclass(frozen=True)
class Phase:
    """For some epochs, which parts train at which rate.

    lr: peak rate of fusion and heads, unimodal ones too; 0 leaves them frozen
    encoder_lr: peak rate of the encoders, one for all or by modality; 0 leaves an encoder frozen
    top_stages: train only the last so many stages of an encoder, one for all or by modality
    layer_decay: each stage below the top one trains at this share of the rate of the one above
    weight_decay: of AdamW, on matrices only
    warmup: share of the steps during which the rate rises; then it falls as `schedule` says
    """

    epochs: int
    lr: float = 1e-3
    encoder_lr: float | dict[str, float] = 0.0
    top_stages: int | dict[str, int] | None = None
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    warmup: float = 0.1
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"a phase needs at least 1 epoch, found {self.epochs}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1], found {self.warmup}")
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"unknown schedule {self.schedule!r}.{nearest(self.schedule, SCHEDULES)}"
            )
        if self.lr < 0 or any(rate < 0 for rate in _values(self.encoder_lr)):
            raise ValueError(f"rates must not be negative: {self.lr}, {self.encoder_lr}")

    def encoder_rate(self, modality: str) -> float:
        return _of(self.encoder_lr, modality, 0.0)

    def check(self, model: TransferModel) -> None:
        """Raise `ValueError` for modalities or stages that the model does not have."""
        for setting in (self.encoder_lr, self.top_stages):
            for name in setting if isinstance(setting, dict) else ():
                if name not in model.encoders:
                    raise ValueError(f"unknown modality {name!r}.{nearest(name, model.encoders)}")
        rates = {name: self.encoder_rate(name) for name in model.encoders}
        if not self.lr and not any(rates.values()):
            raise ValueError("the phase trains nothing: lr and every encoder_lr are 0")
        for name in (name for name, rate in rates.items() if rate):
            stages = len(model.encoders[name].stages)
            count = _of(self.top_stages, name, stages)
            if not 1 <= count <= stages:
                raise ValueError(f"encoder {name!r} has {stages} stages, top_stages is {count}")

    def apply(self, model: TransferModel) -> list[dict[str, Any]]:
        """Freeze and unfreeze the model's parts; -> parameter groups for the optimiser.

        Raises `ValueError` as `check` does.
        """
        self.check(model)
        model.requires_grad_(False)
        groups: list[dict[str, Any]] = []
        if self.lr:
            joint: list[nn.Module | None] = [model.fusion, model.heads, model.unimodal]
            groups += self._groups([m for m in joint if m is not None], self.lr, "fusion")
        for name, encoder in model.encoders.items():
            rate = self.encoder_rate(name)
            if not rate:
                continue
            stages = encoder.stages
            count = _of(self.top_stages, name, len(stages))
            staged = {id(p) for stage in stages for p in stage.parameters()}
            for depth, stage in enumerate(reversed(stages[len(stages) - count :])):
                groups += self._groups([stage], rate * self.layer_decay**depth, name)
            if count == len(stages):  # parameters outside every stage go with the first
                loose = nn.ParameterList(p for p in encoder.parameters() if id(p) not in staged)
                groups += self._groups([loose], rate * self.layer_decay ** (count - 1), name)
        return groups

    def _groups(self, modules: list[nn.Module], rate: float, name: str) -> list[dict[str, Any]]:
        parameters = [p for module in modules for p in module.parameters()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        # Biases and norms are not decayed (He et al., 2019).
        split = (
            ([p for p in parameters if p.ndim > 1], self.weight_decay),
            ([p for p in parameters if p.ndim <= 1], 0.0),
        )
        return [
            {"params": chosen, "lr": rate, "weight_decay": decay, "name": name}
            for chosen, decay in split
            if chosen
        ]


@dataclass
class Strategy:
    """Phases, one after the other, and methods, in the order in which they act."""

    phases: list[Phase]
    methods: list[Method] = field(default_factory=list)

    @property
    def needs(self) -> set[str]:
        """What its methods need, out of `NEEDS`."""
        return {need for method in self.methods for need in method.needs}

    @property
    def frozen(self) -> bool:
        """True when no phase trains any part of an encoder."""
        return not any(rate for phase in self.phases for rate in _values(phase.encoder_lr))

    def config(self) -> dict[str, Any]:
        return {
            "phases": [asdict(phase) for phase in self.phases],
            "methods": [method.config() for method in self.methods],
        }


def check_plan(
    strategy: Strategy, model: TransferModel, seed: int = 0, splits: Collection[str] = ()
) -> None:
    """Raise `ValueError` for a phase or method that names what model or data do not have."""
    for phase in strategy.phases:
        phase.check(model)
    kinds = {name: encoder.modality for name, encoder in model.encoders.items()}
    for method in strategy.methods:
        check_needs(method, strategy)
        for split in SPLIT_NEEDS:
            if split in method.needs and split not in splits:
                raise ValueError(
                    f"{type(method).__name__} needs rows of a split {split!r}, and there is none; "
                    f"found {', '.join(splits)}"
                )
        method.on_rows([], RowContext(seed, 0, list(model.encoders), kinds))


def check_needs(method: Method, strategy: Strategy) -> None:
    """Raise `ValueError` for a need that is unknown, or that the phases do not meet."""
    name = type(method).__name__
    for need in method.needs:
        if need not in NEEDS:
            raise ValueError(f"{name} needs an unknown {need!r}.{nearest(need, NEEDS)}")
        if need == "trained_encoders" and strategy.frozen:
            raise ValueError(
                f"{name} acts on encoders, and no phase trains one: give a phase an encoder_lr, or "
                "leave the method out"
            )
        for other in strategy.methods if need == "unmixed_rows" else ():
            if other.changes:
                raise ValueError(
                    f"{name} knows each row as it is in the data, and {type(other).__name__} mixes "
                    "it with others: leave one of the two out"
                )
        for other in strategy.methods[: strategy.methods.index(method)]:
            changed = type(other).on_gradients is not Method.on_gradients
            if need == "second_pass" and changed:
                raise ValueError(
                    f"{name} makes the gradients anew, without what {type(other).__name__} has "
                    f"done to them: list {name} before it"
                )
        if need.startswith("unimodal") and not strategy.phases[0].lr:
            raise ValueError(
                f"{name} needs unimodal heads, which train at the rate of fusion and heads, and "
                "the first phase has lr 0"
            )


def build_strategy(
    spec: str | Mapping[str, Any] | Strategy,
    methods: list[Any] | None = None,
    **options: Any,
) -> Strategy:
    """A strategy by preset name with its options, written out as `{"phases": [...]}`, or as it is.

    Raises `ValueError` for an unknown name, option or phase setting, with the nearest valid one.
    """
    extra = [build_method(method) for method in methods or []]
    if isinstance(spec, Strategy):
        return Strategy(spec.phases, [*spec.methods, *extra])
    if isinstance(spec, Mapping) and "name" not in spec:
        check_options(Strategy, spec, "a strategy")
        phases = []
        for number, phase in enumerate(spec["phases"], start=1):
            check_options(Phase, phase, f"phase {number}")
            phases.append(Phase(**phase))
        return Strategy(phases, [*map(build_method, spec.get("methods", [])), *extra])
    strategy: Strategy = strategies.build(spec, **options)
    return Strategy(strategy.phases, [*strategy.methods, *extra])


def _values(setting: Any) -> list[Any]:
    return list(setting.values()) if isinstance(setting, dict) else [setting]


def _of(setting: Any, modality: str, default: Any) -> Any:
    found = setting.get(modality) if isinstance(setting, dict) else setting
    return default if found is None else found
