"""Values of rows as a page can show them: small pictures, short clips, texts."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mmtransfer.encoders.decoding import decode_audio, decode_image, is_file
from mmtransfer.report.charts import cropped

SIDE = 320  # pixels of a picture's longer side, at most
SECONDS = 10.0  # of a clip, at most
CHARACTERS = 600  # of a text, at most
RATE = 16000  # Hz, of clips of another rate than these
RATES = (8000, 11025, 16000, 22050, 24000)


@dataclass(frozen=True)
class Shown:
    """kind: "picture", "sound", "text", "missing" or "unreadable"; uri: of the first two"""

    column: str
    kind: str
    text: str = ""
    uri: str = ""


def show_value(column: str, value: Any, sound: bool = True) -> Shown:
    """A value of a column; without `sound` a clip is only named.

    A string is the path of a picture or clip only if such a file can be decoded.
    """
    if value is None:
        return Shown(column, "missing")
    file = isinstance(value, bytes | bytearray | memoryview | Image.Image) or (
        isinstance(value, Mapping) and bool({"bytes", "path", "array"} & set(value))
    )
    if file or (isinstance(value, str) and is_file(value)) or getattr(value, "ndim", 0) == 3:
        picture = picture_uri(value)
        if picture:
            return Shown(column, "picture", uri=picture)
        clip = sound_uri(value) if sound else None
        if clip:
            return Shown(column, "sound", uri=clip)
        if file:
            said = "cannot be shown" if sound else "not embedded"
            return Shown(column, "unreadable", said)
    return Shown(column, "text", cropped(value_text(value), CHARACTERS))


def picture_uri(value: Any) -> str | None:
    """A JPEG of at most SIDE pixels, without what a camera notes beside the picture."""
    try:
        picture = decode_image(value)
    except Exception:  # whatever a file holds, the page is written
        return None
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=78)
    return data_uri("image/jpeg", file.getvalue())


def sound_uri(value: Any) -> str | None:
    """An MP3 of at most SECONDS, which all browsers play."""
    import soundfile

    try:
        clip = decode_audio(value)
        rate = clip.rate if clip.rate in RATES else RATE
        samples = clip.at(rate)[: int(SECONDS * rate)]
        file = io.BytesIO()
        soundfile.write(file, samples, rate, format="MP3")
    except Exception:  # whatever a file holds, the page is written
        return None
    return data_uri("audio/mpeg", file.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def value_text(value: Any) -> str:
    """Text as it is, a table's row as `name value`, numbers with few digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {value_text(item)}" for name, item in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return ", ".join(value_text(item) for item in value[:100])
    return str(value)
