"""The doctor sees what is wrong, says how to mend it, and never falls ill itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import soundfile
from huggingface_hub import constants

from mmtransfer import doctor
from mmtransfer.cli import main


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub on this machine; -> what it was asked."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}/hub")
    yield asked
    server.shutdown()
    server.server_close()


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = 0
    try:
        main(["doctor", "--json", *arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, json.loads(capsys.readouterr().out)


def test_a_sound_installation_is_sound(
    hub: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run("--cache", str(tmp_path / "cache"), capsys=capsys)
    states = {check["name"]: check["state"] for check in found["checks"]}
    for name in ("python", "packages", "torch trio", "devices", "sound", "pictures", "hub"):
        assert states[name] == "fine", found["checks"]
    assert states["cache"] != "broken"
    assert (code, found["sound"]) == (0, True)
    assert hub == ["/hub"]
    assert not (tmp_path / "cache").exists()  # looking leaves nothing
    assert all(check["mend"] for check in found["checks"] if check["state"] != "fine")


def test_the_trio_fits_or_is_told_what_would() -> None:
    fits = {"torch": "2.11.0", "torchvision": "0.26.0", "torchaudio": "2.11.0"}
    assert doctor.misfit(fits) == ""
    assert doctor.misfit({"torch": "2.12.1", "torchvision": "0.27.1", "torchaudio": "2.11.0"}) == ""
    assert doctor.misfit(fits | {"torchvision": "0.26.1"}) == ""
    told = doctor.misfit(fits | {"torchvision": "0.24.0"})
    assert told == "torch 2.11.0 goes with torchvision 0.26, found 0.24.0"
    told = doctor.misfit(fits | {"torch": "2.10.0", "torchvision": "0.25.0"})
    assert "torchaudio 2.10, found 2.11.0" in told
    builds = {name: f"{number}+cu130" for name, number in fits.items()}
    assert doctor.misfit(builds) == ""
    told = doctor.misfit(builds | {"torchvision": "0.26.0+cpu"})
    assert "torchvision for cpu" in told


def test_a_wrong_trio_is_broken_and_mended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    real = doctor.version
    monkeypatch.setattr(
        doctor, "version", lambda name: "0.20.0" if name == "torchvision" else real(name)
    )
    code, found = run("--cache", str(tmp_path), capsys=capsys)
    checks = {check["name"]: check for check in found["checks"]}
    assert (code, found["sound"]) == (1, False)
    assert "torchvision==0.26.0" in checks["torch trio"]["mend"]
    assert checks["packages"]["state"] == "broken"
    assert "'torchvision<0.28,>=0.26'" in checks["packages"]["mend"]


def test_sound_that_cannot_be_decoded_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("no libsndfile")

    monkeypatch.setattr(soundfile, "write", failing)
    found = doctor.check_sound()
    assert found.state == "broken"
    assert "no libsndfile" in found.found
    assert "soundfile" in found.mend


def test_a_hub_that_does_not_answer_is_lacking_within_the_time(
    hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert doctor.check_hub(1).state == "lacking"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in doctor.check_hub(1).found
    assert hub == []


def test_a_check_that_fails_in_an_unknown_way_is_broken_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def failing() -> doctor.Finding:
        raise AttributeError("half installed")

    monkeypatch.setattr(doctor, "check_devices", failing)
    found = {finding.name: finding for finding in doctor.examine(tmp_path, 1)}
    assert found["devices"].state == "broken"
    assert "half installed" in found["devices"].found
    assert found["pictures"].state == "fine"
    with pytest.raises(ValueError, match="timeout must be positive, found 0"):
        doctor.examine(tmp_path, 0)


def test_a_cache_that_cannot_be_written_is_broken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = doctor.check_cache(tmp_path / "file" / "cache")
    assert found.state == "broken"
    assert "MMTRANSFER_CACHE" in found.mend


def test_the_table_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.show([doctor.Finding("hub", "lacking", "[not] reached", "look at [proxy]")])
    out = capsys.readouterr().out
    assert "[not] reached" in out
    assert "hub: look at [proxy]" in out
