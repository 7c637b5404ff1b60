"""Missing, unreadable and stored values; fillers; augmentation that repeats."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from mmtransfer.data.augment import AugmentAudio, AugmentImage, AugmentText
from mmtransfer.data.collate import Collate, ReadError, Stored, collate_stored
from mmtransfer.data.rows import NumberedRows
from mmtransfer.encoders.base import build_encoder
from mmtransfer.encoders.decoding import decode_audio, decode_image
from mmtransfer.features import Draw, Features, Held
from mmtransfer.tasks.classification import IGNORE, Classification


@pytest.fixture(scope="module")
def encoders():
    return {"image": build_encoder("tiny-vit"), "text": build_encoder("tiny-bert")}


def test_only_present_rows_are_read(encoders, picture):
    rows = [
        (0, {"image": picture(0), "text": None}),
        (1, {"image": None, "text": "milk"}),
        (2, {"image": picture(2)}),
    ]
    batch = Collate(encoders, {})(rows)
    assert batch.inputs["image"].rows.tolist() == [0, 2]
    assert batch.inputs["text"].rows.tolist() == [1]
    alone = encoders["image"].collate([picture(0), picture(2)])["pixel_values"]
    assert torch.equal(batch.inputs["image"].values["pixel_values"], alone)


def test_a_modality_that_no_row_has_is_left_out(encoders):
    batch = Collate(encoders, {})([(0, {"image": None, "text": "milk"})])
    assert "image" not in batch.inputs


@pytest.mark.parametrize("bad", [b"no picture", b"", b"\x89PNG\r\n\x1a\n truncated"])
def test_an_unreadable_picture_is_named_or_counted(encoders, picture, bad):
    rows = [(7, {"image": picture(0), "text": "a"}), (8, {"image": bad, "text": "b"})]
    with pytest.raises(ReadError, match=r"train row 8, column 'image' cannot be read"):
        Collate(encoders, {}, split="train")(rows)
    batch = Collate(encoders, {}, on_error="missing")(rows)
    assert batch.unreadable == {"image": [8]}
    assert batch.inputs["image"].rows.tolist() == [0]
    assert batch.inputs["text"].rows.tolist() == [0, 1]


def test_a_truncated_jpeg_is_unreadable(encoders, picture):
    import io

    buffer = io.BytesIO()
    decode_image(picture(0, (200, 200))).save(buffer, "JPEG")
    cut = buffer.getvalue()[: len(buffer.getvalue()) // 2]
    with pytest.raises(ReadError, match="row 0, column 'image'"):
        Collate(encoders, {})([(0, {"image": cut, "text": None})])


def test_unreadable_sound_is_named(clip):
    collate = Collate({"audio": build_encoder("tiny-wav2vec2")}, {}, split="test")
    for bad in (b"noise", clip()[:20], {"array": [float("nan")], "sampling_rate": 16000}):
        with pytest.raises(ReadError, match="test row 3, column 'audio'"):
            collate([(3, {"audio": bad}), (4, {"audio": clip()})])


def test_a_fault_of_no_single_value_is_not_hidden(encoders):
    class Broken(Collate):
        pass

    collate = Collate(encoders, {}, on_error="missing")

    def fail_together(values):
        if len(values) > 1:
            raise RuntimeError("only together")
        return encoders["text"].collate(values)

    collate.collates["text"] = fail_together
    with pytest.raises(RuntimeError, match="only together"):
        collate([(0, {"text": "a"}), (1, {"text": "b"})])


def test_unknown_on_error_suggests(encoders):
    with pytest.raises(ValueError, match="Did you mean 'missing'"):
        Collate(encoders, {}, on_error="mising")


def test_fillers_count_for_no_task(encoders):
    tasks = {"product": Classification(["a", "b"])}
    batch = Collate(encoders, tasks)(
        [(0, {"text": "x", "product": "b"}), (~0, {"text": "x", "product": "b"})]
    )
    assert batch.targets["product"].tolist() == [1, IGNORE]


def test_stored_features_take_the_place_of_inputs():
    stored = {0: np.ones((2, 3), np.float32), 2: np.full((1, 3), 5, np.float32)}
    features = collate_stored([(b, Stored(tokens)) for b, tokens in stored.items()], 3)
    assert isinstance(features, Features)
    assert features.mask.tolist() == [[True, True], [False, False], [True, False]]
    assert torch.equal(features.pooled()[2], torch.full((3,), 5.0))
    encoder = build_encoder("tiny-bert")
    batch = Collate({"text": encoder}, {})([(0, {"text": None}), (1, {"text": Stored(stored[0])})])
    assert batch.inputs["text"].present.tolist() == [False, True]


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_repeats_per_row_and_epoch(encoders, picture, workers):
    rows = [(i, {"image": picture(i), "text": "one two three four five"}) for i in range(6)]
    augment = {"image": AugmentImage(), "text": AugmentText(0.5)}
    collate = Collate(encoders, {}, augment=augment, seed=3)

    def epoch(number, batches):
        collate.epoch.fill_(number)
        loader = torch.utils.data.DataLoader(
            rows, batch_sampler=batches, collate_fn=collate, num_workers=workers
        )
        found = {}
        for batch in loader:
            pixels = batch.inputs["image"].values["pixel_values"]
            found |= dict(zip(batch.index.tolist(), pixels, strict=True))
        return [found[i] for i in range(6)]

    first = epoch(0, [[0, 1, 2, 3, 4, 5]])
    again = epoch(0, [[3, 2], [5, 0, 1], [4]])
    other = epoch(1, [[0, 1, 2, 3, 4, 5]])
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)  # other mates, other order, other worker
        assert not torch.equal(a, c)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_that_is_drawn_again_is_augmented_otherwise(encoders, picture, workers):
    rows = [{"image": picture(i)} for i in range(3)]
    collate = Collate({"image": encoders["image"]}, {}, augment={"image": AugmentImage()}, seed=3)
    loader = torch.utils.data.DataLoader(
        NumberedRows(rows, ["image"]),
        batch_sampler=[[2, Draw(2, 1), 0], [Draw(2, 2), Draw(2, 1), 2]],
        collate_fn=collate,
        num_workers=workers,
    )
    first, second = (batch.inputs["image"].values["pixel_values"] for batch in loader)
    assert torch.equal(first[0], second[2])
    assert torch.equal(first[1], second[1])
    versions = [first[0], first[1], second[0]]
    assert not any(torch.equal(a, b) for a, b in combinations(versions, 2))


def test_augmented_values_keep_their_kind(picture, clip):
    rng = np.random.default_rng(0)
    assert AugmentImage()(picture(0), rng).mode == "RGB"
    sound = decode_audio(clip(0))
    louder = AugmentAudio(shift=0.0, gain=0.0, snr=39.9)(sound, rng)
    assert louder.rate == sound.rate
    noise = louder.samples - sound.samples
    ratio = 10 * np.log10(np.mean(sound.samples**2) / np.mean(noise**2))
    assert 39 < ratio < 41  # the signal-to-noise ratio that was asked for, in dB
    assert AugmentText(1.0)("only this", rng) == "only"


def test_a_target_that_is_held_counts_as_unlabelled_and_is_kept_beside(encoders):
    tasks = {"kind": Classification(["x", "y"]), "good": Classification([False, True])}
    rows = [
        (0, {"text": "a", "kind": "y", "good": True}),
        (1, {"text": "b", "kind": Held("y"), "good": Held(None)}),
        (~2, {"text": "c", "kind": Held("x"), "good": True}),
    ]
    batch = Collate(encoders, tasks)(rows)
    assert batch.targets["kind"].tolist() == [1, IGNORE, IGNORE]
    assert batch.held["kind"].tolist() == [IGNORE, 1, IGNORE]
    assert batch.held["good"].tolist() == [IGNORE] * 3
    assert Collate(encoders, tasks)(rows[:1]).held == {}
