"""Sentence encoders in the directory layout of sentence-transformers, read with transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from torch import Tensor
from torch.nn import functional as F

from mmtransfer.encoders.decoding import decode_text
from mmtransfer.encoders.huggingface import HuggingFaceEncoder
from mmtransfer.encoders.huggingface_collate import TextCollate
from mmtransfer.encoders.huggingface_load import load_pretrained
from mmtransfer.features import Features
from mmtransfer.registry import nearest, register_encoder

#: pooling modes of sentence-transformers -> ours
POOLINGS = {"mean": "mean", "cls": "first"}
MODULES = ("Transformer", "Pooling", "Normalize")
# Neither pickled weights nor those of other runtimes.
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")


class SentenceCollate(TextCollate):
    """Texts to `input_ids (B, T)` and `attention_mask (B, T)`, a prompt in front of each."""

    def __init__(self, processor: Any, max_tokens: int, prompt: str, lower: bool) -> None:
        super().__init__(processor, max_tokens)
        self.prompt, self.lower = prompt, lower

    def __call__(self, values: list[Any]) -> dict[str, Tensor]:
        texts = [self.prompt + decode_text(value) for value in values]
        return super().__call__([text.lower() for text in texts] if self.lower else texts)


@register_encoder("sentence")
class SentenceEncoder(HuggingFaceEncoder):
    """One vector per text, `sentence:<hub id or directory>` (Reimers and Gurevych, EMNLP 2019).

    The directory says how tokens are pooled (mean or class token) and whether vectors are scaled
    to length 1.  With pool "none" all tokens are given as the transformer leaves them.

    pool: "mean", "first" or "none"; max_tokens: texts are cut after so many tokens
    prompt: goes in front of each text; lower: texts are lowercased

    Raises `ValueError` for other modules or another way to pool.
    """

    OPTIONS = ("pool", "normalize", "max_tokens", "prompt", "lower")

    def __init__(
        self,
        model: Any,
        processor: Any,
        pool: str = "mean",
        normalize: bool = True,
        max_tokens: int | None = None,
        prompt: str = "",
        lower: bool = False,
    ) -> None:
        super().__init__(model, processor, pool, max_tokens=max_tokens)
        if not isinstance(self.collate, TextCollate):
            raise ValueError(f"a sentence encoder reads texts, {type(model).__name__} does not")
        self.normalize, self.prompt, self.lower = normalize, prompt, lower
        self.collate = SentenceCollate(processor, self.collate.max_tokens, prompt, lower)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        source: str,
        tokens: bool = False,
        max_tokens: int | None = None,
        prompt: str | None = None,
    ) -> SentenceEncoder:
        """Load weights, tokenizer and pooling; a local directory never touches the network.

        tokens: give all tokens instead of one vector
        prompt: in front of each text; by default the one that the directory names as such
        """
        directory = Path(source).expanduser()
        if not directory.is_dir():
            if source[:1] in "./~" or source.count("/") > 1:
                raise FileNotFoundError(f"sentence:{source}: no such directory")
            directory = Path(snapshot_download(source, allow_patterns=list(FILES)))
        if not (directory / "modules.json").is_file():
            raise FileNotFoundError(
                f"sentence:{source} has no modules.json; "
                f"a plain transformers model is hf:{source}?pool=mean"
            )
        paths = {}
        for module in _read(directory / "modules.json"):
            name = module["type"].rpartition(".")[2]
            if name not in MODULES or name in paths:
                raise ValueError(
                    f"sentence:{source} has a module {name!r} that is not known here."
                    f"{nearest(name, MODULES)}"
                )
            paths[name] = directory / module["path"]
        if list(paths) not in (list(MODULES), list(MODULES[:2])):
            raise ValueError(
                f"sentence:{source}: expected modules {', '.join(MODULES)}, found {list(paths)}"
            )
        options = _read(paths["Transformer"] / "sentence_bert_config.json")
        pooling = _read(paths["Pooling"] / "config.json")
        if prompt is None:
            prompt = _default_prompt(directory)
        if prompt and not pooling.get("include_prompt", True):
            raise ValueError(f"sentence:{source} leaves its prompt out of the mean: not known here")
        model, processor = load_pretrained(str(paths["Transformer"]), prefix="sentence")
        encoder = cls(
            model,
            processor,
            "none" if tokens else _pool(pooling, source),
            "Normalize" in paths,
            options.get("max_seq_length") if max_tokens is None else max_tokens,
            prompt,
            options.get("do_lower_case", False),
        )
        encoder.pretrained = True
        return encoder

    def _finish(self, features: Features) -> Features:
        features = super()._finish(features)
        if not self.normalize or self.pool == "none":
            return features
        return Features(F.normalize(features.tokens, dim=-1), features.mask)


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else {}


def _pool(config: dict[str, Any], source: str) -> str:
    """The one way to pool that a configuration of either age names."""
    found = config.get("pooling_mode")
    if found is None:  # before version 6: a switch for each
        old = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
        switched = [k for k, v in config.items() if k.startswith("pooling_mode") and v is True]
        found = [old.get(k, k.removeprefix("pooling_mode_")) for k in switched] or "mean"
    modes = [found] if isinstance(found, str) else list(found)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(
            f"sentence:{source} pools by {' and '.join(modes)}; known here: {', '.join(POOLINGS)}"
        )
    return POOLINGS[modes[0]]


def _default_prompt(directory: Path) -> str:
    config = _read(directory / "config_sentence_transformers.json")
    return str(config.get("prompts", {}).get(config.get("default_prompt_name"), ""))
