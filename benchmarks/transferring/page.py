"""The figures of docs/transfer.md, out of the JSON files of the results.

In the page `<!--part/table/member/kind-->` and `<!---->` stand around one figure, and
`<!--table part/table-->` and `<!--end-->` around a whole table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transferring.report import lines, shown

PAGE = Path(__file__).parents[2] / "docs" / "transfer.md"
UNKNOWN = "not measured yet"
FIGURE = re.compile(r"(<!--([^/>\n]+)/([^/>\n]+)/([^/>\n]+)/([^/>\n]+)-->)[^\n]*?(<!---->)")
TABLE = re.compile(r"(<!--table ([^/>\n]+)/([^/>\n]+)-->\n).*?(<!--end-->)", re.S)


def fill(page: str, results: Path) -> str:
    """The page with the figures of this directory; what is not there is not measured yet."""
    found = {file.stem: json.loads(file.read_text()) for file in sorted(results.glob("*.json"))}
    summaries: dict[str, Any] = {part: told["summary"] for part, told in found.items()}

    def figure(match: re.Match[str]) -> str:
        before, part, table, member, kind, after = match.groups()
        told = summaries.get(part, {}).get(table, {}).get(member, {}).get(kind)
        if told is None:
            return f"{before}{UNKNOWN}{after}"
        value, gain = shown(told)
        return f"{before}{value}{f' ({gain})' if gain else ''}{after}"

    def table(match: re.Match[str]) -> str:
        before, part, name, after = match.groups()
        members = summaries.get(part, {}).get(name)
        return f"{before}{UNKNOWN if members is None else as_markdown(members)}\n{after}"

    return TABLE.sub(table, FIGURE.sub(figure, page))


def as_markdown(members: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    headings, *rows = lines(members)
    ruled = f"|---|{'---:|' * (len(headings) - 1)}"
    return "\n".join([joined(headings), ruled, *map(joined, rows)])


def joined(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
