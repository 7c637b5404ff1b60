"""Pictures with matplotlib: written to files, with names as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def drawing() -> Iterator[Any]:
    """Yields pyplot without a display; until its end a $ in a name is a $ and begins no formula."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"text.parse_math": False}):
        yield pyplot
