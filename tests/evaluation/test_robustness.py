"""What is left of a model without some modalities: the same as of rows without them."""

from __future__ import annotations

import torch

from mmtransfer.data.collate import Collate
from mmtransfer.encoders.base import Encoder
from mmtransfer.evaluation.encoded import decide, encode_rows, subset_logits
from mmtransfer.evaluation.robustness import by_noise, subsets
from mmtransfer.features import Features
from mmtransfer.fusion.base import build_fusion
from mmtransfer.model import TransferModel

MODALITIES = ("image", "sound", "text")


def direct(model: TransferModel, rows: list[dict]) -> torch.Tensor:
    with torch.inference_mode():
        batch = Collate(model.encoders, model.tasks)(list(enumerate(rows)))
        return model(batch.inputs, len(rows)).logits["label"]


def test_subsets_of_encoded_rows_are_rows_without_the_other_columns(trained, rows_of) -> None:
    rows = rows_of(50, 5)
    examples, unreadable = encode_rows(trained, rows, batch_size=16)
    assert unreadable == {}
    found = subset_logits(trained, examples)["label"]
    assert list(found) == [*subsets(MODALITIES), ()]
    for kept, logits in found.items():
        some = [{k: v if k in (*kept, "label") else None for k, v in r.items()} for r in rows]
        torch.testing.assert_close(logits, direct(trained, some))


def test_each_row_is_encoded_once(trained, monkeypatch, rows_of) -> None:
    rows, seen = rows_of(20, 6), []
    plain = type(trained.encoders["text"]).forward
    monkeypatch.setattr(
        type(trained.encoders["text"]),
        "forward",
        lambda self, pixels: seen.append(len(pixels)) or plain(self, pixels),
    )
    examples, _ = encode_rows(trained, rows)
    subset_logits(trained, examples)
    assert sum(seen) == sum(row[name] is not None for row in rows for name in MODALITIES)


def test_tokens_of_any_number_are_kept_for_a_fusion_that_uses_them(trained) -> None:
    class Words(Encoder):
        """As many tokens as the row has numbers."""

        width = 4

        def collate(self, values):
            longest = max(map(len, values))
            x = torch.tensor([[*v, *[0.0] * (longest - len(v))] for v in values])
            return {"x": x, "lengths": torch.tensor([len(v) for v in values])}

        def forward(self, x, lengths):
            mask = torch.arange(x.shape[1]) < lengths[:, None]
            return Features(x[:, :, None].expand(-1, -1, 4).contiguous(), mask)

    torch.manual_seed(0)
    fusion = build_fusion("bottleneck", {"text": 4}, 8, layers=2, heads=2)
    model = TransferModel({"text": Words()}, fusion, trained.tasks).eval()
    rows = [{"text": [0.5] * n or None, "label": None} for n in (2, 5, 0, 3, 7)]
    examples, _ = encode_rows(model, rows, batch_size=2)
    assert examples.features["text"].mask.sum(1).tolist() == [2, 5, 0, 3, 7]
    torch.testing.assert_close(decide(model, examples).logits["label"], direct(model, rows))


def test_noise_has_the_size_that_it_says_and_hurts(trained, rows_of) -> None:
    examples, _ = encode_rows(trained, rows_of(300, 7))
    deviations = {name: scale for name, (_, scale) in examples.statistics().items()}
    targets = examples.targets["label"]

    def look(seen):
        moved = {
            name: float(
                ((f.tokens - examples.features[name].tokens)[f.present] / deviations[name]).std()
            )
            for name, f in seen.features.items()
        }
        logits = decide(trained, seen).logits["label"]
        return moved, float((logits.argmax(1) == targets).double().mean())

    found = by_noise(look, examples, deviations, (0.0, 1.0, 8.0))
    for name, levels in found.items():
        for level, (moved, _) in levels.items():
            assert abs(moved.pop(name) - level) < 0.05 * level + 1e-6
            assert set(moved.values()) == {0.0}
        assert levels[8.0][1] < levels[0.0][1] - 0.05
