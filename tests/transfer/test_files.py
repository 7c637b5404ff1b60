"""A strategy in a YAML file is the one that would be written in Python."""

from __future__ import annotations

import pytest

from mmtransfer.transfer.adapters import Adapter
from mmtransfer.transfer.base import Phase, build_strategy

WRITTEN = """
phases:
  - {epochs: 2, lr: 1e-3}
  - {epochs: 3, lr: 5.0e-4, encoder_lr: {image: 2E-4}, top_stages: 2, parts: {image: norm}}
adapters:
  text: {name: dora, rank: 4}
  image: null
methods:
  - modality_dropout
  - {name: ogm_ge, alpha: 1}
merge: false
"""


def test_phases_adapters_and_methods_written_out(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(WRITTEN)
    found = build_strategy(str(path), ["agm"])
    assert found.phases == [
        Phase(2, 1e-3),
        Phase(3, 5e-4, {"image": 2e-4}, 2, parts={"image": "norm"}),
    ]
    assert found.adapters == {"text": Adapter("dora", 4), "image": None}
    assert [type(m).__name__ for m in found.methods] == ["ModalityDropout", "OGMGE", "AGM"]
    assert found.methods[1].alpha == 1
    assert not found.merge


def test_a_preset_with_options_methods_and_further_adapters(tmp_path):
    path = tmp_path / "plan.yml"
    path.write_text("name: lora\nrank: 2\nepochs: 1\nmethods: [agm]\nadapters: {text: ia3}\n")
    found = build_strategy(str(path), encoder_lr=1e-4)
    assert found.phases == build_strategy("lora", epochs=1, encoder_lr=1e-4).phases
    assert found.adapters == {"all": Adapter("lora", 2), "text": Adapter("ia3")}
    assert len(found.methods) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: loar", "Did you mean 'lora'"),
        ("name: lora\nrnak: 3", "Did you mean 'rank'"),
        ("phases:\n- {epochs: 1, encoder_rl: 1}", "phase 1.*Did you mean 'encoder_lr'"),
        ("- full", "holds no mapping, found list"),
        ("name: [", "is no YAML"),
        ("", "holds no mapping, found NoneType"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, text, message):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        build_strategy(str(tmp_path / "plan.yaml"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such strategy file.*nowhere.yaml"):
        build_strategy(str(tmp_path / "nowhere.yaml"))
