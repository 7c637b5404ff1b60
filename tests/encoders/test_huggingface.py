"""hf: encoders give exactly what plain transformers gives, for tiny models and for real weights."""

import io
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer

from mmtransfer.encoders.base import Encoder, build_encoder
from mmtransfer.encoders.decoding import Waveform
from mmtransfer.testing import check_encoder

Maker = Callable[..., bytes]
TEXTS = ["a red ripe apple", "pear", "one green apple and a red pear in the box"]
WORDS = ["[PAD]", "[UNK]", *sorted({word for text in TEXTS for word in text.split()})]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
CONV = {"conv_dim": (8, 8), "conv_kernel": (40, 4), "conv_stride": (20, 4)}


class Kind(NamedTuple):
    """A tiny model with its processor, on disk."""

    directory: Path
    modality: str


def _vit() -> tuple[nn.Module, Any]:
    config = transformers.ViTConfig(image_size=24, patch_size=8, **SMALL)
    return transformers.ViTModel(config), transformers.ViTImageProcessor(
        size={"height": 24, "width": 24}
    )


def _resnet() -> tuple[nn.Module, Any]:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 2, 1], layer_type="basic"
    )
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 48}, crop_pct=0.75)
    return transformers.ResNetModel(config), processor


def _mobilenet() -> tuple[nn.Module, Any]:
    config = transformers.MobileNetV2Config(depth_multiplier=0.25, finegrained_output=False)
    processor = transformers.MobileNetV2ImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}
    )
    return transformers.MobileNetV2Model(config), processor


def _tokenizer(**options: Any) -> Any:
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", **options
    )


def _bert() -> tuple[nn.Module, Any]:
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=12, **SMALL)
    return transformers.BertModel(config), _tokenizer()


def _wav2vec2(norm: str) -> tuple[nn.Module, Any]:
    # Published models come in these two kinds: large ones with masks, base ones without.
    large = norm == "layer"
    config = transformers.Wav2Vec2Config(
        **SMALL,
        **CONV,
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm,
        do_stable_layer_norm=large,
    )
    processor = transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=4000, do_normalize=True, return_attention_mask=large
    )
    return transformers.Wav2Vec2Model(config), processor


BUILD: dict[str, tuple[str, Callable[[], tuple[nn.Module, Any]]]] = {
    "vit": ("image", _vit),
    "resnet": ("image", _resnet),
    "mobilenet": ("image", _mobilenet),
    "bert": ("text", _bert),
    "wav2vec2-layer": ("audio", lambda: _wav2vec2("layer")),
    "wav2vec2-group": ("audio", lambda: _wav2vec2("group")),
}


def save(directory: Path, model: nn.Module, processor: Any) -> Path:
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Kind]:
    """The tiny model of that name, saved once."""
    root, kinds = tmp_path_factory.mktemp("hf"), {}

    def make(name: str) -> Kind:
        if name not in kinds:
            torch.manual_seed(0)
            modality, build = BUILD[name]
            model, processor = build()
            _settle(model)
            kinds[name] = Kind(save(root / name, model, processor), modality)
        return kinds[name]

    return make


def _settle(model: nn.Module) -> None:
    """Statistics and scales away from 0 and 1, so that leaving one out would show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)


@pytest.fixture(params=BUILD)
def kind(request: pytest.FixtureRequest, made: Callable[[str], Kind]) -> Kind:
    return made(request.param)


@pytest.fixture
def values(kind: Kind, picture: Maker, clip: Maker) -> list[Any]:
    """Raw values; sounds of one length where transformers' own padding changes a clip."""
    if kind.modality == "image":
        return [picture(0, (60, 50)), picture(1, (40, 70)), picture(2, (64, 64))]
    if kind.modality == "text":
        return TEXTS
    equal = kind.directory.name.endswith("group")
    lengths = (0.5, 0.5, 0.5) if equal else (0.5, 0.31, 0.07)
    return [clip(seed, seconds, 4000) for seed, seconds in enumerate(lengths)]


def plain(kind: Kind, values: list[Any]) -> tuple[Tensor, Tensor]:
    """Tokens (B, T, D) and mask (B, T) out of transformers' own classes, as its manual says."""
    model = AutoModel.from_pretrained(kind.directory).eval()
    with torch.no_grad():
        if kind.modality == "image":
            processor = AutoImageProcessor.from_pretrained(kind.directory)
            pictures = [Image.open(io.BytesIO(v)).convert("RGB") for v in values]
            hidden = model(**processor(pictures, return_tensors="pt")).last_hidden_state
            tokens = hidden.flatten(2).mT if hidden.ndim == 4 else hidden
            return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool)
        if kind.modality == "text":
            tokenizer = AutoTokenizer.from_pretrained(kind.directory)
            coded = tokenizer(values, padding=True, return_tensors="pt")
            return model(**coded).last_hidden_state, coded["attention_mask"].bool()
        extractor = AutoFeatureExtractor.from_pretrained(kind.directory)
        sounds = [soundfile.read(io.BytesIO(v), dtype="float32")[0] for v in values]
        coded = extractor(sounds, sampling_rate=4000, padding=True, return_tensors="pt")
        tokens = model(**coded).last_hidden_state
        # Frames whose whole receptive field lies in the clip: the arithmetic of convolutions.
        frames = [len(sound) for sound in sounds]
        for kernel, stride in zip(CONV["conv_kernel"], CONV["conv_stride"], strict=True):
            frames = [(length - kernel) // stride + 1 for length in frames]
        return tokens, torch.arange(tokens.shape[1]) < torch.tensor(frames).unsqueeze(1)


def test_tokens_and_mask_are_those_of_plain_transformers(kind: Kind, values: list[Any]) -> None:
    encoder = build_encoder(f"hf:{kind.directory}").eval()
    with torch.no_grad():
        features = encoder(**encoder.collate(values))
    tokens, mask = plain(kind, values)
    assert torch.equal(features.mask, mask)
    torch.testing.assert_close(features.tokens, tokens, atol=1e-5, rtol=1e-5)
    assert features.width == encoder.width == tokens.shape[2]


def test_the_contract_holds(kind: Kind, values: list[Any]) -> None:
    check_encoder(build_encoder(f"hf:{kind.directory}"), values)


def test_stages_cover_every_parameter_from_input_to_output(kind: Kind, values: list[Any]) -> None:
    encoder = build_encoder(f"hf:{kind.directory}").eval()
    covered = [id(p) for stage in encoder.stages for p in stage.parameters()]
    assert sorted(covered) == sorted(map(id, encoder.parameters()))
    assert len(encoder.stages) > 2

    # Each stage starts where the network gets to it: the order is that of the forward pass.
    order: list[int] = []
    for number, stage in enumerate(encoder.stages):
        for module in stage.modules():
            module.register_forward_hook(lambda *_, n=number: order.append(n))
    encoder(**encoder.collate(values))
    assert list(dict.fromkeys(order)) == list(range(len(encoder.stages)))


@pytest.mark.parametrize("pool", ["none", "mean", "first"])
def test_a_saved_encoder_comes_back(
    kind: Kind, values: list[Any], pool: str, tmp_path: Path
) -> None:
    encoder = build_encoder(f"hf:{kind.directory}", pool=pool).eval()
    encoder.save(tmp_path)
    twin = Encoder.load(tmp_path).eval()
    twin.load_state_dict(encoder.state_dict())
    ours, again = encoder.collate(values), twin.collate(values)
    assert all(torch.equal(ours[name], again[name]) for name in ours.keys() | again.keys())
    with torch.no_grad():
        first, second = encoder(**ours), twin(**again)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.mask, second.mask)
    assert twin.fingerprint() == encoder.fingerprint()


def test_pools_are_views_of_the_tokens(kind: Kind, values: list[Any]) -> None:
    tokens, mask = plain(kind, values)
    expected = {
        "mean": torch.stack([t[m].mean(0) for t, m in zip(tokens, mask, strict=True)]),
        "first": tokens[:, 0],
    }
    marks = set()
    for pool, vectors in expected.items():
        encoder = build_encoder(f"hf:{kind.directory}?pool={pool}").eval()
        with torch.no_grad():
            features = encoder(**encoder.collate(values))
        assert features.tokens.shape[1] == 1
        torch.testing.assert_close(features.pooled(), vectors, atol=1e-5, rtol=1e-5)
        marks.add(encoder.fingerprint())
    assert len(marks) == 2


def test_nothing_is_taken_from_the_network(
    kind: Kind, values: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def refuse(*where: Any, **_: Any) -> Any:
        asked.append(where)
        raise OSError("no network in this test")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # let it try
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    encoder = build_encoder(f"hf:{kind.directory}")
    encoder.save(tmp_path)
    Encoder.load(tmp_path)
    assert asked == []


@pytest.mark.parametrize("path", ["/no/such/directory", "./nowhere", "~/nowhere-at-all", "a/b/c"])
def test_a_missing_path_is_no_hub_id(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=path):
        build_encoder(f"hf:{path}")


def test_a_bad_pool_is_named(made: Callable[[str], Kind]) -> None:
    with pytest.raises(ValueError, match="unknown pool 'maen'.*mean 'mean'"):
        build_encoder(f"hf:{made('vit').directory}?pool=maen")


def test_weights_that_are_not_all_there_are_refused(tmp_path: Path) -> None:
    # A deeper configuration than weights: transformers would fill the rest with noise.
    shallow, processor = _vit()
    shallow.config.num_hidden_layers += 1
    save(tmp_path, shallow, processor)
    with pytest.raises(ValueError, match=r"lacks weights of ViTModel, \d+ tensors"):
        build_encoder(f"hf:{tmp_path}")


def test_several_towers_are_refused(tmp_path: Path) -> None:
    tower = {**SMALL, "num_hidden_layers": 1}
    text = {**tower, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="CLIPModel has several towers"):
        build_encoder(f"hf:{tmp_path}")


def test_size_crops_in_proportion(made: Callable[[str], Kind], picture: Maker) -> None:
    kind, value = made("mobilenet"), picture(0, (90, 70))
    encoder = build_encoder(f"hf:{kind.directory}?size=64")
    processor = AutoImageProcessor.from_pretrained(
        kind.directory, size={"shortest_edge": 80}, crop_size={"height": 64, "width": 64}
    )
    expected = processor(Image.open(io.BytesIO(value)), return_tensors="pt")["pixel_values"]
    assert torch.equal(encoder.collate([value])["pixel_values"], expected)
    assert encoder.fingerprint() != build_encoder(f"hf:{kind.directory}").fingerprint()


@pytest.mark.parametrize("name", ["vit", "resnet", "mobilenet"])
def test_size_holds_for_every_kind_of_processor_and_is_saved(
    name: str, made: Callable[[str], Kind], picture: Maker, tmp_path: Path
) -> None:
    value = picture(0, (90, 70))
    encoder = build_encoder(f"hf:{made(name).directory}?size=64").eval()
    inputs = encoder.collate([value])
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    encoder.save(tmp_path)
    twin = Encoder.load(tmp_path).eval()
    twin.load_state_dict(encoder.state_dict())
    assert torch.equal(twin.collate([value])["pixel_values"], inputs["pixel_values"])
    assert torch.equal(twin(**inputs).tokens, encoder(**inputs).tokens)


def test_another_size_interpolates_the_positions(
    made: Callable[[str], Kind], picture: Maker
) -> None:
    kind = made("vit")
    encoder = build_encoder(f"hf:{kind.directory}?size=40").eval()
    inputs = encoder.collate([picture(0), picture(1)])
    model = AutoModel.from_pretrained(kind.directory).eval()
    with torch.no_grad():
        tokens = encoder(**inputs).tokens
        expected = model(**inputs, interpolate_pos_encoding=True).last_hidden_state
    assert tokens.shape[1] == 1 + (40 // 8) ** 2
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)


def test_long_texts_are_cut_where_the_positions_end(made: Callable[[str], Kind]) -> None:
    kind, long = made("bert"), "apple " * 40
    encoder = build_encoder(f"hf:{kind.directory}").eval()
    assert encoder(**encoder.collate([long])).mask.sum() == 12
    shorter = build_encoder(f"hf:{kind.directory}?max_tokens=5")
    assert shorter.collate([long, "pear"])["attention_mask"].sum(1).tolist() == [5, 1]


def test_long_texts_are_cut_where_roberta_says_so(tmp_path: Path) -> None:
    # Its positions start at pad_token_id + 1: of 14 only 12 are left for tokens.
    config = transformers.RobertaConfig(
        vocab_size=len(WORDS), max_position_embeddings=14, pad_token_id=1, **SMALL
    )
    save(tmp_path, transformers.RobertaModel(config), _tokenizer())
    encoder = build_encoder(f"hf:{tmp_path}").eval()
    assert encoder(**encoder.collate(["apple " * 40])).mask.sum() == 12


def test_group_norm_does_not_let_clips_change_each_other(
    made: Callable[[str], Kind], clip: Maker
) -> None:
    """Unlike in a padded batch of transformers, whose group norm sees the padding."""
    encoder = build_encoder(f"hf:{made('wav2vec2-group').directory}")
    check_encoder(encoder, [clip(0, 0.6, 4000), clip(1, 0.31, 4000), clip(2, 1.1, 4000)])


@pytest.mark.parametrize("name", ["wav2vec2-layer", "wav2vec2-group"])
def test_half_precision_checkpoints_are_trained_in_full(
    name: str, made: Callable[[str], Kind], tmp_path: Path, clip: Maker
) -> None:
    kind = made(name)
    AutoModel.from_pretrained(kind.directory).to(torch.bfloat16).save_pretrained(tmp_path)
    AutoFeatureExtractor.from_pretrained(kind.directory).save_pretrained(tmp_path)
    encoder = build_encoder(f"hf:{tmp_path}").eval()
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert encoder(**encoder.collate([clip(0, 0.5, 4000)])).tokens.dtype == torch.float32


@pytest.mark.parametrize("name", ["wav2vec2-layer", "wav2vec2-group"])
def test_long_clips_are_encoded_window_by_window(name: str, made: Callable[[str], Kind]) -> None:
    # Windows of 0.5 s: three for a clip of 1.5 s, each encoded as a clip of its own.
    kind = made(name)
    samples = np.random.default_rng(0).normal(0, 0.1, 6000).astype(np.float32)
    encoder = build_encoder(f"hf:{kind.directory}?window_seconds=0.5").eval()
    with torch.no_grad():
        whole = encoder(**encoder.collate([Waveform(samples, 4000)]))
        parts = [
            encoder(**encoder.collate([Waveform(samples[s : s + 2000], 4000)])).tokens[0]
            for s in (0, 2000, 4000)
        ]
    torch.testing.assert_close(whole.tokens[0], torch.cat(parts), atol=1e-5, rtol=1e-5)
    assert whole.mask.all()


@pytest.mark.parametrize("samples", [1, 2001, 2400])
def test_the_last_sliver_of_a_clip_is_heard(samples: int, made: Callable[[str], Kind]) -> None:
    sound = np.full(samples, 0.1, np.float32) * np.random.default_rng(0).normal(size=samples)
    clips = [Waveform(sound.astype(np.float32), 4000), Waveform(np.ones(3000, np.float32), 4000)]
    directory = made("wav2vec2-layer").directory
    encoder = build_encoder(f"hf:{directory}?window_seconds=0.5").eval()
    features = encoder(**encoder.collate(clips))
    assert features.present.all()
    assert torch.isfinite(features.pooled()).all()
    one_window = Waveform(clips[0].samples[:2000], 4000)
    count = encoder(**encoder.collate([one_window])).mask.sum()
    assert (features.mask.sum(1)[0] > count) == (samples > 2000)


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_of_an_encoder_decoder_the_encoder_is_taken_and_comes_back(
    name: str, tmp_path: Path, clip: Maker
) -> None:
    if name == "t5":
        config: Any = transformers.T5Config(
            vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2
        )
        model, processor = transformers.T5Model(config), _tokenizer()
        values: list[Any] = TEXTS
    else:
        ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = transformers.WhisperConfig(
            vocab_size=9,
            d_model=16,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            max_source_positions=50,
            num_mel_bins=20,
            decoder_start_token_id=1,
            **ends,
        )
        model = transformers.WhisperModel(config)
        processor = transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=1)
        values = [clip(0), clip(1, 0.4)]
    save(tmp_path / "source", model, processor)
    encoder = build_encoder(f"hf:{tmp_path / 'source'}").eval()
    inputs = encoder.collate(values)
    reference = AutoModel.from_pretrained(tmp_path / "source").get_encoder().eval()
    plain_inputs = inputs if name == "t5" else {"input_features": inputs["sound"]}
    tokens = encoder(**inputs).tokens
    torch.testing.assert_close(tokens, reference(**plain_inputs).last_hidden_state)
    encoder.save(tmp_path / "saved")
    twin = Encoder.load(tmp_path / "saved").eval()
    twin.load_state_dict(encoder.state_dict())
    assert torch.equal(twin(**inputs).tokens, tokens)
    assert not any("decoder" in n for n, _ in encoder.named_parameters())


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-bert", "tiny-wav2vec2"])
@pytest.mark.parametrize("pool", ["none", "mean"])
def test_tiny_encoders_keep_the_contract(name: str, pool: str, picture: Maker, clip: Maker) -> None:
    torch.manual_seed(0)
    values = {
        "tiny-vit": [picture(0), picture(1, (20, 90))],
        "tiny-bert": ["", "apple", "a much longer text " * 20],
        "tiny-wav2vec2": [clip(0, 0.3), clip(1, 0.8, 22050), clip(2, 0.05)],
    }
    encoder = build_encoder(name, pool=pool, width=16)
    assert encoder.width == 16
    check_encoder(encoder, values[name])
    assert not encoder.pretrained


@pytest.fixture(scope="module")
def mobilenet(shared: Path) -> Path:
    return shared / "models" / "mobilenet-v2-imagenet"


def test_real_mobilenet_is_plain_transformers(mobilenet: Path, picture: Maker) -> None:
    values = [picture(0, (300, 260)), picture(1, (120, 200))]
    encoder = build_encoder(f"hf:{mobilenet}").eval()
    model = AutoModel.from_pretrained(mobilenet).eval()
    processor = AutoImageProcessor.from_pretrained(mobilenet)
    with torch.no_grad():
        features = encoder(**encoder.collate(values))
        pictures = [Image.open(io.BytesIO(value)) for value in values]
        out = model(**processor(pictures, return_tensors="pt"))
    torch.testing.assert_close(
        features.tokens, out.last_hidden_state.flatten(2).mT, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(features.pooled(), out.pooler_output, atol=1e-5, rtol=1e-4)
    assert features.mask.all()
    assert features.tokens.shape == (2, 49, encoder.width)
    assert encoder.width == 1280
    assert encoder.pretrained


def test_real_minilm_pools_like_sentence_transformers(minilm: Path) -> None:
    texts = ["Royal Gala apples, 1 kg", "milk", "a much longer sentence about oat milk and pears"]
    encoder = build_encoder(f"hf:{minilm}?pool=mean").eval()
    model, tokenizer = (
        AutoModel.from_pretrained(minilm).eval(),
        AutoTokenizer.from_pretrained(minilm),
    )
    coded = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**coded).last_hidden_state
        vectors = encoder(**encoder.collate(texts)).pooled()
    mask = coded["attention_mask"].unsqueeze(-1).float()
    expected = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=1e-5)
    assert encoder.width == 384


def test_real_minilm_does_not_mind_its_mates(minilm: Path) -> None:
    check_encoder(build_encoder(f"hf:{minilm}"), ["milk", "", "a longer text about ripe pears"])
