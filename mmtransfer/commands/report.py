"""`mmtransfer report` and `mmtransfer doctor`."""

from __future__ import annotations

from json import dumps
from pathlib import Path


def report(
    runs: list[str],
    data: str | None = None,
    output: Path | None = None,
    split: str = "test",
    mistakes: int = 12,
    sounds: int = 24,
    batch_size: int = 64,
) -> None:
    """Write one HTML page about a run, or one that compares several; it needs no network.

    Args:
        runs: output directories of runs
        data: directory or hub id, to evaluate runs that are not yet, and to show mistakes
        output: HTML file, by default RUN/report.html, of several comparison.html beside the first
        split: the rows that are judged
        mistakes: how many are shown for each task; 0 leaves out examples of confused pairs, too
        sounds: most that are embedded
        batch_size: rows that are encoded at a time
    """
    from mmtransfer.report.page import write_report

    page = write_report(
        [Path(run) for run in runs], data, output, split, mistakes, sounds, batch_size
    )
    print(f"{page}, {page.stat().st_size / 1e6:.1f} MB")


def doctor(cache: Path | None = None, timeout: float = 3.0, json: bool = False) -> None:
    """Check the installation, and say how to mend it: exit code 1 if something essential is broken.

    Args:
        cache: directory of the feature store, by default $MMTRANSFER_CACHE or ~/.cache/mmtransfer
        timeout: seconds to wait for the hub
        json: print JSON
    """
    from dataclasses import asdict

    from mmtransfer.doctor import examine, show

    findings = examine(cache, timeout)
    broken = [finding for finding in findings if finding.state == "broken"]
    if json:
        checks = [asdict(finding) for finding in findings]
        print(dumps({"sound": not broken, "checks": checks}, indent=1))
    else:
        show(findings)
    if broken:
        raise SystemExit(1)
