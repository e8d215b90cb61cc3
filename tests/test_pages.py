"""Every page in a browser, made through the command line from rows that would break it: wide and narrow, light and dark, offline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import browser
from tunesmith.cli import app
from tunesmith.cli.data_work import app as data_app
from tunesmith.cli.shared import guarded
from tunesmith.core.errors import UsageError
from tunesmith.pages import plots
from tunesmith.pages.render import render

VIEWS = [(1200, "light"), (1200, "dark"), (390, "light"), (390, "dark")]
HOSTILE = [
    "<script>alert(1)</script>",
    "{{ 7 * 7 }} {% raw %}",
    "x" * 400,
    "https://example.org/" + "y" * 200,
    "مرحبا بالعالم",
    "long " * 300,
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    turns = [
        (f"topic{i % 5} question {i} {HOSTILE[i % len(HOSTILE)]}", f"label {i % 3} {HOSTILE[(i + 1) % len(HOSTILE)]}") for i in range(90)
    ]
    lines = [
        {
            "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": asked if i % 3 else answer}],
            "label": HOSTILE[i % 2],
        }
        for i, (asked, answer) in enumerate(turns)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def assert_sound(path: Path) -> None:
    """No view of the page has a fault, and nothing of the rows came through as a tag or was run as a template."""
    html = path.read_text("utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "{{ 7 * 7 }}" in html
    with browser.browser() as opened:
        assert {view: browser.faults(opened, path, width=view[0], scheme=view[1]) for view in VIEWS} == {view: [] for view in VIEWS}


@pytest.mark.slow
def test_the_data_check_is_sound(here, capsys):
    assert guarded(data_app, ["check", "rows.jsonl", "--out", "page.html"]) in (0, 3)
    assert_sound(here / "page.html")


@pytest.mark.slow
def test_the_report_of_evaluations_is_sound(here, capsys):
    guarded(app, ["eval", "echo:<b>X</b>", "echo", "--data", "rows.jsonl", "--metrics", "exact_match,rougeL,wer", "--json"])
    named = {json.loads(path.read_text())["model"]: path.parent.name for path in here.glob(".tunesmith/evaluations/*/kept.json")}
    assert guarded(app, ["report", named["echo:<b>X</b>"], named["echo"], "--out", "out"]) == 0
    assert_sound(here / "out" / "report.html")


def test_what_is_plotted_is_escaped_and_numbers_that_are_none_leave_the_picture_whole():
    nan, inf = float("nan"), float("inf")
    drawn = [
        plots.intervals("<i>", [("<b>", 1.0, -inf, inf), ("none", nan, nan, nan)], "<u>"),
        plots.intervals("empty", [], "x"),
        plots.lines("<i>", [("<b>", [1.0, 2.0, 3.0], [nan, inf, 4.0])], "<u>", "<u>"),
        plots.lines("empty", [], "x", "y"),
        plots.bars("<i>", [("<b>", 0.0)], "<u>"),
        plots.histogram("<i>", [3.0, 3.0], "<u>"),
        plots.histogram("empty", [], "x"),
    ]
    for plot in drawn:
        assert not any(tag in plot for tag in ("<b>", "<i>", "<u>"))
        places = [word for word in plot.replace("=", " ").split() if word.strip('"') in ("nan", "inf", "-inf")]
        assert places == []


def test_a_page_that_does_not_exist_and_a_name_that_a_template_misspells_are_errors():
    with pytest.raises(UsageError, match=r"(?s)no page 'run'.*run_report"):
        render("run")
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="created"):
        render("evaluation_report", r={"boards": [], "comparisons": [], "failures": None, "openings": []})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ann/models/base", "…/base"),
        ("tunesmith run --config '/home/ann/my shop/tunesmith.yaml'", "tunesmith run --config '…/my shop/tunesmith.yaml'"),
        ("data/rows.jsonl", "data/rows.jsonl"),
        ("https://example.org/a/rows.jsonl", "https://example.org/a/rows.jsonl"),
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("and/or 1/2", "and/or 1/2"),
    ],
)
def test_a_report_names_no_folders_of_this_machine(text, shown):
    from tunesmith.flow.pipeline.report import without_folders

    assert without_folders({"a": [text]}) == {"a": [shown]}
