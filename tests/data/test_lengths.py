"""Lengths of raw values, measured without decoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmtransfer.data.lengths import column_lengths, joint_lengths, value_length
from mmtransfer.encoders.decoding import Waveform


@pytest.mark.parametrize(
    ("value", "length"),
    [
        (None, 0),
        ("five!", 5),
        (b"four", 4),
        ({"bytes": b"four", "path": None}, 4),
        ({"bytes": None, "path": None}, 0),
        ({"array": np.zeros(7), "sampling_rate": 8000}, 7),
        (Waveform(np.zeros(9, np.float32), 8000), 9),
        (torch.zeros(6, 2), 6),
        ([1, 2, 3], 3),
        (3.5, 1),
    ],
)
def test_every_kind_of_value_has_a_length(value, length):
    assert value_length(value) == length


def test_a_path_counts_with_its_file(tmp_path):
    (tmp_path / "a.wav").write_bytes(bytes(11))
    path = str(tmp_path / "a.wav")
    assert value_length(path, files=True) == 11
    assert value_length({"bytes": None, "path": path}) == 11
    assert value_length(path) == len(path)
    assert value_length(path + "x", files=True) == 0


def test_no_unit_outweighs_another():
    text = column_lengths(iter(["ab", "abcd", None]))
    sound = column_lengths([bytes(30_000), None, bytes(10_000)])
    assert text.tolist() == [2, 4, 0]
    joint = joint_lengths([text, sound])
    assert joint.tolist() == pytest.approx([1.5, 4 / 3, 0.5])
    assert torch.equal(joint, joint_lengths([text * 9, sound]))
    assert joint_lengths([torch.zeros(2)]).tolist() == [0, 0]
