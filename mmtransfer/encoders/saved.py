"""An encoder out of a saved model: a source network of one's own."""

from __future__ import annotations

from mmtransfer.encoders.base import Encoder
from mmtransfer.registry import nearest, register_encoder


@register_encoder("saved")
class SavedEncoder:
    """The trained encoder of a saved model, without its head, `saved:<directory or hub id>`.

    column: whose encoder it is; may be left out where the model has a single one
    Raises `FileNotFoundError` where no model is, `ValueError` for a column that it does not have.
    """

    source = "<directory or hub id of a saved model>"

    @classmethod
    def from_pretrained(cls, source: str, column: str | None = None) -> Encoder:
        from mmtransfer.model import TransferModel
        from mmtransfer.transfer.adapters import merge_adapters

        model = TransferModel.from_pretrained(source)
        merge_adapters(model)
        names = list(model.encoders)
        if column is None and len(names) == 1:
            (column,) = names
        if column not in names:
            what = (
                "which of its encoders to take (column=...) is not told"
                if column is None
                else f"an encoder of column {column!r} is not there"
            )
            raise ValueError(f"{source}: {what}.{nearest(column or '', names)}")
        encoder = model.encoders[column]
        assert isinstance(encoder, Encoder)
        encoder.pretrained = True
        return encoder
