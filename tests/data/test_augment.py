"""Augmentation: draws that repeat and touch nothing global, and settings."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch

from mmtransfer.data.augment import (
    AugmentAudio,
    AugmentImage,
    AugmentText,
    build_augmentations,
    check_augment,
)
from mmtransfer.data.collate import Collate
from mmtransfer.encoders.base import build_encoder
from mmtransfer.encoders.decoding import Waveform
from mmtransfer.training.options import TrainingOptions

ALL = {
    "image": AugmentImage(rand_augment=True, trivial_augment=True, hue=0.1, erase=0.5),
    "text": AugmentText(0.3, 0.3),
    "audio": AugmentAudio(spec_augment=True),
}


def generators() -> tuple:
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


# -- seeds ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collate() -> Collate:
    names = {"image": "tiny-vit", "text": "tiny-bert", "audio": "tiny-wav2vec2"}
    encoders = {name: build_encoder(spec) for name, spec in names.items()}
    return Collate(encoders, {}, augment=ALL, seed=3)


@pytest.fixture(scope="module")
def rows(picture, clip) -> list:
    words = "one two three four five six seven"
    return [(i, {"image": picture(i), "text": words, "audio": clip(i, 0.3)}) for i in range(6)]


def epoch_of(collate, rows, number, batches, workers) -> dict:
    """Augmented values by row and column, caught on their way into the encoder's collate."""
    collate.epoch.fill_(number)
    loader = torch.utils.data.DataLoader(
        rows,
        batch_sampler=batches,
        collate_fn=Caught(collate),
        num_workers=workers,
        generator=torch.Generator(),
    )
    return {k: v for batch in loader for k, v in batch.items()}


class Caught:
    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, rows: list) -> dict:
        def plain(value):
            return value.samples if isinstance(value, Waveform) else np.asarray(value)

        return {
            (i, name): plain(self.collate._value(name, (i,), row[name]))
            for i, row in rows
            for name in row
        }


@pytest.mark.parametrize("workers", [0, 2])
def test_values_depend_on_seed_epoch_row_and_column_alone(collate, rows, workers):
    together = epoch_of(collate, rows, 0, [[0, 1, 2, 3, 4, 5]], 0)
    apart = epoch_of(collate, rows, 0, [[3, 2], [5, 0, 1], [4]], workers)
    later = epoch_of(collate, rows, 1, [[0, 1, 2, 3, 4, 5]], workers)
    assert together.keys() == apart.keys()
    for key, value in together.items():
        assert np.array_equal(value, apart[key]), key
    # A text of few words may come out the same by chance; a picture or sound does not.
    same = [k for k in together if np.array_equal(together[k], later[k]) and k[1] != "text"]
    assert not same


def test_columns_of_one_kind_and_anagrams_draw_differently(picture):
    encoder = build_encoder("tiny-vit")
    columns = {"left": encoder, "felt": encoder}
    collate = Collate(columns, {}, augment=dict.fromkeys(columns, AugmentImage()))
    one, other = (np.asarray(collate._value(name, (0,), picture(0))) for name in columns)
    assert one.shape != other.shape or not np.array_equal(one, other)


def test_no_global_generator_moves(collate, rows, monkeypatch):
    torch.manual_seed(5)
    # torch.manual_seed would also seed those of GPUs, which nobody could put back.
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeds GPUs"))
    before = generators()
    collate(rows)
    assert generators() == before


def test_what_a_failing_picture_leaves_behind_is_nothing(collate):
    before = generators()
    with pytest.raises(ValueError, match="cannot be read"):
        collate([(0, {"image": b"broken", "text": None, "audio": None})])
    assert generators() == before


def test_augmentations_travel_to_workers():
    for change in ALL.values():
        pickle.loads(pickle.dumps(change))


# -- settings -------------------------------------------------------------------------------------

KINDS = {"photo": "image", "label": "text", "audio": "audio", "scale": None}


def test_settings_are_found_by_column_and_by_modality():
    assert build_augmentations(False, KINDS) == {}
    assert set(build_augmentations(True, KINDS)) == {"photo", "label", "audio"}
    built = build_augmentations({"text": {"drop": 0.2}, "audio": False, "photo": True}, KINDS)
    assert set(built) == {"photo", "label"}  # what is not named has its defaults
    assert built["label"].drop == 0.2
    both = build_augmentations({"image": False, "photo": {"area": 0.9}}, KINDS)
    assert "photo" in both  # a column goes before its modality


def test_another_column_of_the_data_may_be_named():
    """As when one modality of several is trained alone, with the options of the whole."""
    kinds = {"photo": "image"}
    assert set(build_augmentations({"label": False}, kinds, ["photo", "label"])) == {"photo"}
    assert set(build_augmentations({"audio": {"gain": 3.0}}, kinds)) == {"photo"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("yes", "augment must be true, false or settings by column or modality, found 'yes'"),
        ({"image": "strong"}, "augment 'image' must be true, false or its options, found 'strong'"),
        ({"image": {"aera": 0.5}}, "augment 'image' has no option 'aera'. Did you mean 'area'"),
        ({"image": {"area": 2}}, r"area must be a number in \[0.01, 1\], found 2"),
        ({"image": {"rand_augment": {"magnitud": 9}}}, "rand_augment has no option.*'magnitude'"),
        ({"image": {"rand_augment": {"magnitude": 31}}}, "magnitude must be a whole number from 0"),
        ({"audio": {"spec_augment": {"bands": 2}}}, "spec_augment has no option 'bands'"),
        ({"audio": {"snr": 60}}, r"snr must be a number in \[-40, 40\], found 60"),
        ({"text": {"drop": "half"}}, r"drop must be a number in \[0, 1\], found 'half'"),
        ({"photo": 3}, "augment 'photo' must be true, false or its options, found 3"),
    ],
)
def test_mistakes_show_when_options_are_made(setting, message):
    with pytest.raises(ValueError, match=message):
        check_augment(setting)
    with pytest.raises(ValueError, match=message):
        TrainingOptions(augment=setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"phto": True}, "no column or modality 'phto'. Did you mean 'photo'"),
        ({1: True}, "no column or modality 1"),
        ({"photo": {"drop": 0.1}}, "augment 'photo' has no option 'drop'"),
        ({"scale": {"drop": 0.1}}, "'scale' cannot be augmented: its encoder's modality is None"),
    ],
)
def test_mistakes_about_columns_show_when_the_model_is_known(setting, message):
    with pytest.raises(ValueError, match=message):
        build_augmentations(setting, KINDS)


def test_settings_come_from_yaml_and_the_command_line(tmp_path):
    from jsonargparse import auto_cli

    def main(training: TrainingOptions = TrainingOptions()) -> TrainingOptions:  # noqa: B008
        return training

    def parse(*arguments: str):
        return auto_cli(main, args=list(arguments), as_positional=False).augment

    mapping = {"image": {"area": 0.6, "rand_augment": {"magnitude": 5}}, "audio": False}
    (tmp_path / "run.yaml").write_text(
        "training:\n  augment:\n    image: {area: 0.6, rand_augment: {magnitude: 5}}\n"
        "    audio: false\n"
    )
    assert parse("--config", str(tmp_path / "run.yaml")) == mapping
    line = "{image: {area: 0.6, rand_augment: {magnitude: 5}}, audio: false}"
    assert parse("--training.augment", line) == mapping
    assert parse("--training.augment", "true") is True
    assert parse() is False
