"""Adapters of peft in encoders: put in, saved by themselves, and merged into the weights."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from mmtransfer.encoders.base import Encoder
from mmtransfer.model import TransferModel
from mmtransfer.registry import check_options, nearest
from mmtransfer.transfer.parts import adapter_names

if TYPE_CHECKING:
    from mmtransfer.transfer.base import Strategy

NAMES = ("lora", "dora", "ia3")
CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """What is added to the layers of an encoder whose own weights stay as they are.

    name: "lora", a low-rank matrix beside each weight (Hu et al., ICLR 2022); "dora", so too, and
        the length of each row by itself (Liu et al., ICML 2024); "ia3", a factor for each output
        (Liu et al., NeurIPS 2022)
    rank, alpha, dropout: of "lora" and "dora"; what they add is scaled by alpha / rank
    target_modules: names of layers or ends of names, a regular expression, or "auto": all linear
        layers and two-dimensional convolutions without groups that the encoder calls; for "dora"
        without those that have a row of zeros
    """

    name: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: str | Sequence[str] = "auto"

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"unknown adapter {self.name!r}.{nearest(str(self.name), NAMES)}")
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                "an adapter needs rank >= 1, alpha > 0 and dropout in [0, 1), found "
                f"{self.rank}, {self.alpha}, {self.dropout}"
            )

    def config(self, targets: str) -> Any:
        """peft's configuration for the layers that a regular expression names."""
        from peft import IA3Config, LoraConfig

        if self.name == "ia3":
            return IA3Config(target_modules=targets, feedforward_modules=[])
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # a number like any other
            lora_dropout=self.dropout,
            target_modules=targets,
            use_dora=self.name == "dora",
        )


def build_adapters(specs: Mapping[str, Any] | None) -> dict[str, Adapter | None]:
    """Adapters by modality or "all", from names, mappings, or as they are; `None` for none."""
    found: dict[str, Adapter | None] = {}
    for name, spec in (specs or {}).items():
        if isinstance(spec, str):
            spec = {"name": spec}
        if isinstance(spec, Mapping):
            check_options(Adapter, spec, f"the adapter of {name!r}")
            spec = Adapter(**spec)
        found[name] = spec
    return found


def check_adapters(strategy: Strategy, model: TransferModel) -> None:
    """Raise `ValueError` where adapters and model, or adapters and phases, do not fit."""
    chosen = _by_encoder(model, strategy.adapters)
    for method in strategy.methods:
        if "merged_weights" in method.needs and (chosen or is_adapted(model)):
            raise ValueError(
                f"{type(method).__name__} needs weights without adapters, whose factors do not add "
                "up to what they do together: leave one of the two out, or call merge_adapters "
                "before training"
            )
    for name in chosen:
        if adapter_names(model.encoders[name]):
            raise ValueError(f"encoder {name!r} has adapters already: call merge_adapters first")
    if not chosen:
        return
    for phase in strategy.phases:
        parts = phase.parts if isinstance(phase.parts, dict) else dict.fromkeys(chosen, phase.parts)
        for name in chosen:
            if parts.get(name, "all") != "all":
                raise ValueError(
                    f"parts {parts[name]!r} of encoder {name!r} cannot train beside its adapter: "
                    "leave one of them out"
                )
    if not any(phase.encoder_rate(name) for phase in strategy.phases for name in chosen):
        raise ValueError("adapters train at encoder_lr, which is 0 in every phase")


def add_adapters(
    model: TransferModel,
    adapters: Mapping[str, Any],
    samples: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """Put adapters into the encoders; until they train the model gives what it gave before.

    samples: a raw value for each modality; with it "auto" leaves out the layers that an encoder
        reads and never calls (those within `nn.MultiheadAttention`, say)
    Raises `ValueError` for an encoder without such layers, and an unknown modality.
    """
    configs = {}
    for name, adapter in _by_encoder(model, build_adapters(adapters)).items():
        encoder = model.encoders[name]
        sample = (samples or {}).get(name)
        targets = _targets(encoder, adapter, sample)
        if not targets:
            raise ValueError(
                f"encoder {name!r} has no layer that {adapter.name} can adapt among "
                f"target_modules {adapter.target_modules!r}."
                f"{nearest(str(adapter.target_modules), _kinds(encoder, sample))}"
            )
        configs[name] = adapter.config("|".join(map(re.escape, targets)))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)  # the same on all processes, and on a resumed run
        for name, config in configs.items():
            _inject(config, model.encoders[name])


def readable(encoder: Encoder, values: Iterable[Any], tries: int = 32) -> Any:
    """The first of so many present values that an encoder can read, or None."""
    for value in islice((v for v in values if v is not None), tries):
        with contextlib.suppress(Exception):  # training will say what is wrong with a row
            encoder.collate([value])
            return value
    return None


def is_adapted(model: TransferModel) -> bool:
    """Whether an encoder has adapters that are not merged."""
    return any(adapter_names(encoder) for encoder in model.encoders.values())


def merge_adapters(model: TransferModel) -> None:
    """Add the adapters to the weights: a plain model that gives the same."""
    for encoder in model.encoders.values():
        for name, layer in _layers(encoder).items():
            layer.merge()
            encoder.set_submodule(name, layer.get_base_layer())
        encoder.__dict__.pop("peft_config", None)


def bare(encoder: Encoder) -> nn.Module:
    """The modules of an encoder under their names: peft reads a `config` that ours is not."""
    plain = nn.Module()
    shared = ("_modules", "_parameters", "_buffers", "peft_config")
    plain.__dict__ |= {name: vars(encoder)[name] for name in shared if name in vars(encoder)}
    return plain


def save_adapters(model: TransferModel, directory: Path) -> list[str]:
    """For each adapted encoder a directory of its name in peft's own format; -> their names."""
    adapted = {n: encoder for n, encoder in model.encoders.items() if adapter_names(encoder)}
    for name, encoder in adapted.items():
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(bare(encoder), adapter_name="default")
        weights = {f"{PREFIX}{k}": v.detach().cpu().contiguous() for k, v in state.items()}
        (directory / name).mkdir(parents=True, exist_ok=True)
        config: Any = encoder.peft_config["default"]  # type: ignore[index]
        config.save_pretrained(str(directory / name))
        save_file(weights, directory / name / WEIGHTS, metadata={"format": "pt"})
    return list(adapted)


def load_adapters(model: TransferModel, directory: Path) -> None:
    """Put what `save_adapters` wrote into a model whose encoders are without.

    Raises `FileNotFoundError` where there are none, `ValueError` if they are of other encoders.
    """
    from peft import PeftConfig, set_peft_model_state_dict

    found = sorted(path.parent.name for path in Path(directory).glob(f"*/{CONFIG}"))
    if not found:
        raise FileNotFoundError(f"{directory} holds no adapters: no */{CONFIG}")
    for name in found:
        if name not in model.encoders:
            raise ValueError(f"an adapter of {name!r}.{nearest(name, model.encoders)}")
        encoder = model.encoders[name]
        if adapter_names(encoder):
            raise ValueError(f"encoder {name!r} has adapters already: call merge_adapters first")
        config: Any = PeftConfig.from_pretrained(str(directory / name))
        _inject(config, encoder)
        state = load_file(directory / name / WEIGHTS)
        plain = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
        try:
            told: Any = set_peft_model_state_dict(bare(encoder), plain, adapter_name="default")
        except RuntimeError as error:  # other shapes
            raise ValueError(f"{directory / name} is of another encoder: {error}") from error
        lacking = [key for key in told.missing_keys if key in adapter_names(encoder)]
        if lacking or told.unexpected_keys:
            raise ValueError(
                f"{directory / name} is of another encoder than {name!r}: "
                f"{len(lacking)} tensors are missing, {len(told.unexpected_keys)} belong to no part"
            )


def without_adapters(model: TransferModel, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of the model as one of the model without its adapters."""
    found = dict(state)
    for name, encoder in model.encoders.items():
        for own in adapter_names(encoder):
            found.pop(f"encoders.{name}.{own}", None)
        for path in _layers(encoder):
            inner = f"encoders.{name}.{path}.base_layer."
            for key in [key for key in found if key.startswith(inner)]:
                found[f"encoders.{name}.{path}.{key.removeprefix(inner)}"] = found.pop(key)
    return found


def _inject(config: Any, encoder: Encoder) -> None:
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, bare(encoder))
    encoder.peft_config = {"default": config}  # type: ignore[assignment]
    for layer in _layers(encoder).values():
        base = layer.get_base_layer()
        for name in getattr(base, "__constants__", ()):
            if not hasattr(layer, name):  # stride, say: some encoders ask before they call it
                setattr(layer, name, getattr(base, name))


def _by_encoder(model: TransferModel, adapters: Mapping[str, Adapter | None]) -> dict[str, Adapter]:
    for name in adapters:
        if name not in (*model.encoders, "all"):
            valid = [*model.encoders, "all"]
            raise ValueError(f"an adapter for an unknown modality {name!r}.{nearest(name, valid)}")
    found = {name: adapters.get(name, adapters.get("all")) for name in model.encoders}
    return {name: adapter for name, adapter in found.items() if adapter is not None}


def _layers(encoder: nn.Module) -> dict[str, Any]:
    """The layers that have adapters, by name."""
    if not adapter_names(encoder):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {n: m for n, m in encoder.named_modules() if isinstance(m, BaseTunerLayer)}


def _targets(encoder: Encoder, adapter: Adapter, sample: Any) -> list[str]:
    asked, known = adapter.target_modules, _adaptable(encoder, sample)
    if adapter.name == "dora":  # a row of zeros has no direction, and its length over itself is NaN
        known = [name for name in known if _rows_have_length(encoder.get_submodule(name))]
    if asked == "auto":
        return known
    if isinstance(asked, str):
        return [name for name in known if re.fullmatch(asked, name)]
    return [name for name in known if any(f".{name}".endswith(f".{end}") for end in asked)]


def _rows_have_length(layer: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    weight: Any = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    return bool(weight.detach().flatten(1).norm(dim=1).all())


def _kinds(encoder: Encoder, sample: Any) -> list[str]:
    """Ends of the names of what can be adapted."""
    return sorted({name.rpartition(".")[2] for name in _adaptable(encoder, sample)})


def _adaptable(encoder: Encoder, sample: Any) -> list[str]:
    """Names of the layers that peft can adapt and merge, and whose adapter would be heard."""
    from transformers.pytorch_utils import Conv1D

    called = None if sample is None else _called(encoder, sample)
    return [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | Conv1D)
        and getattr(module, "groups", 1) == 1
        and not is_parametrized(module)
        and (called is None or name in called)
    ]


def _called(encoder: Encoder, sample: Any) -> set[str]:
    """Names of the modules that the encoder calls for a raw value."""
    called: set[str] = set()
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        for name, module in encoder.named_modules()
    ]
    modes = {module: module.training for module in encoder.modules()}
    device = next(encoder.parameters()).device
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            inputs = encoder.collate([sample])
            encoder.eval()(**{key: value.to(device) for key, value in inputs.items()})
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return called
