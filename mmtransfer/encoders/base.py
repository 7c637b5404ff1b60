"""The encoder contract, and specification strings that build encoders."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from mmtransfer.features import Features
from mmtransfer.registry import Configurable, check_options, encoders, import_class, nearest

HERE = Path(__file__).parent


class Encoder(nn.Module, Configurable):
    """Turns the raw values of one column into `Features`.

    A subclass sets `width`, gives `collate` and `forward`, and keeps its constructor arguments as
    attributes of the same name.  `mmtransfer.testing.check_encoder` verifies the whole contract.
    """

    #: D of the features
    width: int
    #: raw values of the rows that have this modality -> arguments of `forward`, B first
    collate: Callable[[list[Any]], dict[str, Tensor]]
    #: what `collate` gives, as keywords -> Features of B rows
    forward: Callable[..., Features]
    #: "image", "text" or "audio" where augmentation knows such values, else None
    modality: str | None = None
    #: True when the weights come from elsewhere: batch norm then stays in eval mode
    pretrained: bool = False
    #: what follows the colon of a specification, where `from_pretrained` reads it
    source: str = "<hub id or directory>"

    def fit(self, values: Iterable[Any]) -> None:
        """Learn from the training column what the options leave open, where there is such a thing.

        Values may be `None`.  What is learned is part of `config()`; a fitted encoder stays as is.
        """

    @property
    def stages(self) -> list[nn.Module]:
        """The trainable parts from input to output; parameters in none go with the first."""
        return [child for child in self.children() if any(True for _ in child.parameters())]

    @property
    def cuts(self) -> Sequence[int]:
        """Depths d at which the encoder can be divided, below `stages[d]`; 0 < d < len(stages).

        What lies below a cut is stored when it is frozen, so that partial fine-tuning skips it.
        """
        return ()

    def below(self, depth: int, **inputs: Tensor) -> Features:
        """Arguments of `forward` -> the activations (B, T, D') that enter `stages[depth]`."""
        raise NotImplementedError(f"{type(self).__name__} has no cuts")

    def above(self, depth: int, activations: Features) -> Features:
        """The rest of the way: `above(d, below(d, **x))` is `forward(**x)`, for any batch."""
        raise NotImplementedError(f"{type(self).__name__} has no cuts")

    def fingerprint(self, depth: int | None = None) -> str:
        """Changes when weights or preprocessing do: the key of cached features.

        depth: of a cut; only what lies below it counts
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(self.identity().encode())
        upper = () if depth is None else self.stages[depth:]
        above = {id(t) for stage in upper for t in stage.state_dict(keep_vars=True).values()}
        for name, tensor in self.state_dict(keep_vars=True).items():
            if id(tensor) in above:
                continue
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            data = tensor.detach().cpu().contiguous()
            digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def identity(self) -> str:
        """All but the weights that the features depend on: class, options, preprocessing."""
        sources = []  # an edited forward gives other features, an edited helper too
        for cls in type(self).__mro__:
            if issubclass(cls, Encoder) and cls is not Encoder:
                own = cls.__module__.startswith(f"{__package__}.")
                sources.append(source_of_package(HERE) if own else source_of(cls))
        digest = hashlib.blake2b("".join(sources).encode(), digest_size=16).hexdigest()
        return json.dumps(self.config(), sort_keys=True, default=str) + digest

    def save(self, directory: Path) -> None:
        """Write what `load` needs beside the weights: class, options, processors."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "encoder.json").write_text(json.dumps(self.config(), indent=2))

    @classmethod
    def load(cls, directory: Path) -> Encoder:
        """Rebuild the encoder saved in `directory`, weights untouched (the model loads them)."""
        path = directory / "encoder.json"
        if not path.is_file():
            raise FileNotFoundError(f"{directory} holds no saved encoder: encoder.json is missing")
        config = json.loads(path.read_text())
        found = import_class(config.get("class", ""))
        if not (inspect.isclass(found) and issubclass(found, Encoder)):
            raise ValueError(f"{path}: {config.get('class')!r} is not an Encoder")
        return found.restore(directory, config)

    @classmethod
    def restore(cls, directory: Path, config: dict[str, Any]) -> Encoder:
        """Build an instance from `config()`; override to read files of `directory` too."""
        encoder: Encoder = cls.from_config(config)
        return encoder


def source_of(cls: type) -> str:
    """Source of the module of a class; of the class alone where there is no file, in notebooks."""
    for part in (inspect.getmodule(cls), cls):
        with contextlib.suppress(OSError, TypeError):
            return inspect.getsource(part)  # type: ignore[arg-type]
    return ""


def source_of_package(directory: Path) -> str:
    """Our encoders share helpers, which lie in other modules beside them."""
    return "".join(path.read_text("utf-8") for path in sorted(directory.glob("*.py")))


def split_stages(model: nn.Module) -> list[nn.Module]:
    """Parts of a model around its largest list of blocks: [stem.., block 0 .. block n, tail..].

    The largest `ModuleList` is the network's depth; its parents are opened, all else stays whole.
    """
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    blocks = max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=None)

    def walk(module: nn.Module) -> Iterable[nn.Module]:
        if module is blocks or (blocks is not None and blocks in set(module.modules())):
            for child in module.children():
                if module is blocks:
                    yield child
                else:
                    yield from walk(child)
        elif any(True for _ in module.parameters()):
            yield module

    return list(walk(model))


def parse_spec(spec: str) -> tuple[str, str, dict[str, Any]]:
    """`name[:argument][?option=value&...]` -> (name, argument, options); values are JSON."""
    head, _, query = spec.partition("?")
    name, _, argument = head.partition(":")
    options: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return name, argument, options


def build_encoder(spec: str | Encoder, **options: Any) -> Encoder:
    """The encoder that a specification string names.

    `hf:<hub id or directory>`, `sentence:<...>`, `torchvision:<name>[:<weights>]`, `timm:<name>`,
    `torchaudio:<BUNDLE>`, `kwt:<directory>`, `<package.module>:<Class>` or a registered name;
    options follow after `?` (`hf:google/vit-base-patch16-224?size=176`) or as keywords.
    Raises `ValueError` for an unknown name or option, with the nearest valid one.
    """
    if isinstance(spec, Encoder):
        return spec
    name, argument, query = parse_spec(spec)
    options = {**query, **options}
    if name in encoders:
        factory: Callable[..., Any] = encoders.get(name)
        if inspect.isclass(factory) and hasattr(factory, "from_pretrained"):
            if not argument:
                wanted = getattr(factory, "source", Encoder.source)
                raise ValueError(f"encoder {name!r} needs a source: {name}:{wanted}")
            check_options(factory.from_pretrained, options, f"encoder {name!r}")
            encoder = factory.from_pretrained(argument, **options)
        else:
            if argument:  # then a module of that name is meant, if anything
                try:
                    factory = import_class(f"{name}:{argument}")
                except ValueError as error:
                    raise ValueError(
                        f"encoder {name!r} takes no argument, found {argument!r} ({error})"
                    ) from error
            check_options(factory, options, f"encoder {name!r}")
            encoder = factory(**options)
    elif argument:
        if "." not in name and name.islower() and not argument.isidentifier():
            raise ValueError(f"unknown encoder {name!r}.{nearest(name, encoders.names())}")
        try:
            factory = import_class(f"{name}:{argument}")
        except ValueError as error:
            raise ValueError(
                f"unknown encoder {spec!r}: {error}.{nearest(name, encoders.names())}"
            ) from error
        check_options(factory, options, f"encoder {spec!r}")
        encoder = factory(**options)
    else:
        encoder = encoders.get(name)(**options)  # raises with the nearest name
    if not isinstance(encoder, Encoder):
        raise ValueError(f"{spec!r} gave a {type(encoder).__name__}, expected an Encoder")
    return encoder


def build_encoders(specs: Mapping[str, str | Encoder]) -> dict[str, Encoder]:
    """`{column: encoder}` from `{column: specification}`."""
    return {column: build_encoder(spec) for column, spec in specs.items()}
