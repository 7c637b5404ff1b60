"""The model: encoders -> fusion -> task heads; saved as a directory, loaded without a network."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmtransfer.encoders.base import Encoder
from mmtransfer.features import Activations, Batch, Features, Inputs, Outputs, proper_subsets
from mmtransfer.fusion.base import Fusion, check_column
from mmtransfer.registry import nearest
from mmtransfer.tasks.base import Task
from mmtransfer.temperature import Temperature
from mmtransfer.unimodal import UnimodalHeads

WEIGHTS, ADAPTERS = "model.safetensors", "adapters"
#: fields of `Outputs` that are given on demand, and that batch norm sees each domain by itself
ON_DEMAND = (
    *("unimodal", "unimodal_detached", "subsets", "features", "fused", "unlabelled"),
    "domains_apart",
)


class TransferModel(
    nn.Module,
    ModelHubMixin,
    library_name="mmtransfer",
    tags=["multimodal", "transfer-learning"],
):
    """Encoders by input column, one fusion, tasks by target column.

    Raises `ValueError` when fusion and encoders do not fit, or a name cannot be used.
    """

    def __init__(
        self, encoders: Mapping[str, Encoder], fusion: Fusion, tasks: Mapping[str, Task]
    ) -> None:
        super().__init__()
        widths = {name: encoder.width for name, encoder in encoders.items()}
        if widths != fusion.widths:
            raise ValueError(f"the encoders give {widths}, the fusion expects {fusion.widths}")
        if not tasks:
            raise ValueError("a model needs at least one task, found none")
        for name in (*encoders, *tasks):
            check_column(name)
        if "weights" in tasks:  # predictions hold the weights of the modalities under this name
            raise ValueError("'weights' cannot name a task of a model: rename the column")
        self.encoders: Mapping[str, Encoder] = nn.ModuleDict(encoders)  # type: ignore[assignment]
        self.fusion = fusion
        self.tasks = dict(tasks)
        self.heads = nn.ModuleDict({n: fusion.head(task.head) for n, task in tasks.items()})
        self.unimodal: UnimodalHeads | None = None
        self.demanded: tuple[str, ...] = ()
        self.temperature = Temperature()

    def provide(self, demanded: Collection[str], seed: int = 0) -> None:
        """Heed these of `ON_DEMAND` in training mode, most of them fields of `Outputs`, no others.

        Unimodal heads are made anew, from a seed of their own, or removed.
        Raises `ValueError` for an unknown field.
        """
        for name in demanded:
            if name not in ON_DEMAND:
                raise ValueError(f"unknown output {name!r}.{nearest(name, ON_DEMAND)}")
        self.demanded, self.unimodal = tuple(n for n in ON_DEMAND if n in demanded), None
        if any(name.startswith("unimodal") for name in demanded):
            with torch.random.fork_rng(devices=()):  # the rest is drawn as without them
                torch.manual_seed(seed)
                self.unimodal = UnimodalHeads(self.fusion.widths, self.tasks).to(self.device)

    def forward(
        self,
        inputs: Mapping[str, Inputs | Activations | Features],
        size: int,
        unlabelled: Batch | None = None,
    ) -> Outputs:
        """Encoder inputs, activations or ready features by modality, of a batch of `size` rows.

        What is left out is absent.  -> logits {task: (B, C)}, weights (B, M) or None.

        unlabelled: rows of the unlabelled target, which pass in the same call: processes agree on
            which parameters a call has used.  Batch norm that learns its statistics sees both kinds
            of rows as one batch, unless "domains_apart" is demanded: running statistics of two
            domains by turns would be those of neither
        """
        others = {} if unlabelled is None else dict(unlabelled.inputs)
        features = {}
        for name in self.encoders:
            both = self._joined(name, inputs.get(name), others.get(name), size)
            if both is None or unlabelled is None:
                features[name] = self.encode(name, inputs.get(name), size)
            else:
                found = self.encode(name, both, size + len(unlabelled))
                features[name], others[name] = found.first(size), found.behind(size)
        outputs = self._join(features)
        if unlabelled is not None:
            outputs.unlabelled = self.forward(others, len(unlabelled))
        if not (self.training and self.demanded):
            return outputs
        outputs.features = features if "features" in self.demanded else None
        if self.unimodal is not None:
            vectors = {name: found.pooled() for name, found in features.items()}
            if "unimodal" in self.demanded:
                outputs.unimodal = self.unimodal(vectors)
            if "unimodal_detached" in self.demanded:
                outputs.unimodal_detached = self.unimodal(
                    {name: vector.detach() for name, vector in vectors.items()}
                )
        if "subsets" in self.demanded:
            outputs.subsets = self._of_subsets(features)
        return outputs

    def _joined(
        self,
        name: str,
        here: Inputs | Activations | Features | None,
        there: Inputs | Activations | Features | None,
        size: int,
    ) -> Inputs | Activations | None:
        """Both as the inputs of one batch, if batch norm needs them together."""
        if there is None or "domains_apart" in self.demanded:
            return None
        if not has_batch_norm(self.encoders[name]):
            return None
        if isinstance(here, Inputs) and isinstance(there, Inputs):
            both: Inputs | Activations = here.joined(there, size)
        elif isinstance(here, Activations) and isinstance(there, Activations):
            both = here.joined(there, size)
        else:
            return None
        return both if len(here.rows) and len(there.rows) else None  # spare values belong to none

    def _join(self, features: Mapping[str, Features]) -> Outputs:
        fused = self.fusion(dict(features))
        logits = {n: self.fusion.decide(head, fused) for n, head in self.heads.items()}
        vector = fused.vector if self.training and "fused" in self.demanded else None
        return Outputs(logits, fused.weights, fused=vector)

    def _of_subsets(self, features: Mapping[str, Features]) -> dict[str, Tensor]:
        """Logits (B, 2^M - 2, C) of the proper subsets of modalities; only the fusion runs."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.tasks}
        self.fusion.eval(), self.heads.eval()  # drop-out would draw, and blur what is compared
        with torch.no_grad():
            for subset in proper_subsets(self.fusion.modalities):
                some = {n: f if n in subset else f.hidden() for n, f in features.items()}
                for name, logits in self._join(some).logits.items():
                    found[name].append(logits)
        self._train_joint()
        return {name: torch.stack(logits, 1) for name, logits in found.items() if logits}

    def encode(
        self, name: str, inputs: Inputs | Activations | Features | None, size: int
    ) -> Features:
        """Features of one modality for all B rows; its encoder runs on the rows that have it."""
        encoder = self.encoders[name]
        if isinstance(inputs, Features):
            return inputs
        if inputs is None or is_empty(inputs):
            return Features.absent(size, encoder.width, like=next(self.heads.parameters()))
        training = self.training
        if not len(inputs.rows):
            encoder.eval()  # batch norm and drop-out must not notice what belongs to no row
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trainable(encoder)):
            features: Features
            if isinstance(inputs, Activations):
                features = encoder.above(inputs.depth, inputs.features)
            else:
                features = encoder(**inputs.values)
        if not len(inputs.rows):
            self.train(training)
        if len(inputs.rows) == size:
            return features
        return features.first(len(inputs.rows)).scatter(inputs.rows, size)

    def train(self, mode: bool = True) -> TransferModel:
        """Training mode, but what is frozen and pretrained batch norm stay in eval mode."""
        super().train(mode)
        if mode:
            for encoder in self.encoders.values():
                hold_still(encoder, encoder.pretrained)
            self._train_joint()
        return self

    def _train_joint(self) -> None:
        for part in (self.fusion, self.heads):
            part.train()
            hold_still(part, batch_norm=False)

    def standardise(self, statistics: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Take mean (D,) and deviation (D,) of the training features by modality, if of use."""
        self.fusion.standardise(statistics)
        if self.unimodal is not None:
            self.unimodal.standardise(statistics)

    @property
    def device(self) -> torch.device:
        return next(self.heads.parameters()).device

    def predict(
        self, rows: Sequence[Mapping[str, Any]], batch_size: int = 32, on_error: str = "raise"
    ) -> list[dict[str, Any]]:
        """Labels with probabilities, per task, and the weight of each modality, per row.

        Probabilities are calibrated where the model has a temperature.
        Rows may have any subset of the modalities; a missing key or `None` is a missing modality.
        -> `[{task: {"label", "probability"}, "weights": {modality: w} or None}, ...]`
        """
        from mmtransfer.data.collate import Collate  # data stands beside the flow, not below it

        names = list(self.encoders)
        if len(rows) and not any(name in row for row in rows for name in names):
            raise ValueError(
                f"no row has any of the columns {names}; found "
                f"{sorted({str(k) for row in rows for k in row})}.{nearest(names[0], rows[0])}"
            )
        collate = Collate(self.encoders, {}, on_error=on_error)
        training = self.training
        self.eval()
        answers: list[dict[str, Any]] = []
        try:
            with torch.inference_mode():
                for start in range(0, len(rows), batch_size):
                    chunk = range(start, min(start + batch_size, len(rows)))
                    batch = collate([(i, dict(rows[i])) for i in chunk]).to(self.device)
                    answers += self._answer(self(batch.inputs, len(batch)))
        finally:
            self.train(training)
        return answers

    def _answer(self, outputs: Outputs) -> list[dict[str, Any]]:
        labels = {
            name: task.predict(self.temperature.apply(name, outputs.logits[name].cpu()))
            for name, task in self.tasks.items()
        }
        size = len(next(iter(outputs.logits.values())))
        weights = [None] * size if outputs.weights is None else outputs.weights.float().tolist()
        modalities = self.fusion.modalities
        return [
            {name: answers[i] for name, answers in labels.items()}
            | {"weights": None if w is None else dict(zip(modalities, w, strict=True))}
            for i, w in enumerate(weights)
        ]

    def load_weights(self, path: Path) -> None:
        """Load a safetensors file.  Raises `ValueError` if it comes from another architecture."""
        load_state(self, load_file(path), str(path))

    def _save_pretrained(self, save_directory: Path) -> None:
        self.write(save_directory, self.state_dict())

    def write(self, save_directory: Path, weights: Mapping[str, Tensor]) -> None:
        """Save with these weights, which are whole where those of the model may be split.

        Unimodal heads belong to training and stay behind; adapters lie beside, in peft's format.
        Raises `OSError` when they cannot be written.
        """
        # Strategies stand above the model, and what they add is theirs to take off.
        from mmtransfer.transfer.adapters import save_adapters, without_adapters

        save_directory.mkdir(parents=True, exist_ok=True)
        adapted = save_adapters(self, save_directory / ADAPTERS)
        for name, encoder in self.encoders.items():
            encoder.save(save_directory / "encoders" / name)
        config = {
            "mmtransfer": 1,
            "encoders": list(self.encoders),
            "fusion": self.fusion.config(),
            "tasks": {name: task.config() for name, task in self.tasks.items()},
        }
        if adapted:
            config["adapters"] = adapted
        (save_directory / "config.json").write_text(json.dumps(config, indent=2))
        self.temperature.save(save_directory)
        # Copies: safetensors takes neither shared nor non-contiguous (channels-last) tensors.
        state = {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in without_adapters(self, weights).items()
            if not name.startswith("unimodal.")
        }
        try:
            save_file(state, save_directory / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:  # that of a full disk is no OSError
            raise OSError(f"{save_directory / WEIGHTS} cannot be written: {error}") from error

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> TransferModel:
        """Load a directory or hub id.  Raises `FileNotFoundError` for a path where nothing is."""
        name = str(pretrained_model_name_or_path)
        if not Path(name).is_dir() and (name[:1] in "./~" or name.count("/") != 1):
            raise FileNotFoundError(f"{name!r} is no directory and no hub id")
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str | torch.device = "cpu", **options: Any
    ) -> TransferModel:
        directory = Path(model_id)
        if not directory.is_dir():
            keys = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            directory = Path(snapshot_download(model_id, **{key: options[key] for key in keys}))
        for file in ("config.json", WEIGHTS):
            if not (directory / file).is_file():
                raise FileNotFoundError(f"{directory} is no saved model: it has no {file}")
        config = json.loads((directory / "config.json").read_text())
        if "mmtransfer" not in config:
            raise ValueError(f"{directory} holds another library's model, not an mmtransfer one")
        encoders = {n: Encoder.load(directory / "encoders" / n) for n in config["encoders"]}
        fusion = Fusion.from_config(config["fusion"])
        tasks = {name: Task.from_config(task) for name, task in config["tasks"].items()}
        model = cls(encoders, fusion, tasks)
        model.load_weights(directory / WEIGHTS)
        if config.get("adapters"):
            from mmtransfer.transfer.adapters import load_adapters

            load_adapters(model, directory / ADAPTERS)
        model.temperature = Temperature.load(directory)
        model.temperature.check(tasks)
        for encoder in encoders.values():
            encoder.pretrained = True
        return model.eval().to(map_location)


def hold_still(module: nn.Module, batch_norm: bool) -> None:
    """Put the frozen parts of a module, and on demand batch norm, into eval mode."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and batch_norm:
        module.eval()
    elif any(True for _ in module.parameters()) and not is_trainable(module):
        module.eval()  # with all that it holds; a dropout without parameters follows its parent
    else:
        for child in module.children():
            hold_still(child, batch_norm)


def has_batch_norm(module: nn.Module) -> bool:
    """Whether there is batch norm that goes by its batch now."""
    norm = nn.modules.batchnorm._BatchNorm
    return any(isinstance(part, norm) and part.training for part in module.modules())


def is_empty(inputs: Inputs | Activations) -> bool:
    """Whether there is nothing at all that an encoder could run on."""
    if isinstance(inputs, Activations):
        return not len(inputs.features.mask)
    return not any(len(value) for value in inputs.values.values())


def frozen_depth(encoder: Encoder) -> int:
    """How many stages of an encoder lie below all that trains; all of them where nothing does."""
    stages = encoder.stages
    depth = next((d for d, stage in enumerate(stages) if is_trainable(stage)), len(stages))
    staged = {id(p) for stage in stages for p in stage.parameters()}
    loose = any(p.requires_grad and id(p) not in staged for p in encoder.parameters())
    return 0 if loose else depth  # loose parameters go with the first stage


def is_trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy a state dict into a model of the same architecture, or say where they differ."""
    own = model.state_dict()
    lacking = [name for name in own if name not in state]
    foreign = [name for name in state if name not in own]
    shapes = [n for n in own if n in state and own[n].shape != state[n].shape]
    if lacking or foreign or shapes:
        details = []
        if lacking:
            details.append(f"{len(lacking)} tensors are missing, the first {lacking[0]!r}")
        if foreign:
            details.append(f"{len(foreign)} belong to no part, the first {foreign[0]!r}")
        if shapes:
            name = shapes[0]
            found, expected = tuple(state[name].shape), tuple(own[name].shape)
            details.append(f"{name!r} has shape {found}, expected {expected}")
        raise ValueError(f"{source} comes from another architecture: {'; '.join(details)}")
    model.load_state_dict(dict(state))
