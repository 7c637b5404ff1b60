"""One HTML page that needs nothing else: about a run, or comparing several."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmtransfer import __version__
from mmtransfer.report.charts import COLOURS, WIDTH, Chart, Table
from mmtransfer.report.collect import Run, named_apart, read_run
from mmtransfer.report.compare import of_runs
from mmtransfer.report.mistakes import evaluated, rows_of, wrong_rows
from mmtransfer.report.sections import Section, headline, of_run

PAGE, COMPARISON = "report.html", "comparison.html"
WITHOUT_ROWS = "The photos, texts and sounds of these rows are shown with --data."


def write_report(
    runs: Sequence[Path],
    data: str | None = None,
    output: Path | None = None,
    split: str = "test",
    mistakes: int = 12,
    sounds: int = 24,
    batch_size: int = 64,
) -> Path:
    """Write the page about one run, or about several; -> its file.

    data: directory or hub id; runs without an evaluation are evaluated on its `split`, and the
        inputs of mistakes are shown
    output: by default `report.html` in the run, for several `comparison.html` beside the first
    mistakes, sounds: most that are shown of each task, and on the page with all examples of pairs
    Raises `FileNotFoundError` where there is no run, `ValueError` for data that was not judged.
    """
    if not runs:
        raise ValueError("no run is given: name the output directory of one or several")
    for name, count in (("mistakes", mistakes), ("sounds", sounds)):
        if count < 0:
            raise ValueError(f"{name} must not be negative, found {count}")
    found = [read_run(directory) for directory in runs]
    for k, run in enumerate(found) if data is not None else ():
        if run.evaluation is None:
            assert data is not None
            evaluated(run, data, split, batch_size)
            found[k] = read_run(run.directory)
    if len(found) == 1:
        page = output or found[0].directory / PAGE
        content = about_run(found[0], data, split, mistakes, sounds)
    else:
        page = output or found[0].directory.resolve().parent / COMPARISON
        content = about_runs(found)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(content, encoding="utf-8")
    return page


def about_run(run: Run, data: str | None, split: str, mistakes: int, sounds: int) -> str:
    rows = None
    if data is not None and run.evaluation is not None:
        rows = rows_of(run, data, split)
    wrong = wrong_rows(run, rows, mistakes, sounds)
    sections = of_run(run, wrong, WITHOUT_ROWS if rows is None else "")
    config = run.config
    encoders = config.get("encoders") or {
        name: config[name] for name in ("image", "text", "audio") if config.get(name)
    }
    about = [f"{name}: {spec}" for name, spec in encoders.items()]
    for name in ("fusion", "strategy"):
        if isinstance(config.get(name), str):
            about.append(f"{name}: {config[name]}")
    if run.judged_on not in ("test", None):
        source = (run.evaluation or {}).get("about", {}).get("data")
        about.append(f"judged on: {run.judged_on}{f' of {source}' if source else ''}")
    return rendered(run.name, about, sections, [(run.name, list(headline(run)))])


def about_runs(runs: Sequence[Run]) -> str:
    names = named_apart(runs)
    tiles = [(name, list(headline(run))) for name, run in zip(names, runs, strict=True)]
    return rendered(f"Comparison of {len(runs)} runs", list(names), of_runs(runs, names), tiles)


def rendered(
    title: str, about: Sequence[str], sections: Sequence[Section], tiles: Sequence[Any]
) -> str:
    """The page; everything that comes from a run is escaped."""
    environment = Environment(
        loader=PackageLoader("mmtransfer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "sorted_by": sorted_by}
    environment.tests |= {
        "chart": lambda part: isinstance(part, Chart),
        "table": lambda part: isinstance(part, Table),
        "number": is_number,
        "interval": lambda cell: isinstance(cell, tuple),
    }
    loader = environment.loader
    assert loader is not None
    script, _, _ = loader.get_source(environment, "page.js")
    style, _, _ = loader.get_source(environment, "page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        title=title,
        about=about,
        sections=sections,
        tiles=tiles,
        version=__version__,
        width=WIDTH,
        colours=COLOURS,
        script=Markup(script),  # our own, and named by its digest: no other may run
        style=Markup(style),
        digest=digest,
    )


def is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def sorted_by(cell: Any) -> Any:
    """The number by which a cell is sorted; of an interval its middle value."""
    value = cell[0] if isinstance(cell, tuple) else cell
    return value if is_number(value) and math.isfinite(value) else ""


def shown(cell: Any) -> str:
    """A cell in words: four digits behind the point of small numbers, a dash for nothing."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "–"
    if isinstance(cell, bool) or not is_number(cell):
        return str(cell)
    if isinstance(cell, float) and abs(cell) < 10:
        return f"{cell:.4f}"
    digits = 0 if isinstance(cell, int) else 1
    return f"{cell:,.{digits}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
