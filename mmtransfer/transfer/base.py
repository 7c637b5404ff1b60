"""A strategy: phases that say what trains when and how fast, adapters, methods of the loop."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from mmtransfer.features import RowContext
from mmtransfer.methods.base import Method, build_method
from mmtransfer.model import ON_DEMAND, TransferModel
from mmtransfer.registry import check_options, nearest, strategies
from mmtransfer.transfer.adapters import Adapter, build_adapters, check_adapters
from mmtransfer.transfer.files import is_file, read_strategy
from mmtransfer.transfer.parts import PARTS, adapter_names, chosen_parameters

SCHEDULES = ("cosine", "constant")
#: what a method may need: outputs of the model, and what phases and data must be like
NEEDS = (
    *ON_DEMAND,
    "unlabelled_inputs",
    "unlabelled_rows",
    "trained_encoders",
    "numbered_rows",
    "repeated_backward",
    "second_pass",
    "source",
    "unmixed_rows",
    "merged_weights",
)
#: the splits that some of them call for
SPLIT_NEEDS = {
    "unlabelled": "unlabelled",
    "unlabelled_inputs": "unlabelled",
    "unlabelled_rows": "unlabelled",
    "source": "source",
}


@dataclass(frozen=True)
class Phase:
    """For some epochs, which parts train at which rate.

    lr: peak rate of fusion and heads, unimodal ones too; 0 leaves them frozen
    encoder_lr: peak rate of the encoders; 0 leaves an encoder frozen
    top_stages: train only the last so many stages of an encoder, or this share of them, below 1
    layer_decay: each stage below the top one trains at this share of the rate of the one above
    parts: of these stages train "all", "bias" or "norm"; an encoder without such stays frozen
    weight_decay: of AdamW, on matrices only
    warmup: share of the steps during which the rate rises; then it falls as `schedule` says

    encoder_lr, top_stages, layer_decay and parts are one for all encoders or by modality.
    """

    epochs: int
    lr: float = 1e-3
    encoder_lr: float | dict[str, float] = 0.0
    top_stages: float | dict[str, float] | None = None
    layer_decay: float | dict[str, float] = 1.0
    weight_decay: float = 0.05
    warmup: float = 0.1
    schedule: str = "cosine"
    parts: str | dict[str, str] = "all"

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
        if not all(0 < share <= 1 for share in _values(self.layer_decay)):
            raise ValueError(f"layer_decay must lie in (0, 1], found {self.layer_decay}")
        for parts in _values(self.parts):
            if parts not in PARTS:
                raise ValueError(f"unknown parts {parts!r}.{nearest(str(parts), PARTS)}")

    def encoder_rate(self, modality: str) -> float:
        return _of(self.encoder_lr, modality, 0.0)

    def check(self, model: TransferModel) -> None:
        """Raise `ValueError` for modalities, stages or parts that the model does not have."""
        for setting in (self.encoder_lr, self.top_stages, self.layer_decay, self.parts):
            for name in setting if isinstance(setting, dict) else ():
                if name not in model.encoders:
                    raise ValueError(f"unknown modality {name!r}.{nearest(name, model.encoders)}")
        trained = bool(self.lr)
        for name, encoder in model.encoders.items():
            if not self.encoder_rate(name):
                continue
            self._depth(name, len(encoder.stages))
            parts = _of(self.parts, name, "all")
            if any(True for _ in chosen_parameters(encoder, parts)):
                trained = True
            elif isinstance(self.parts, dict) and name in self.parts:
                raise ValueError(f"encoder {name!r} has no {parts} to train: choose other parts")
        if not trained:
            raise ValueError(
                "the phase trains nothing: lr is 0, and every encoder_lr too, or there are no such "
                f"parts as {self.parts!r}"
            )

    def _depth(self, name: str, stages: int) -> int:
        """How many stages of an encoder train.  Raises `ValueError` if it does not have them."""
        asked = _of(self.top_stages, name, stages)
        count = math.ceil(asked * stages - 1e-9) if 0 < asked < 1 else asked
        if not 1 <= count <= stages or count != int(count):
            raise ValueError(f"encoder {name!r} has {stages} stages, top_stages is {asked}")
        return int(count)

    def apply(self, model: TransferModel) -> list[dict[str, Any]]:
        """Freeze and unfreeze the model's parts; -> parameter groups for the optimiser.

        Raises `ValueError` as `check` does.
        """
        self.check(model)
        model.requires_grad_(False)
        groups: list[dict[str, Any]] = []
        if self.lr:
            joint = [m for m in (model.fusion, model.heads, model.unimodal) if m is not None]
            groups += self._groups((p for m in joint for p in m.parameters()), self.lr, "fusion")
        for name, encoder in model.encoders.items():
            rate, stages = self.encoder_rate(name), encoder.stages
            if not rate:
                continue
            count, decay = self._depth(name, len(stages)), _of(self.layer_decay, name, 1.0)
            chosen = chosen_parameters(encoder, _of(self.parts, name, "all")).values()
            ids, adapted = {id(p) for p in chosen}, bool(adapter_names(encoder))
            staged = {id(p) for stage in stages for p in stage.parameters()}
            for depth, stage in enumerate(reversed(stages[len(stages) - count :])):
                own = (p for p in stage.parameters() if id(p) in ids)
                groups += self._groups(own, rate * decay**depth, name, adapted)
            if count == len(stages):  # parameters outside every stage go with the first
                loose = (p for p in chosen if id(p) not in staged)
                groups += self._groups(loose, rate * decay ** (count - 1), name, adapted)
        return groups

    def _groups(
        self, chosen: Iterable[nn.Parameter], rate: float, name: str, adapted: bool = False
    ) -> list[dict[str, Any]]:
        # Biases and norms are not decayed (He et al., 2019), nor scales that peft keeps as columns.
        split: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for p in chosen:
            p.requires_grad_(True)
            split[p.ndim > 1 and not (adapted and p.numel() == max(p.shape))].append(p)
        return [
            {"params": of, "lr": rate, "weight_decay": self.weight_decay * matrices, "name": name}
            for matrices, of in split.items()
            if of
        ]


@dataclass
class Strategy:
    """Phases, one after the other, adapters, and methods, in the order in which they act.

    adapters: by modality or for "all", see `mmtransfer.transfer.adapters.Adapter`; the weights of
        these encoders freeze, and the adapters train at `encoder_lr`
    merge: add adapters to the weights after the last phase, so that a plain model is left
    """

    phases: list[Phase]
    methods: list[Method] = field(default_factory=list)
    adapters: dict[str, Adapter | None] = field(default_factory=dict)
    merge: bool = True

    def __post_init__(self) -> None:
        self.adapters = build_adapters(self.adapters)

    @property
    def needs(self) -> set[str]:
        """What its methods need, out of `NEEDS`."""
        return {need for method in self.methods for need in method.needs}

    @property
    def splits(self) -> set[str]:
        """The splits besides that of training that its methods need."""
        return {SPLIT_NEEDS[need] for need in self.needs if need in SPLIT_NEEDS}

    @property
    def frozen(self) -> bool:
        """True when no phase trains any part of an encoder."""
        return not any(rate for phase in self.phases for rate in _values(phase.encoder_lr))

    def config(self) -> dict[str, Any]:
        return {
            "phases": [asdict(phase) for phase in self.phases],
            "methods": [method.config() for method in self.methods],
            "adapters": {n: a and asdict(a) for n, a in self.adapters.items()},
            "merge": self.merge,
        }


def check_plan(
    strategy: Strategy, model: TransferModel, seed: int = 0, splits: Collection[str] = ()
) -> None:
    """Raise `ValueError` for a phase or method that names what model or data do not have."""
    for phase in strategy.phases:
        phase.check(model)
    check_adapters(strategy, model)
    check_averages(strategy)
    kinds = {name: encoder.modality for name, encoder in model.encoders.items()}
    for method in strategy.methods:
        check_needs(method, strategy)
        for split in (SPLIT_NEEDS[need] for need in method.needs if need in SPLIT_NEEDS):
            if split not in splits:
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
                    f"{name} makes the gradients anew, and stands first among methods that act on "
                    f"them: list {name} before {type(other).__name__}"
                )
        if need.startswith("unimodal") and not strategy.phases[0].lr:
            raise ValueError(
                f"{name} needs unimodal heads, which train at the rate of fusion and heads, and "
                "the first phase has lr 0"
            )


def check_averages(strategy: Strategy) -> None:
    """Raise `ValueError` where one method's averages would silently replace another's."""
    found: dict[str, Method] = {}
    for method in strategy.methods:
        for kind in method.averages if type(method).averaged is not Method.averaged else ():
            if kind in found:
                names = f"{type(found[kind]).__name__} and {type(method).__name__}"
                raise ValueError(
                    f"{names} each say which {kind} are validated and kept: leave one of the two "
                    "out"
                )
            found[kind] = method


def check_rates(strategy: Strategy) -> None:
    """Raise `ValueError` where a phase would leave out what a built method trains by itself."""
    for method in strategy.methods:
        if method.module is None or not any(True for _ in method.module.parameters()):
            continue
        for number, phase in enumerate(strategy.phases, start=1):
            if not phase.lr:
                raise ValueError(
                    f"{type(method).__name__} trains something of its own, at the rate of fusion "
                    f"and heads, and phase {number} has lr 0: give it a small one, or leave the "
                    "method out"
                )


def build_strategy(
    spec: str | Mapping[str, Any] | Strategy,
    methods: list[Any] | None = None,
    **options: Any,
) -> Strategy:
    """A strategy by preset name with its options, as a mapping, as it is, or out of a YAML file.

    A mapping is written out as `{"phases": [...]}`, or has the `name` of a preset and its options;
    either may have `methods`, `adapters` and `merge` as well.  Methods that make the gradients anew
    (SAM) come first, wherever they are listed: what others do to gradients would be lost.
    Raises `ValueError` for an unknown name, option or phase setting, with the nearest valid one,
    and `FileNotFoundError` for a missing file.
    """
    if isinstance(spec, str) and is_file(spec):
        spec = read_strategy(spec)
    extra = [build_method(method) for method in methods or []]
    if isinstance(spec, str):
        spec = {"name": spec}
    if isinstance(spec, Mapping):
        spec = _out_of({**spec, **options})
    found = sorted([*spec.methods, *extra], key=lambda method: "second_pass" not in method.needs)
    return replace(spec, methods=found)


def _out_of(spec: dict[str, Any]) -> Strategy:
    """A strategy out of a mapping."""
    beside: dict[str, Any]
    if "name" in spec:
        beside = {k: spec.pop(k) for k in ("methods", "adapters", "merge") if k in spec}
        found: Strategy = strategies.build(spec)
    elif "phases" in spec:
        check_options(Strategy, spec, "a strategy")
        beside, found = spec, Strategy([])
    else:
        raise ValueError(f"a strategy needs a name or phases, found {', '.join(spec) or 'nothing'}")
    if "phases" in beside:
        beside["phases"] = [
            _phase(phase, f"phase {k}") for k, phase in enumerate(beside["phases"], start=1)
        ]
    beside["methods"] = [*found.methods, *map(build_method, beside.get("methods") or [])]
    beside["adapters"] = {**found.adapters, **build_adapters(beside.get("adapters"))}
    return replace(found, **beside)


def _phase(phase: Phase | Mapping[str, Any], what: str) -> Phase:
    if isinstance(phase, Phase):
        return phase
    check_options(Phase, phase, what)
    if "epochs" not in phase:
        raise ValueError(f"{what} does not say for how many epochs")
    return Phase(**phase)


def _values(setting: Any) -> list[Any]:
    return list(setting.values()) if isinstance(setting, dict) else [setting]


def _of(setting: Any, modality: str, default: Any) -> Any:
    found = setting.get(modality) if isinstance(setting, dict) else setting
    return default if found is None else found
