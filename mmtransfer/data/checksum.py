"""A digest that says which data set was used."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmtransfer.data.rows import Rows, columns_of
from mmtransfer.data.values import parts

SOUNDS = (b"fLaC", b"RIFF")  # how FLAC and WAV begin


def checksum(data: Rows | Mapping[str, Rows]) -> str:
    """Digest of the rows of a split, or of all splits by name: what a model is shown, in its order.

    Lossless pictures and sounds (PNG, FLAC, WAV) count by their pixels and samples: encoders write
    other bytes for the same content. All else counts as it lies in the row, JPEG and Vorbis by
    their bytes, which decoders do not turn into quite the same values everywhere. Paths of values
    that are given as bytes, the order of columns, and a column that is `None` in all rows, or not
    there, make no difference.
    """
    if isinstance(data, Mapping):
        splits = [f"{name} {checksum(rows)}\n" for name, rows in sorted(data.items())]
        return hashlib.blake2b("".join(splits).encode(), digest_size=16).hexdigest()
    digest = hashlib.blake2b(digest_size=16)
    names = sorted(columns_of(data))
    for row in data:
        for part in _parts(row, names):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _parts(row: Mapping[str, Any], names: list[str]) -> list[bytes]:
    values = {name: row.get(name) for name in names}
    kept = {name: _decoded(value) for name, value in values.items() if value is not None}
    return [b"row", *(part for name, value in kept.items() for part in (name.encode(), *value))]


def _decoded(value: Any) -> list[bytes]:
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        value = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
    if isinstance(value, bytes) and value.startswith(b"\x89PNG"):
        picture: Image.Image = Image.open(io.BytesIO(value))
        if picture.mode == "P":  # pixels say nothing without their palette
            picture = picture.convert("RGBA")
        return [b"picture", f"{picture.mode} {picture.size}".encode(), picture.tobytes()]
    if isinstance(value, bytes) and value.startswith(SOUNDS):
        import soundfile

        samples, rate = soundfile.read(io.BytesIO(value), dtype="float64", always_2d=True)
        return [b"sound", f"{rate} {samples.shape}".encode(), samples.astype("<f8").tobytes()]
    if isinstance(value, str):  # also where there happens to be a file of that name
        return [b"str", value.encode(errors="surrogatepass")]
    return parts(value.item() if isinstance(value, np.generic) else value)
