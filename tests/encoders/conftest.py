"""Tiny transformers models of every family, and what plain transformers makes of the same values.

A new family is one function and one line in `FAMILIES`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import soundfile
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torchaudio.compliance import kaldi
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer

TEXTS = ["a red ripe apple", "pear", "one green apple and a red pear in the box"]
WORDS = ["[PAD]", "[UNK]", *sorted({word for text in TEXTS for word in text.split()})]
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.2,  # so that each block changes something
}
PATCHES = {"image_size": 24, "patch_size": 8}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CONV = {"conv_dim": (8, 8), "conv_kernel": (40, 4), "conv_stride": (20, 4)}
Made = tuple[nn.Module, Any]


def image_processor() -> Any:
    return transformers.ViTImageProcessor(size={"height": 24, "width": 24})


def tokenizer(**options: Any) -> Any:
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", **options
    )


def patches(kind: str, **options: Any) -> Made:
    """ViT and what is built like it."""
    config = getattr(transformers, f"{kind}Config")(**PATCHES, **SMALL, **options)
    return getattr(transformers, f"{kind}Model")(config), image_processor()


def swin() -> Made:
    config = transformers.SwinConfig(
        image_size=24,
        patch_size=2,
        embed_dim=8,
        depths=[1, 2],
        num_heads=[2, 2],
        window_size=4,
        initializer_range=0.2,
    )
    return transformers.SwinModel(config), image_processor()


def convnext() -> Made:
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 12], depths=[1, 2], num_stages=2, layer_scale_init_value=0.5
    )
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 48}, crop_pct=0.75)
    return transformers.ConvNextModel(config), processor


def resnet() -> Made:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 2, 1], layer_type="basic"
    )
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 48}, crop_pct=0.75)
    return transformers.ResNetModel(config), processor


def mobilenet() -> Made:
    config = transformers.MobileNetV2Config(depth_multiplier=0.25, finegrained_output=False)
    processor = transformers.MobileNetV2ImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}
    )
    return transformers.MobileNetV2Model(config), processor


def words(kind: str, **options: Any) -> Made:
    """BERT and what is built like it."""
    options = {"max_position_embeddings": 12, **options}
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(WORDS), **SMALL, **options)
    return getattr(transformers, f"{kind}Model")(config), tokenizer()


def distilbert() -> Made:
    config = transformers.DistilBertConfig(
        vocab_size=len(WORDS),
        max_position_embeddings=12,
        dim=16,
        n_layers=3,
        n_heads=2,
        hidden_dim=24,
        initializer_range=0.2,
    )
    return transformers.DistilBertModel(config), tokenizer()


def towers(kind: str) -> tuple[nn.Module, Any, Any]:
    """Two towers with both of their processors."""
    text = {**SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 12, **ENDS}
    vision = {**SMALL, **PATCHES}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision)
    return getattr(transformers, f"{kind}Model")(config), image_processor(), tokenizer()


def waves(kind: str, norm: str) -> Made:
    """wav2vec 2.0 and what is built like it."""
    # Published models come in these two kinds: large ones with masks, base ones without.
    large = norm == "layer"
    config = getattr(transformers, f"{kind}Config")(
        **SMALL,
        **CONV,
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm,
        do_stable_layer_norm=large,
        num_buckets=8,
    )
    processor = transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=4000, do_normalize=True, return_attention_mask=large
    )
    return getattr(transformers, f"{kind}Model")(config), processor


def ast() -> Made:
    config = transformers.ASTConfig(
        **SMALL,
        patch_size=4,
        frequency_stride=3,
        time_stride=3,
        max_length=64,
        num_mel_bins=16,
    )
    return transformers.ASTModel(config), transformers.ASTFeatureExtractor(
        num_mel_bins=16, max_length=64
    )


def whisper() -> Made:
    config = transformers.WhisperConfig(
        vocab_size=9,
        d_model=16,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_layerdrop=0.5,
        max_source_positions=50,
        num_mel_bins=20,
        decoder_start_token_id=1,
        init_std=0.2,
        **ENDS,
    )
    processor = transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=1)
    return transformers.WhisperModel(config), processor


class Family(NamedTuple):
    """How to build a tiny model, and how many stages it must have."""

    modality: str
    build: Callable[[], tuple[Any, ...]]
    stages: int
    tower: str | None = None
    rate: int = 4000


FAMILIES: dict[str, Family] = {
    "vit": Family("image", lambda: patches("ViT"), 5),
    "deit": Family("image", lambda: patches("DeiT"), 5),
    "dinov2": Family("image", lambda: patches("Dinov2"), 5),
    "swin": Family("image", swin, 5),
    "convnext": Family("image", convnext, 4),
    "resnet": Family("image", resnet, 5),
    "mobilenet": Family("image", mobilenet, 18),
    "clip-vision": Family("image", lambda: towers("CLIP"), 4, "vision"),
    "clip-text": Family("text", lambda: towers("CLIP"), 5, "text"),
    "siglip-vision": Family("image", lambda: towers("Siglip"), 5, "vision"),
    "siglip-text": Family("text", lambda: towers("Siglip"), 5, "text"),
    "bert": Family("text", lambda: words("Bert"), 4),
    "roberta": Family("text", lambda: words("Roberta", max_position_embeddings=14), 4),
    "distilbert": Family("text", distilbert, 4),
    "modernbert": Family("text", lambda: words("ModernBert", local_attention=4, **ENDS), 5),
    "wav2vec2-layer": Family("audio", lambda: waves("Wav2Vec2", "layer"), 6),
    "wav2vec2-group": Family("audio", lambda: waves("Wav2Vec2", "group"), 5),
    "hubert-layer": Family("audio", lambda: waves("Hubert", "layer"), 6),
    "hubert-group": Family("audio", lambda: waves("Hubert", "group"), 5),
    "wavlm-layer": Family("audio", lambda: waves("WavLM", "layer"), 6),
    "wavlm-group": Family("audio", lambda: waves("WavLM", "group"), 5),
    "ast": Family("audio", ast, 5, rate=16000),
    "whisper": Family("audio", whisper, 5, rate=16000),
}


class Kind(NamedTuple):
    """A tiny model with its processor, on disk."""

    name: str
    directory: Path
    family: Family

    @property
    def spec(self) -> str:
        tower = self.family.tower
        return f"hf:{self.directory}" + (f"?tower={tower}" if tower else "")


def settle(model: nn.Module) -> None:
    """Statistics and scales away from 0 and 1, so that leaving one out would show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.3, 0.3)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Kind]:
    """The tiny model of that name, saved once."""
    root, kinds = tmp_path_factory.mktemp("hf"), {}

    def make(name: str) -> Kind:
        if name not in kinds:
            torch.manual_seed(0)
            model, *processors = FAMILIES[name].build()
            settle(model)
            for part in (model, *processors):
                part.save_pretrained(root / name)
            kinds[name] = Kind(name, root / name, FAMILIES[name])
        return kinds[name]

    return make


@pytest.fixture(params=FAMILIES)
def kind(request: pytest.FixtureRequest, made: Callable[[str], Kind]) -> Kind:
    return made(request.param)


@pytest.fixture
def samples(picture: Callable[..., bytes], clip: Callable[..., bytes]) -> Callable[[Kind], Any]:
    """Raw values; sounds of one length where transformers' own padding changes a clip."""

    def make(kind: Kind) -> list[Any]:
        if kind.family.modality == "image":
            return [picture(0, (60, 50)), picture(1, (40, 70)), picture(2, (64, 64))]
        if kind.family.modality == "text":
            return list(TEXTS)
        equal = kind.name.endswith("group")
        lengths = (0.5, 0.5, 0.5) if equal else (0.5, 0.31, 0.07)
        return [clip(seed, seconds, kind.family.rate) for seed, seconds in enumerate(lengths)]

    return make


@pytest.fixture
def values(kind: Kind, samples: Callable[[Kind], Any]) -> list[Any]:
    return samples(kind)


@pytest.fixture
def plain() -> Callable[[Kind, list[Any]], tuple[Tensor, Tensor]]:
    """Tokens (B, T, D) and mask (B, T) out of transformers' own classes, as its manual says."""

    def run(kind: Kind, values: list[Any]) -> tuple[Tensor, Tensor]:
        model = AutoModel.from_pretrained(kind.directory).eval()
        if kind.family.tower:
            model = getattr(model, f"{kind.family.tower}_model")
        with torch.no_grad():
            return PLAIN[kind.family.modality](kind, model, values)

    return run


def _plain_image(kind: Kind, model: Any, values: list[Any]) -> tuple[Tensor, Tensor]:
    processor = AutoImageProcessor.from_pretrained(kind.directory)
    pictures = [Image.open(io.BytesIO(v)).convert("RGB") for v in values]
    hidden = model(**processor(pictures, return_tensors="pt")).last_hidden_state
    tokens = hidden.flatten(2).mT if hidden.ndim == 4 else hidden
    return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool)


def _plain_text(kind: Kind, model: Any, values: list[Any]) -> tuple[Tensor, Tensor]:
    coder = AutoTokenizer.from_pretrained(kind.directory)
    if kind.name == "siglip-text":  # as its model card wants it: padded to the end, without a mask
        coded = coder(values, padding="max_length", max_length=12, return_tensors="pt")
        tokens = model(coded["input_ids"]).last_hidden_state
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool)
    coded = coder(values, padding=True, return_tensors="pt")
    given = {name: coded[name] for name in ("input_ids", "attention_mask")}
    return model(**given).last_hidden_state, coded["attention_mask"].bool()


def _plain_sound(kind: Kind, model: Any, values: list[Any]) -> tuple[Tensor, Tensor]:
    extractor = AutoFeatureExtractor.from_pretrained(kind.directory)
    rate = kind.family.rate
    sounds = [soundfile.read(io.BytesIO(v), dtype="float32")[0] for v in values]
    if kind.name == "whisper":
        coded = extractor(
            sounds, sampling_rate=rate, return_tensors="pt", return_attention_mask=True
        )
        tokens = model.encoder(coded["input_features"]).last_hidden_state
        return tokens, coded["attention_mask"][:, ::2].bool()
    coded = extractor(sounds, sampling_rate=rate, padding=True, return_tensors="pt")
    tokens = model(**coded).last_hidden_state
    if (
        kind.name == "ast"
    ):  # class, distillation, then 5 bands of 21 patches that start each 3 frames
        frames = [len(kaldi.fbank(torch.from_numpy(s)[None], num_mel_bins=16)) for s in sounds]
        mask = [[True, True] + [3 * t < n for _ in range(5) for t in range(21)] for n in frames]
        return tokens, torch.tensor(mask)
    # Frames whose whole receptive field lies in the clip: the arithmetic of convolutions.
    frames = [len(sound) for sound in sounds]
    for kernel, stride in zip(CONV["conv_kernel"], CONV["conv_stride"], strict=True):
        frames = [(length - kernel) // stride + 1 for length in frames]
    return tokens, torch.arange(tokens.shape[1]) < torch.tensor(frames).unsqueeze(1)


PLAIN = {"image": _plain_image, "text": _plain_text, "audio": _plain_sound}
