"""Specification strings, encoders of anybody's own, saving and loading, fingerprints, stages."""

import importlib
import json
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmtransfer.encoders import base
from mmtransfer.encoders.base import (
    Encoder,
    build_encoder,
    build_encoders,
    parse_spec,
    split_stages,
)
from mmtransfer.features import Features
from mmtransfer.testing import check_encoder

PLUGIN = '''
"""An encoder of somebody's own."""
import torch
from torch import nn
from mmtransfer.encoders.base import Encoder
from mmtransfer.features import Features

def collate(values):
    return {"x": torch.tensor(values, dtype=torch.float32)}

class Numbers(Encoder):
    """Lists of three numbers."""
    def __init__(self, width=4, scale=1.0):
        super().__init__()
        self.width, self.scale = width, scale
        self.layer = nn.Linear(3, width)
        self.collate = collate
    def forward(self, x):
        return Features.of(self.layer(x * self.scale))

class Unrelated:
    """No encoder at all."""
    calls = []
    def __init__(self, *arguments, **options):
        self.calls.append(options)
'''
VALUES = [[0.0, 1.0, 2.0], [1.0, -1.0, 0.5], [2.0, 2.0, 2.0]]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of an importable module with an encoder of its own."""
    (tmp_path / "mmt_own_encoders.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "mmt_own_encoders"
    sys.modules.pop("mmt_own_encoders", None)


class Layered(Encoder):
    """Token ids to vectors through blocks, batch norm and dropout: all kinds of state."""

    def __init__(self, width: int = 4, depth: int = 2, note: str = "") -> None:
        super().__init__()
        self.width, self.depth, self.note = width, depth, note
        self.embed = nn.Embedding(10, width)
        self.body = nn.ModuleDict(
            {
                "before": nn.Linear(width, width),
                "blocks": nn.ModuleList(nn.Linear(width, width) for _ in range(depth)),
                "after": nn.BatchNorm1d(width),
            }
        )
        self.drop = nn.Dropout(0.5)
        self.collate = collate_ids

    def forward(self, ids: Tensor) -> Features:
        x = self.body["before"](self.embed(ids))
        for block in self.body["blocks"]:  # type: ignore[union-attr]
            x = block(x).tanh()
        return Features.of(self.drop(self.body["after"](x)))


def collate_ids(values: list[Any]) -> dict[str, Tensor]:
    return {"ids": torch.tensor(values)}


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
        st.integers() | st.booleans() | st.none() | st.text(max_size=8) | st.floats(-9, 9),
        max_size=4,
    ),
    st.from_regex(r"[a-z./:-]{0,12}", fullmatch=True),
)
@settings(deadline=None)
def test_options_of_a_specification_come_back_with_their_types(
    options: dict[str, Any], argument: str
) -> None:
    query = "&".join(f"{key}={quote(json.dumps(value))}" for key, value in options.items())
    assert parse_spec(f"hf:{argument}?{query}") == ("hf", argument, options)


def test_options_that_are_no_json_are_text() -> None:
    assert parse_spec("hf:a/b?pool=mean&size=64") == ("hf", "a/b", {"pool": "mean", "size": 64})
    assert parse_spec("tiny-vit") == ("tiny-vit", "", {})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tiny-vti", "unknown encoder 'tiny-vti'.*mean 'tiny-vit'"),
        ("hff:some/dir", "unknown encoder 'hff'.*mean 'hf'"),
        ("hff:model", "unknown encoder 'hff:model'.*mean 'hf'"),
        ("tiny-vit?with=8", "'tiny-vit' has no option 'with'.*mean 'width'"),
        ("hf:/some/dir?sise=8", "'hf' has no option 'sise'.*mean 'size'"),
        ("kwt:/some/dir?token=class", "'kwt' has no option 'token'.*mean 'tokens'"),
        ("hf", "hf:<hub id or directory>"),
        ("kwt:", "kwt:<hub id or directory>"),
        ("mmt_nowhere.parts:Thing", "no module 'mmt_nowhere'"),
        ("mmtransfer.encoders.huggingface:HuggingFaceEncode", "mean 'HuggingFaceEncoder'"),
    ],
)
def test_mistakes_in_a_specification_name_the_nearest(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(spec)


def test_an_argument_that_an_encoder_does_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match="large"):
        build_encoder("tiny-vit:large")


def test_keywords_win_over_the_options_of_the_specification() -> None:
    assert build_encoder("tiny-vit?width=16&layers=1", width=32).width == 32


def test_columns_get_their_encoders_and_a_ready_one_stays_itself() -> None:
    own = Layered()
    built = build_encoders({"b": own, "a": "tiny-bert?width=16&layers=1"})
    assert list(built) == ["b", "a"]
    assert built["b"] is own
    assert built["a"].width == 16


def test_an_encoder_of_anybodys_own_works_and_comes_back(plugin: str, tmp_path: Path) -> None:
    encoder = build_encoder(f"{plugin}:Numbers?width=5", scale=2.0)
    assert (encoder.width, encoder.scale) == (5, 2.0)
    check_encoder(encoder, VALUES)
    encoder.save(tmp_path / "saved")
    twin = Encoder.load(tmp_path / "saved")
    twin.load_state_dict(encoder.state_dict())
    inputs = encoder.collate(VALUES)
    assert type(twin) is type(encoder)
    assert torch.equal(twin(**inputs).tokens, encoder(**inputs).tokens)


def test_options_of_an_encoder_of_anybodys_own_are_checked(plugin: str) -> None:
    with pytest.raises(ValueError, match="no option 'scal'.*mean 'scale'"):
        build_encoder(f"{plugin}:Numbers?scal=2")
    with pytest.raises(ValueError, match="no such class.*mean 'Numbers'"):
        build_encoder(f"{plugin}:Number")


def test_what_is_built_must_be_an_encoder(plugin: str) -> None:
    with pytest.raises(ValueError, match="gave a Unrelated, expected an Encoder"):
        build_encoder(f"{plugin}:Unrelated")


def test_a_saved_file_cannot_have_other_classes_called(plugin: str, tmp_path: Path) -> None:
    mark = tmp_path / "called"
    harmful = [
        {"class": "subprocess:Popen", "args": ["touch", str(mark)]},
        {"class": "os:system", "command": f"touch {mark}"},
        {"class": f"{plugin}:Unrelated"},
        {"class": f"{plugin}:collate", "values": []},
        {"class": "mmtransfer.encoders.tiny:tiny_vit"},
    ]
    for config in harmful:
        (tmp_path / "encoder.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="is not an Encoder"):
            Encoder.load(tmp_path)
    assert not mark.exists()
    assert sys.modules[plugin].Unrelated.calls == []


@pytest.mark.parametrize("config", [{}, {"class": "Layered"}, {"class": "mmt_nowhere:Layered"}])
def test_a_saved_encoder_without_a_class_is_refused(config: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "encoder.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r".+"):
        Encoder.load(tmp_path)


def test_a_directory_without_an_encoder_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no saved encoder: encoder\.json"):
        Encoder.load(tmp_path)


def test_the_fingerprint_sees_weights_buffers_options_and_class() -> None:
    encoder = Layered()
    mark = encoder.fingerprint()
    twin = Layered()
    twin.load_state_dict(encoder.state_dict())
    assert twin.fingerprint() == mark == encoder.train().fingerprint()

    seen = {mark}
    for name, tensor in encoder.state_dict().items():
        before = tensor.clone()
        tensor.view(-1)[-1] += 1
        assert encoder.fingerprint() not in seen, f"a change of {name} goes unseen"
        seen.add(encoder.fingerprint())
        tensor.copy_(before)
    assert encoder.fingerprint() == mark
    renamed = Layered(note="another option, the same weights")
    renamed.load_state_dict(encoder.state_dict())
    assert renamed.fingerprint() not in seen
    assert encoder.bfloat16().fingerprint() not in seen


def test_the_fingerprint_tells_swapped_weights_apart() -> None:
    encoder = Layered()
    mark = encoder.fingerprint()
    first, second = encoder.body["blocks"]  # type: ignore[misc]
    state = first.state_dict()
    state = {name: tensor.clone() for name, tensor in state.items()}
    first.load_state_dict(second.state_dict())
    second.load_state_dict(state)
    assert encoder.fingerprint() != mark


def test_stages_open_the_network_around_its_blocks_and_cover_it_once() -> None:
    encoder = Layered(depth=3)
    body = encoder.body
    expected = [encoder.embed, body["before"], *body["blocks"], body["after"]]  # type: ignore[misc]
    assert split_stages(encoder) == expected
    covered = [id(p) for stage in split_stages(encoder) for p in stage.parameters()]
    assert sorted(covered) == sorted(map(id, encoder.parameters()))


def test_stages_follow_the_larger_of_two_lists() -> None:
    model = nn.Module()
    model.small = nn.ModuleList(nn.Linear(2, 2) for _ in range(5))
    model.large = nn.ModuleList(nn.Linear(9, 9) for _ in range(2))
    assert split_stages(model) == [model.small, *model.large]


def test_only_the_collate_travels_to_workers() -> None:
    encoder = Layered()
    copy = pickle.loads(pickle.dumps(encoder.collate))
    assert torch.equal(copy([[1, 2]])["ids"], encoder.collate([[1, 2]])["ids"])


@pytest.mark.parametrize("edited", ["helper", "Parent", "Child"])
def test_an_edited_forward_is_another_identity_in_a_parent_too(tmp_path, monkeypatch, edited):
    text = """
from mmtransfer import Encoder
def helper(x):
    return x  # helper
class Parent(Encoder):
    width = 1
    def forward(self, x):
        return x  # Parent
class Child(Parent):
    def scale(self, x):
        return x  # Child
"""
    found = []
    for number, source in enumerate((text, text.replace(f"x  # {edited}", "2 * x"))):
        name = f"edited_{edited}_{number}"
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        child = importlib.import_module(name).Child
        found.append(child().identity().replace(name, ""))
    assert found[0] != found[1]


def test_our_encoders_change_with_the_modules_beside_them(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("RATE = 1")
    (tmp_path / "b.py").write_text("RATE = 2")
    before = base.source_of_package(tmp_path)
    (tmp_path / "b.py").write_text("RATE = 3")
    assert base.source_of_package(tmp_path) != before
    encoder = build_encoder("mlp")
    assert isinstance(encoder, Encoder)
    mark = encoder.identity()
    assert encoder.identity() == mark
    monkeypatch.setattr(base, "source_of_package", lambda directory: before)
    assert encoder.identity() != mark


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mlp?shape=28", "shape must list the sides of an array, found 28"),
        ("mlp?shape=[28,0]", "shape must be a whole number above zero, found 0"),
        ("mlp?size=abc", "size must be a whole number above zero, found 'abc'"),
        ("small-cnn?size=abc", "size must be a whole number above zero, found 'abc'"),
        ("torchvision:resnet18?size=abc", "size must be a whole number above zero, found 'abc'"),
        ("spectrogram-cnn?rate=0", "rate must be a whole number above zero, found 0"),
        ("spectrogram-cnn?hop_seconds=-1", "hop_seconds must be a number above zero, found -1"),
    ],
)
def test_options_of_a_wrong_type_or_sign_are_named(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_encoder(spec)
