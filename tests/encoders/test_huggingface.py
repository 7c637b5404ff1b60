"""hf: encoders give exactly what plain transformers gives, for tiny models and for real weights."""

import io
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from mmtransfer.encoders.base import Encoder, build_encoder
from mmtransfer.fusion.concat import ConcatFusion
from mmtransfer.model import TransferModel
from mmtransfer.tasks.classification import Classification
from mmtransfer.testing import check_encoder

Maker = Callable[..., bytes]
Plain = Callable[[Any, list[Any]], tuple[Tensor, Tensor]]
WITH_CLASS_TOKEN = (
    *("vit", "deit", "dinov2", "clip-vision", "ast"),
    *("bert", "roberta", "distilbert", "modernbert"),
)


def test_tokens_and_mask_are_those_of_plain_transformers(
    kind: Any, values: list[Any], plain: Plain
) -> None:
    encoder = build_encoder(kind.spec).eval()
    with torch.no_grad():
        features = encoder(**encoder.collate(values))
    tokens, mask = plain(kind, values)
    length = mask.shape[1]  # texts have some more tokens, which are padding
    assert torch.equal(features.mask[:, :length], mask)
    assert not features.mask[:, length:].any()
    torch.testing.assert_close(features.tokens[:, :length], tokens, atol=1e-5, rtol=1e-5)
    assert features.width == encoder.width == tokens.shape[2]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("limit", "short", "long"), [(5, 5, 5), (8, 8, 8), (11, 8, 11)])
def test_texts_have_few_lengths_so_that_few_kernels_are_made(
    made: Callable[[str], Any], limit: int, short: int, long: int, side: str
) -> None:
    encoder = build_encoder(made("bert").spec, max_tokens=limit)
    encoder.processor.padding_side = side
    found = encoder.collate(["cat"])
    real = encoder.processor("cat")["input_ids"]
    padding = [encoder.processor.pad_token_id] * (short - len(real))
    wanted = padding + real if side == "left" else real + padding
    assert found["input_ids"].tolist() == [wanted]
    assert found["attention_mask"].tolist() == [[int(i not in padding) for i in wanted]]
    assert encoder.collate(["a cat sat on the mat and a dog sat"])["input_ids"].shape == (1, long)


def test_the_contract_holds(kind: Any, values: list[Any]) -> None:
    check_encoder(build_encoder(kind.spec), values)


@pytest.mark.parametrize("pool", ["none", "mean"])
@pytest.mark.parametrize("name", ["vit", "siglip-text", "wav2vec2-group", "whisper"])
def test_a_saved_encoder_comes_back(
    name: str, pool: str, made: Callable[[str], Any], samples: Callable[[Any], Any], tmp_path: Path
) -> None:
    kind = made(name)
    values = samples(kind)
    encoder = build_encoder(kind.spec, pool=pool).eval()
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


def test_a_saved_model_has_the_same_encoder(kind: Any, values: list[Any], tmp_path: Path) -> None:
    encoder = build_encoder(kind.spec)
    fusion, tasks = ConcatFusion({"x": encoder.width}, 4), {"y": Classification(["a", "b"])}
    TransferModel({"x": encoder}, fusion, tasks).save_pretrained(tmp_path)
    twin = TransferModel.from_pretrained(tmp_path).encoders["x"]
    inputs = encoder.eval().collate(values)
    with torch.no_grad():
        assert torch.equal(encoder(**inputs).tokens, twin(**inputs).tokens)
    assert twin.fingerprint() == encoder.fingerprint()


def test_pools_are_views_of_the_tokens(kind: Any, values: list[Any], plain: Plain) -> None:
    tokens, mask = plain(kind, values)
    expected = {
        "mean": torch.stack([t[m].mean(0) for t, m in zip(tokens, mask, strict=True)]),
        "first": tokens[:, 0],
    }
    if kind.name not in WITH_CLASS_TOKEN:
        del expected["first"]
        with pytest.raises(ValueError, match=r"pool 'first' needs a class token.*Valid: none, me"):
            build_encoder(kind.spec, pool="first")
    marks = set()
    for pool, vectors in expected.items():
        encoder = build_encoder(kind.spec, pool=pool).eval()
        with torch.no_grad():
            features = encoder(**encoder.collate(values))
        assert features.tokens.shape[1] == 1
        torch.testing.assert_close(features.pooled(), vectors, atol=1e-5, rtol=1e-5)
        marks.add(encoder.fingerprint())
    assert len(marks) == len(expected)


@pytest.mark.parametrize("name", ["vit", "clip-text", "bert", "wav2vec2-layer", "whisper"])
def test_nothing_is_taken_from_the_network(
    name: str, made: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kind = made(name)
    asked: list[Any] = []

    def refuse(*where: Any, **_: Any) -> Any:
        asked.append(where)
        raise OSError("no network in this test")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # let it try
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    encoder = build_encoder(kind.spec)
    encoder.save(tmp_path)
    Encoder.load(tmp_path)
    assert asked == []


@pytest.mark.parametrize("path", ["/no/such/directory", "./nowhere", "~/nowhere-at-all", "a/b/c"])
def test_a_missing_path_is_no_hub_id(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=path):
        build_encoder(f"hf:{path}")


def test_a_bad_pool_is_named(made: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match="unknown pool 'maen'.*mean 'mean'"):
        build_encoder(f"hf:{made('vit').directory}?pool=maen")


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("vit", "size=-3", "size must be a whole number above zero, found -3"),
        ("bert", "max_tokens=0", "max_tokens must be a whole number above zero, found 0"),
        ("bert", "max_tokens=-2", "max_tokens must be a whole number above zero, found -2"),
        ("bert", "size=32", "size is for models of image, .* text; its own: max_tokens"),
        ("vit", "max_tokens=3", "max_tokens is for models of text, .* image; its own: size"),
        ("whisper", "size=3", "size is for models of image, .*; its own: window_seconds"),
        ("whisper", "window_seconds=1e-3", "window_seconds must be at least 0.05, found 0.001"),
        ("whisper", "window_seconds=a", "window_seconds must be a number above zero, found 'a'"),
    ],
)
def test_bad_options_and_those_of_other_modalities_are_refused(
    name: str, option: str, message: str, made: Callable[[str], Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(f"{made(name).spec}?{option}")


def test_weights_that_are_not_all_there_are_refused(
    made: Callable[[str], Any], tmp_path: Path
) -> None:
    # A deeper configuration than weights: transformers would fill the rest with noise.
    shallow = AutoModel.from_pretrained(made("vit").directory)
    shallow.config.num_hidden_layers += 1
    shallow.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks weights of ViTModel, \d+ tensors"):
        build_encoder(f"hf:{tmp_path}")


def test_a_tower_must_be_chosen_where_there_are_two(made: Callable[[str], Any]) -> None:
    both, one = made("clip-text").directory, made("vit").directory
    with pytest.raises(ValueError, match="has two towers: .*tower=vision for images or .*=text"):
        build_encoder(f"hf:{both}")
    with pytest.raises(ValueError, match="unknown tower 'txet'.*Valid: vision, text"):
        build_encoder(f"hf:{both}?tower=txet")
    with pytest.raises(ValueError, match="single tower: leave tower='vision' out"):
        build_encoder(f"hf:{one}?tower=vision")


def test_size_crops_in_proportion(made: Callable[[str], Any], picture: Maker) -> None:
    kind, value = made("mobilenet"), picture(0, (90, 70))
    encoder = build_encoder(f"hf:{kind.directory}?size=64")
    processor = AutoImageProcessor.from_pretrained(
        kind.directory, size={"shortest_edge": 80}, crop_size={"height": 64, "width": 64}
    )
    expected = processor(Image.open(io.BytesIO(value)), return_tensors="pt")["pixel_values"]
    assert torch.equal(encoder.collate([value])["pixel_values"], expected)
    assert encoder.fingerprint() != build_encoder(kind.spec).fingerprint()


@pytest.mark.parametrize("name", ["vit", "resnet", "mobilenet"])
def test_size_holds_for_every_kind_of_processor_and_is_saved(
    name: str, made: Callable[[str], Any], picture: Maker, tmp_path: Path
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
    made: Callable[[str], Any], picture: Maker
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


def test_long_texts_are_cut_where_the_positions_end(made: Callable[[str], Any]) -> None:
    kind, long = made("bert"), "apple " * 40
    encoder = build_encoder(kind.spec).eval()
    assert encoder(**encoder.collate([long])).mask.sum() == 12
    shorter = build_encoder(f"hf:{kind.directory}?max_tokens=5")
    assert shorter.collate([long, "pear"])["attention_mask"].sum(1).tolist() == [5, 1]


@pytest.mark.parametrize(
    "changed",
    [{"model_max_length": 5}, {"truncation_side": "left"}, {"padding_side": "left"}],
)
def test_how_texts_are_cut_and_padded_is_part_of_the_fingerprint(
    made: Callable[[str], Any], changed: dict[str, Any]
) -> None:
    encoder = build_encoder(made("bert").spec)
    coder = AutoTokenizer.from_pretrained(made("bert").directory, **changed)
    other = type(encoder)(encoder.model, coder)
    assert other.fingerprint() != encoder.fingerprint()


def test_long_texts_are_cut_where_roberta_says_so(made: Callable[[str], Any]) -> None:
    # Its positions start at pad_token_id + 1: of 14 only 12 are left for tokens.
    encoder = build_encoder(made("roberta").spec).eval()
    assert encoder(**encoder.collate(["apple " * 40])).mask.sum() == 12


def test_of_an_encoder_decoder_the_encoder_is_taken_and_comes_back(
    made: Callable[[str], Any], tmp_path: Path
) -> None:
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2
    )
    for part in (
        transformers.T5Model(config),
        AutoTokenizer.from_pretrained(made("bert").directory),
    ):
        part.save_pretrained(tmp_path / "source")
    encoder = build_encoder(f"hf:{tmp_path / 'source'}").eval()
    inputs = encoder.collate(["a red apple", "pear"])
    reference = AutoModel.from_pretrained(tmp_path / "source").get_encoder().eval()
    tokens = encoder(**inputs).tokens
    torch.testing.assert_close(tokens, reference(**inputs).last_hidden_state)
    encoder.save(tmp_path / "saved")
    twin = Encoder.load(tmp_path / "saved").eval()
    twin.load_state_dict(encoder.state_dict())
    assert torch.equal(twin(**inputs).tokens, tokens)
    assert not any("decoder" in n for n, _ in encoder.named_parameters())
    # An architecture that the table of stages does not know: found by its list of blocks, no cuts.
    assert len(encoder.stages) > 2
    assert list(encoder.cuts) == []
    with pytest.raises(ValueError, match="no cut at depth 1; its cuts: \\(none\\)"):
        encoder.below(1, **inputs)


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


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tiny-vit?layers=0", "layers must be a whole number above zero, found 0"),
        ("tiny-vit?patch=64", "patch must be at most size, 32, found 64"),
        ("tiny-bert?max_tokens=-1", "max_tokens must be a whole number above zero, found -1"),
        ("tiny-wav2vec2?width=6", "width must be a multiple of 4, found 6"),
    ],
)
def test_bad_sizes_of_tiny_encoders_are_named(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(spec)


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
