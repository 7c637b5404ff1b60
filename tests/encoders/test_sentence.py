"""sentence: vectors are those of the sentence-transformers library."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtransfer.encoders.base import build_encoder
from mmtransfer.testing import check_cuts, check_encoder

TEXTS = ["Royal Gala APPLES, 1 kg", "milk", "", "oat milk and ripe pears " * 80]
TINY = ["a red ripe apple", "pear", "one green apple and a red pear in the box"]


def library(directory: Path, texts: list[str]) -> torch.Tensor:
    """Vectors (B, D) of the library itself."""
    package = pytest.importorskip("sentence_transformers", reason="the library to compare with")
    model = package.SentenceTransformer(str(directory), device="cpu")
    return model.encode(texts, convert_to_tensor=True)


def vectors(encoder: Any, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        features = encoder.eval()(**encoder.collate(texts))
    assert features.tokens.shape == (len(texts), 1, encoder.width)
    assert features.mask.all()
    return features.tokens[:, 0]


@pytest.fixture
def directory(made: Callable[[str], Any], tmp_path: Path) -> Path:
    """A tiny sentence model of the older layout: mean, scaled to length 1."""
    folder = tmp_path / "sentence"
    shutil.copytree(made("bert").directory, folder)
    kinds = ["models.Transformer", "models.Pooling", "models.Normalize"]
    modules = [
        {"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.{kinds[k]}"}
        for k, path in enumerate(("", "1_Pooling", "2_Normalize"))
    ]
    for name in ("1_Pooling", "2_Normalize"):
        (folder / name).mkdir()
    write(folder / "modules.json", modules)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 6, "do_lower_case": False})
    write(folder / "1_Pooling/config.json", {"word_embedding_dimension": 16})
    return folder


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def pooling(directory: Path, **options: Any) -> None:
    write(directory / "1_Pooling/config.json", {"word_embedding_dimension": 16, **options})


def test_real_minilm_is_that_of_the_library(minilm: Path) -> None:
    encoder = build_encoder(f"sentence:{minilm}")
    found = vectors(encoder, TEXTS)
    torch.testing.assert_close(found, library(minilm, TEXTS), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(TEXTS)))
    assert encoder.collate(TEXTS)["input_ids"].shape[1] == 256
    assert encoder.pretrained


def test_real_minilm_has_a_cut_at_every_block(minilm: Path) -> None:
    encoder = build_encoder(f"sentence:{minilm}").eval()
    assert list(encoder.cuts) == [1, 2, 3, 4, 5, 6]
    check_cuts(encoder, TEXTS[:2], tolerance=1e-5)


@pytest.mark.parametrize(
    ("options", "normalized"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, True),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, True),
        ({"pooling_mode": "cls"}, False),
        ({"pooling_mode": ["mean"]}, False),
    ],
)
def test_pooling_and_scaling_are_read(
    options: dict[str, Any], normalized: bool, directory: Path
) -> None:
    pooling(directory, **options)
    if not normalized:
        modules = json.loads((directory / "modules.json").read_text())
        write(directory / "modules.json", modules[:2])
    encoder = build_encoder(f"sentence:{directory}")
    torch.testing.assert_close(
        vectors(encoder, TINY), library(directory, TINY), atol=1e-5, rtol=1e-5
    )
    check_encoder(encoder, TINY)


def test_prompt_and_case_are_read(directory: Path) -> None:
    write(directory / "sentence_bert_config.json", {"max_seq_length": 6, "do_lower_case": True})
    prompts = {"prompts": {"query": "one green "}, "default_prompt_name": "query"}
    write(directory / "config_sentence_transformers.json", prompts)
    loud = [text.upper() for text in TINY]
    encoder = build_encoder(f"sentence:{directory}")
    expected = library(directory, loud)
    torch.testing.assert_close(vectors(encoder, loud), expected, atol=1e-5, rtol=1e-5)
    without = vectors(build_encoder(f"sentence:{directory}", prompt=""), loud)
    assert (without - expected).abs().max() > 1e-3
    check_encoder(encoder, loud)


def test_tokens_are_those_of_the_transformer(directory: Path) -> None:
    encoder = build_encoder(f"sentence:{directory}?tokens=true").eval()
    plain = build_encoder(f"hf:{directory}?max_tokens=6").eval()
    found, expected = encoder(**encoder.collate(TINY)), plain(**plain.collate(TINY))
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.mask, expected.mask)
    assert found.mask.sum(1).tolist() == [4, 1, 6]
    check_encoder(encoder, TINY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling_mode": "max"}, "pools by max; known here: mean, cls"),
        ({"pooling_mode": ["mean", "cls"]}, "pools by mean and cls"),
        ({"pooling_mode_weightedmean_tokens": True}, "pools by weightedmean_tokens"),
    ],
)
def test_another_way_to_pool_is_named(
    options: dict[str, Any], message: str, directory: Path
) -> None:
    pooling(directory, **options)
    with pytest.raises(ValueError, match=message):
        build_encoder(f"sentence:{directory}")


def test_another_module_is_named(directory: Path) -> None:
    modules = json.loads((directory / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.Dense"
    write(directory / "modules.json", modules)
    with pytest.raises(ValueError, match="module 'Dense' that is not known here.*Normalize"):
        build_encoder(f"sentence:{directory}")


def test_what_is_no_sentence_model_is_refused(made: Callable[[str], Any]) -> None:
    bert = made("bert").directory
    with pytest.raises(FileNotFoundError, match=f"no modules.json.*hf:{bert}.pool=mean"):
        build_encoder(f"sentence:{bert}")
    with pytest.raises(FileNotFoundError, match="sentence:./nowhere: no such directory"):
        build_encoder("sentence:./nowhere")
    with pytest.raises(ValueError, match="no option 'token'.*Did you mean 'tokens'"):
        build_encoder(f"sentence:{bert}?token=true")


@pytest.mark.parametrize("count", [0, -2, 1.5])
def test_a_bad_number_of_tokens_is_named(count: float, directory: Path) -> None:
    message = f"max_tokens must be a whole number above zero, found {count}"
    with pytest.raises(ValueError, match=message):
        build_encoder(f"sentence:{directory}?max_tokens={count}")
