"""The page in headless Chromium: quiet, alone, sortable, in both themes, on a phone."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmtransfer.report.page import write_report

pytestmark = pytest.mark.slow
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    *("--headless=new", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-default-apps", "--mute-audio"),
    *("--disable-features=OptimizationHints,MediaRouter", "--hide-scrollbars"),
    *("--virtual-time-budget=10000", "--enable-logging=stderr", "--disable-dev-shm-usage"),
]
#: looks at the report in a frame of its own, which the report's policy has no say about
DRIVER = """<!DOCTYPE html><title>driver</title>
<iframe id="frame" src="/report.html" style="width:WIDTHpx;height:900px;border:0"></iframe>
<pre id="found"></pre>
<script>
document.getElementById("frame").addEventListener("load", ({ target }) => {
  const page = target.contentDocument, found = {};
  const column = (table, k) => [...table.tBodies[0].rows].map((row) => row.cells[k].textContent);
  found.wide = page.documentElement.scrollWidth;
  found.sortable = page.querySelectorAll("table[data-sortable]").length;
  const table = page.querySelector("table[data-sortable]");
  found.before = column(table, 1);
  const button = table.tHead.rows[0].cells[1].querySelector("button");
  button.focus();
  found.focused = page.activeElement === button;
  button.click();
  found.down = column(table, 1);
  found.told = table.tHead.rows[0].cells[1].getAttribute("aria-sort");
  button.click();
  found.up = column(table, 1);
  const ground = () => page.defaultView.getComputedStyle(page.body).backgroundColor;
  const theme = page.getElementById("theme");
  found.themes = {};
  for (let k = 0; k < 3; k += 1) {
    theme.click();
    found.themes[theme.textContent] = ground();
  }
  theme.click();
  found.remembered = localStorage.getItem("mmtransfer-theme");
  found.scripts = page.scripts.length;
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""


@dataclass
class Site:
    """A server that is the browser's proxy, too: it sees whatever the browser asks anybody."""

    pages: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    port: int = 0


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            page = found.pages.get(self.path)
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write((page or "").encode())

        def do_CONNECT(self) -> None:
            found.asked.append(self.path)
            self.send_error(502)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    return found


def look(browser: str, site: Site, home: Path, address: str, *flags: str) -> tuple[str, str]:
    """-> what was printed, and the log."""
    own = [f"--user-data-dir={home / 'profile'}", f"--proxy-server=127.0.0.1:{site.port}"]
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [browser, *FLAGS, *own, *root, *flags, address],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


def requests(site: Site) -> list[str]:
    """What was asked, but for what the browser asks for itself."""
    own = r"google|gvt1|chromium|favicon"
    return [path for path in site.asked if not re.search(own, path)]


def test_a_page_from_disk_is_quiet_and_asks_nobody(
    browser: str, site: Site, run: Path, other: Path, data: Path, tmp_path: Path
) -> None:
    for page in (write_report([run], str(data)), write_report([run, other])):
        shown, log = look(browser, site, tmp_path, page.as_uri(), "--dump-dom")
        assert "CONSOLE" not in log, log
        assert "<button" in shown  # the script ran
        assert requests(site) == []
    page.write_text(
        "<script>console.error('x')</script><img src='http://example.test/picture.png'>"
    )
    _, log = look(browser, site, tmp_path, page.as_uri(), "--dump-dom")
    assert "CONSOLE" in log  # it would have been seen
    assert requests(site) == ["http://example.test/picture.png"]


@pytest.mark.parametrize("width", [390, 1400])
def test_tables_are_sorted_themes_are_switched_and_nothing_sticks_out(
    browser: str, site: Site, run: Path, data: Path, tmp_path: Path, width: int
) -> None:
    site.pages["/report.html"] = write_report([run], str(data)).read_text()
    site.pages["/driver.html"] = DRIVER.replace("WIDTH", str(width))
    address = f"http://127.0.0.1:{site.port}/driver.html"
    size = f"--window-size={width + 20},1000"
    shown, log = look(browser, site, tmp_path, address, "--dump-dom", size)
    assert "CONSOLE" not in log, log
    matched = re.search(r'<pre id="found">(.*?)</pre>', shown, re.S)
    assert matched
    found = json.loads(html.unescape(matched[1]))
    assert found["wide"] <= width
    assert found["sortable"] > 5
    assert found["focused"]
    numbers = [float(value) for value in found["down"]]
    assert numbers == sorted(numbers, reverse=True)
    assert sorted(found["before"]) == sorted(found["down"])
    assert found["down"] != found["before"]
    assert [float(value) for value in found["up"]] == sorted(numbers)
    assert found["told"] == "descending"
    assert list(found["themes"]) == ["Theme: light", "Theme: dark", "Theme: system"]
    light, dark = found["themes"]["Theme: light"], found["themes"]["Theme: dark"]
    assert brightness(light) > 230 > 60 > brightness(dark)
    assert found["remembered"] == "light"
    assert found["scripts"] == 1


def brightness(colour: str) -> float:
    channels = [float(number) for number in re.findall(r"[\d.]+", colour)[:3]]
    return sum(channels) / 3


def test_the_page_follows_the_system(browser: str, site: Site, run: Path, tmp_path: Path) -> None:
    page = write_report([run]).as_uri()
    grounds = []
    for scheme in (1, 0):  # light, dark
        picture = tmp_path / f"{scheme}.png"
        flags = [f"--screenshot={picture}", "--window-size=1400,900"]
        look(
            browser, site, tmp_path, page, *flags, f"--blink-settings=preferredColorScheme={scheme}"
        )
        with Image.open(picture) as image:
            assert image.size == (1400, 900)
            grounds.append(sum(image.convert("RGB").getpixel((3, 600))) / 3)
    assert grounds[0] > 230
    assert grounds[1] < 60
