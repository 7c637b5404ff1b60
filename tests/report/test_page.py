"""The page: complete, self-contained, accessible, and deaf to HTML in labels, texts and names."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import soundfile
from PIL import Image

from mmtransfer.cli import main
from mmtransfer.evaluation.curves import forgetting, learning_curves
from mmtransfer.report.collect import read_run
from mmtransfer.report.inputs import SIDE
from mmtransfer.report.page import shown, write_report
from mmtransfer.report.sections import curves_of

from .conftest import EVIL, TEXTS

VOID = {"meta", "link", "img", "line", "circle", "rect", "path", "polyline", "br", "input"}


class Page(HTMLParser):
    """Elements with their attributes, and the text of each."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def decoded(uri: str | None) -> bytes:
    assert uri is not None
    return base64.b64decode(uri.partition("base64,")[2])


def test_a_page_holds_the_numbers_of_its_run(run: Path) -> None:
    path = write_report([run])
    assert path == run / "report.html"
    page = Page(path)
    evaluation = json.loads((run / "evaluation/evaluation.json").read_text())
    task = evaluation["tasks"]["product"]
    for value in (
        *task["metrics"].values(),
        task["intervals"]["accuracy"]["low"],
        task["contributions"]["accuracy"]["of_modalities"]["text"]["high"],
        *(scores["product"] for scores in evaluation["robustness"]["subsets"].values()),
        *(evaluation["robustness"]["noise"]["audio"]["1.0"].values()),
        evaluation["weights"]["image"],
        0.3,  # image alone
        0.5,  # of the learning curves: 2 / 4
    ):
        assert shown(value) in page.text, value
    for words in ("1 234 567", "12.3", "2030-01-01", "tiny-wav2vec2"):
        assert words in page.text, words
    assert "are shown with --data" in page.text
    titles = {f"#{attributes['id']}" for attributes in page.all("h2")}
    links = {attributes["href"] for attributes in page.all("a")}
    assert titles <= links
    assert len(titles) == 6


def test_mistakes_have_their_inputs(run: Path, data: Path) -> None:
    page = Page(write_report([run], str(data), mistakes=6, sounds=2))
    evaluation = json.loads((run / "evaluation/evaluation.json").read_text())
    mistakes = evaluation["tasks"]["product"]["confusion"]["mistakes"]
    assert len(mistakes) == 6
    pairs = evaluation["tasks"]["product"]["confusion"]["pairs"]
    rows = [example["row"] for pair in pairs[:6] for example in pair["examples"][:2]]
    assert rows
    for pair in pairs[:6]:
        assert f"{pair['truth']} taken for {pair['predicted']} {pair['rows']} row" in page.text
    rows += [mistake["row"] for mistake in mistakes]
    pictures, sounds = page.all("img"), page.all("audio")
    assert len(pictures) == sum(row % 7 != 6 for row in rows)
    assert len(sounds) == 2
    for row, picture in zip([r for r in rows if r % 7 != 6], pictures, strict=True):
        assert f"row {row}" in str(picture["alt"])
        with Image.open(io.BytesIO(decoded(picture["src"]))) as image:
            assert max(image.size) == SIDE
            assert image.size[0] / image.size[1] == pytest.approx(700 / 500, rel=0.02)
    for sound in sounds:
        samples, rate = soundfile.read(io.BytesIO(decoded(sound["src"])))
        assert len(samples) / rate == pytest.approx(0.4, abs=0.15)
    for row in rows:
        assert TEXTS[row % 4] is None or TEXTS[row % 4] in page.text
    assert "missing" in page.text
    assert "are shown with --data" not in page.text
    for row in rows:
        assert f"Row {row} true" in page.text
    assert "Most confused pairs Of each" in page.text
    fewer = Page(write_report([run], str(data), mistakes=0))
    assert not fewer.all("img")
    assert "Most confused pairs Of each" not in Page(write_report([run])).text


def test_players_are_shared_by_mistakes_and_pairs(run: Path, data: Path) -> None:
    evaluation = json.loads((run / "evaluation/evaluation.json").read_text())
    pairs = evaluation["tasks"]["product"]["confusion"]["pairs"]
    page = Page(write_report([run], str(data), sounds=1 + len(pairs)))
    told = [str(sound["aria-label"]) for sound in page.all("audio")]
    assert len(told) == 1 + len(pairs)
    shown = [example["row"] for pair in pairs for example in pair["examples"][:2]]
    assert sum(f"audio of row {row}" in told for row in set(shown)) >= min(2, len(pairs))


def test_nothing_of_a_run_becomes_html(run: Path, other: Path, data: Path) -> None:
    for path in (write_report([run], str(data)), write_report([run, other])):
        page = Page(path)
        assert len(page.all("script")) == 1
        assert len(page.all("title")) == 1
        assert not {tag for tag, _ in page.found} & {"b", "i", "iframe", "object", "embed", "base"}
        for tag, attributes in page.found:
            assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert "{{ 7 * 7 }}" in page.text
        assert "49" not in {word for word in page.text.split() if word.isdigit()}
        assert EVIL in page.text


def test_a_page_asks_nobody_and_runs_no_other_script(run: Path, data: Path) -> None:
    path = write_report([run], str(data))
    page = Page(path)
    for _, attributes in page.found:
        for name in ("src", "href", "srcset", "action", "poster", "xlink:href"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:", "#")), address
    style = re.search(r"<style>(.*?)</style>", path.read_text(), re.S)
    assert style
    assert not re.search(r"url\(|@import|http", style[1])
    script = re.search(r"<script>(.*?)</script>", path.read_text(), re.S)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    (policy,) = [str(m["content"]) for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}';" in policy


def test_a_screen_reader_finds_its_way(run: Path, other: Path, data: Path) -> None:
    for path in (write_report([run], str(data)), write_report([run, other])):
        page = Page(path)
        assert page.all("html") == [{"lang": "en"}]
        for landmark in ("header", "nav", "main", "footer", "h1"):
            assert len(page.all(landmark)) == 1, landmark
        ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
        assert len(ids) == len(set(ids))
        levels = [int(tag[1]) for tag, _ in page.found if re.fullmatch("h[1-6]", tag)]
        assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
        assert len(page.all("caption")) == len(page.all("table"))
        assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
        assert all(
            drawing["role"] == "img" and drawing["aria-label"] for drawing in page.all("svg")
        )
        assert all(picture["alt"] for picture in page.all("img"))
        assert all(sound["aria-label"] for sound in page.all("audio"))
        assert len(page.all("summary")) == len(page.all("details"))
        assert len(page.all("figure")) == len(page.all("svg")) == len(page.all("figcaption"))


def test_a_comparison_has_all_runs_side_by_side(run: Path, other: Path) -> None:
    path = write_report([run, other])
    assert path == run.parent / "comparison.html"
    page = Page(path)
    evaluation = json.loads((run / "evaluation/evaluation.json").read_text())
    task = evaluation["tasks"]["product"]
    low, high = (shown(task["intervals"]["accuracy"][end]) for end in ("low", "high"))
    assert f"{low} to {high}" in page.text
    assert "0.7500 , best" in page.text
    assert {"first", other.name} <= set(page.words)
    settings = page.text.partition("settings differ")[2].partition("Learning curves")[0]
    for word in ("fusion", "gated", "concat", "audio", "tiny-wav2vec2"):
        assert word in settings, word
    assert "tiny-vit" not in settings  # the same in both
    assert sum("Train loss" in str(drawing["aria-label"]) for drawing in page.all("svg")) == 1


def test_the_same_run_twice_differs_in_nothing(run: Path) -> None:
    page = Page(write_report([run, run]))
    assert "All settings are the same." in page.text
    assert ", best" not in page.text


def test_a_run_without_an_evaluation_is_evaluated_on_the_data(run: Path, data: Path) -> None:
    shutil.rmtree(run / "evaluation")
    assert "Calibration" not in Page(write_report([run])).text
    page = Page(write_report([run], str(data)))
    assert (run / "evaluation/evaluation.json").is_file()
    assert "Calibration" in page.text
    assert page.all("img")


def test_the_command_writes_and_refuses(
    run: Path, other: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "pages" / "both.html"
    main(["report", str(run), str(other), "--output", str(target)])
    assert str(target) in capsys.readouterr().out
    assert "Comparison of 2 runs" in Page(target).text
    evaluation = run / "evaluation/evaluation.json"
    found = json.loads(evaluation.read_text())
    found["tasks"]["product"]["confusion"]["mistakes"][0]["truth"] = "plum"
    evaluation.write_text(json.dumps(found))
    for given, told in (
        ([tmp_path / "nowhere"], f"no such directory: {tmp_path / 'nowhere'}"),
        ([data], "holds neither metrics.json nor evaluation.json"),
        ([run, "--data", data], "on other rows than 'test'"),
        ([run, "--data", data, "--split", "tst"], "no split 'tst'. Did you mean 'test'?"),
        ([other, "--data", data], "holds no model to evaluate"),
        ([run, "--sounds", "-1"], "sounds must not be negative, found -1"),
        ([run, "--ouput", "x"], "unknown option --ouput. Did you mean '--output'?"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["report", *map(str, given)])
        assert ended.value.code == 2
        err = capsys.readouterr().err
        assert told in err, err
        assert len(err.splitlines()) == 1
    (run / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics.json is no readable JSON"):
        write_report([run])


def test_runs_that_were_judged_on_different_rows_say_so(run: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(run, fewer)
    path = fewer / "evaluation" / "evaluation.json"
    found = json.loads(path.read_text())
    count = found["tasks"]["product"]["labelled"]
    told = f"different numbers of rows ({count}, {count - 1})"
    assert told not in write_report([run, fewer], output=tmp_path / "same.html").read_text()
    found["tasks"]["product"]["labelled"] -= 1
    path.write_text(json.dumps(found))
    assert told in write_report([run, fewer], output=tmp_path / "apart.html").read_text()


def test_numbers_that_are_missing_or_not_finite_are_dashes(run: Path, other: Path) -> None:
    path = run / "evaluation" / "evaluation.json"
    found = json.loads(path.read_text())
    found["tasks"]["product"]["metrics"]["accuracy"] = None
    for scores in found["robustness"]["subsets"].values():
        scores["product"] = None
    found["robustness"]["noise"]["audio"]["1.0"]["product"] = None
    path.write_text(json.dumps(found))
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["history"][1]["train_loss"] = math.nan
    metrics["source"]["before"]["product"]["accuracy"] = math.nan
    metrics["single"]["image"]["product"]["accuracy"] = math.nan
    (run / "metrics.json").write_text(json.dumps(metrics))
    for page in (write_report([run]), write_report([run, other])):
        assert "accuracy –" in Page(page).text
        assert "nan" not in Page(page).text.split()


def test_the_split_is_named_where_it_is_not_test(run: Path, other: Path, data: Path) -> None:
    path = run / "evaluation" / "evaluation.json"
    found = json.loads(path.read_text())
    assert "judged on" not in Page(write_report([run])).text
    found["about"] |= {"split": "holdout", "data": "/data/<b>shop"}
    path.write_text(json.dumps(found))
    assert "judged on: holdout of /data/<b>shop" in Page(write_report([run])).text
    assert "different splits (holdout, test)" in Page(write_report([run, other])).text
    with pytest.raises(ValueError, match="on 'holdout', see --split"):
        write_report([run], str(data))
    metrics = json.loads((other / "metrics.json").read_text())
    metrics["validation"] = metrics.pop("test")
    (other / "metrics.json").write_text(json.dumps(metrics))
    assert "judged on: validation" in Page(write_report([other])).text


def test_tasks_of_similar_names_have_anchors_of_their_own(run: Path, other: Path) -> None:
    for directory in (run, other):
        shutil.rmtree(directory / "evaluation", ignore_errors=True)
        metrics = json.loads((directory / "metrics.json").read_text())
        scores = metrics["test"]["product"]
        metrics["test"] = dict.fromkeys(("a b", "a-b", "a b 2", "A.b"), scores)
        (directory / "metrics.json").write_text(json.dumps(metrics))
    for path in (write_report([run]), write_report([run, other])):
        page = Page(path)
        ids = [str(heading["id"]) for heading in page.all("h2")]
        assert len(ids) == len(set(ids))
        assert ids[:4] == ["task-a-b", "task-a-b-2", "task-a-b-2-2", "task-a-b-3"]
        links = [attributes["href"] for attributes in page.all("a")]
        assert all(f"#{name}" in links for name in ids)


def test_the_page_has_the_curves_and_the_forgetting_of_the_evaluation(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["source"]["after"]["product"] |= {"accuracy": 0.25}
    metrics["history"][2]["train_loss"] = None
    (run / "metrics.json").write_text(json.dumps(metrics))
    found = read_run(run)
    for name, values in learning_curves(metrics["history"]).items():
        if name != "phase":
            points = curves_of(found)[name.replace("train_loss", "train loss")]
            assert points == [(k, v) for k, v in enumerate(values, 1) if v is not None]
    of_task = forgetting(metrics["source"])["product"]["accuracy"]
    told = " ".join(shown(of_task[name]) for name in ("before", "after", "forgotten"))
    assert f"product, accuracy {told}" in Page(write_report([run])).text


def test_a_report_of_what_is_there_needs_no_torch(run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mmtransfer.report.page import write_report; "
        f"write_report([Path({str(run)!r})]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
