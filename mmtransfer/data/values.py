"""Bytes that tell a value of a column from all others, for digests."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmtransfer.encoders.decoding import is_file

SCALARS = (type(None), bool, int, float, complex)


def digest_of_values(values: Iterable[Any]) -> str:
    """Digest of values in their order.  Raises `ValueError` for one that `parts` cannot tell."""
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        for part in parts(value):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def parts(value: Any) -> list[bytes]:
    """What tells a value from all others: equal ones have equal parts, in every process.

    A file counts by its path, size and time, a picture with its palette.
    Raises `ValueError` for what cannot be pickled, such as an open file.
    """
    if isinstance(value, Mapping):
        if isinstance(value.get("bytes"), bytes) and set(value) <= {"bytes", "path"}:
            return parts(value["bytes"])  # of a file, whatever its name
        entries = sorted((parts(key), parts(item)) for key, item in value.items())
        return [b"{", *(part for entry in entries for side in entry for part in side), b"}"]
    if isinstance(value, bytes | bytearray | memoryview):
        return [b"bytes", bytes(value)]
    if isinstance(value, str | Path):
        if not is_file(value):
            return [b"str", str(value).encode(errors="surrogatepass")]
        found = Path(value).stat()
        return [b"file", str(value).encode(), f"{found.st_size} {found.st_mtime_ns}".encode()]
    if isinstance(value, list | tuple):
        return [b"[", *(part for item in value for part in parts(item)), b"]"]
    if isinstance(value, set | frozenset):
        return [b"set", digest_of_values(sorted(map(digest_of_value, value))).encode()]
    if isinstance(value, torch.Tensor):
        dense = value.detach().to_dense().resolve_conj().resolve_neg().cpu().contiguous()
        raw = dense.reshape(-1).view(torch.uint8).numpy().tobytes()  # numpy knows no bfloat16
        return [b"tensor", f"{value.dtype} {tuple(value.shape)}".encode(), raw]
    if is_array(value):
        kind = [b"array", f"{value.dtype} {value.shape}".encode()]
        # The memory of an array of objects holds addresses.
        return [*kind, *(parts(value.tolist()) if value.dtype.hasobject else [value.tobytes()])]
    if isinstance(value, SCALARS) and type(value) in SCALARS:
        return [type(value).__name__.encode(), repr(value).encode()]
    return [b"object", pickled(value)]


def digest_of_value(value: Any) -> str:
    return digest_of_values([value])


def is_array(value: Any) -> bool:
    """A numpy array or number that is all in its memory; a masked one has more."""
    return isinstance(value, np.ndarray | np.generic) and not isinstance(value, np.ma.MaskedArray)


class Described(pickle.Pickler):
    """Pickles for a digest, never to be loaded: equal values become equal bytes."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=4)
        self.fast = True  # the same bytes whether equal parts are one object or two

    def persistent_id(self, value: Any) -> str | None:
        """The digest of what would be pickled with its place in memory or in no certain order."""
        known = isinstance(value, torch.Tensor | set | frozenset) or is_array(value)
        return digest_of_value(value) if known else None


def pickled(value: Any) -> bytes:
    with io.BytesIO() as file:
        try:
            Described(file).dump(value)
        except (pickle.PicklingError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"a value of type {type(value).__name__} has no digest that would tell it from "
                f"others ({error}): give numbers, text, bytes, arrays or what can be pickled"
            ) from error
        return file.getvalue()
