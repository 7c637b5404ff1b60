"""Names in pictures are drawn as they are, and the settings of others stay."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from mmtransfer.drawing import drawing


def test_a_dollar_begins_no_formula_and_settings_come_back(tmp_path: Path) -> None:
    before = matplotlib.rcParams["text.parse_math"]
    with drawing() as pyplot:
        figure, axes = pyplot.subplots()
        axes.set_title("a$b_$")
        axes.barh(["c$d_$"], [1])
        figure.savefig(tmp_path / "drawn.png")
        pyplot.close(figure)
    assert (tmp_path / "drawn.png").is_file()
    assert matplotlib.rcParams["text.parse_math"] is before is True
