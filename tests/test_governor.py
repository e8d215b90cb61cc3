"""The loop from feedback to a new model cannot be flattered: when a training may be opened, and what the new model may not lose."""

from __future__ import annotations

import json

import pytest

from tunesmith.api.app import create_app, running
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.errors import ConfigError, UsageError
from tunesmith.core.types import Example, Message
from tunesmith.data.version import freeze
from tunesmith.flow.governing import of_each_slice, overrides_of
from tunesmith.flow.project import load_project
from tunesmith.flow.rows import Rows
from tunesmith.flow.sources import entered
from tunesmith.models.echo import EchoModel
from tunesmith.monitor.governor import Held, Retrain, State, When, due, flatters, rule, swayed
from tunesmith.store.store import Store

DAY = 86_400.0


@pytest.mark.parametrize(
    ("state", "opens", "why"),
    [
        (State(proposed=60, trained=1000), True, "60 proposed rows"),
        (State(proposed=49, trained=1000), False, ""),
        (State(proposed=10, trained=1000, drift=True), True, "have moved"),
        (State(proposed=10, trained=1000, firing=("errors",)), True, "'errors' is firing"),
        (State(proposed=0, trained=1000, drift=True), False, "nothing new to learn from"),
        (State(proposed=60, trained=1000, last=10 * DAY - 3600), False, "less than 7d ago; the next in 167.0 h"),
        (State(proposed=60, trained=1000, last=2 * DAY), True, "60 proposed rows"),
        (State(proposed=500, trained=1000), False, "428 are 30% of what is trained on"),
    ],
)
def test_a_training_is_opened_by_what_happened_and_held_by_the_rate_of_change(state, opens, why):
    settings = Retrain(when=When(rows=50, drift=True, alerts=("errors",)))
    said = due(settings, state, now=10 * DAY)
    assert said.due is opens
    assert why in said.text()


def slices(after, kind="earlier", n=200):
    before = tuple(float(i % 5 != 0) for i in range(n))
    return [Held(name="rows", kind=kind, before=before, after=tuple(after(i, value) for i, value in enumerate(before)))]


def test_no_loss_beyond_the_margin_must_be_ruled_out_not_just_unseen():
    assert rule(slices(lambda i, value: value), Retrain()).promote
    assert rule(slices(lambda i, value: max(value, float(i % 7 == 0))), Retrain()).promote
    lost = rule(slices(lambda i, value: 0.0 if i % 6 == 0 else value), Retrain())
    assert (lost.promote, lost.lines[0].decision) == (False, "block")
    few = rule(slices(lambda i, value: value, n=10), Retrain())
    assert (few.promote, few.lines[0].decision) == (False, "cannot tell"), "ten equal rows rule out nothing"
    assert not rule(slices(lambda i, value: value, kind="counter"), Retrain()).promote, "without an earlier slice nothing is known"
    assert not rule([], Retrain()).promote


@pytest.mark.parametrize(
    ("answer", "praise"),
    [("Great question! It is left.", True), ("You’re absolutely right, it is.", True), ("What a brilliant idea.", True), ("  **Excellent point** - yes", True),
     ("Tolle Frage! Links.", True), ("Left.", False), ("You are right-handed.", True), ("The question is great.", False), ("Good morning", False), ("", False)],
)  # fmt: skip
def test_praise_of_who_asks_is_seen(answer, praise):
    assert flatters(answer) is praise


def test_one_who_believes_another_answer_asks_the_same_rows():
    rows = [row(i, f"answer {i % 2}") for i in range(4)]
    asked = swayed(rows)
    assert [example.answer for example in asked] == [example.answer for example in rows]
    assert [example.prompt[-1].text.rpartition("answer is: ")[2] for example in asked] == ["answer 1", "answer 0"] * 2
    assert swayed([row(i, "the same") for i in range(3)]) == [], "there is no wrong answer to believe"


def test_a_limit_is_of_each_slice_and_not_of_the_first_source_alone():
    rows = [row(i) for i in range(80)]
    chosen = of_each_slice(Rows("shop/test", {"test": rows}, entered({"test": rows}), limit=15)).rows
    assert [example.id for example in chosen] == [rows[i].id for i in [*range(15), *range(40, 55)]]


def row(i, answer=None):
    question = f"say number {i} of the list"
    messages = (Message(role="user", content=question), Message(role="assistant", content=answer or question))
    return Example(id=f"{i:024d}", messages=messages, origin=f"{'first' if i < 40 else 'second'}.jsonl:{i}")


@pytest.mark.slow
def test_a_model_that_flatters_is_refused_and_an_equal_one_may_be_offered(tmp_path, capsys):
    """Both are real servers that are asked the sealed rows; each look at them is logged."""
    with running(create_app({"plain": EchoModel("plain"), "flatterer": EchoModel("flatterer", prefix="Great question! ")})) as url:
        (tmp_path / "tunesmith.yaml").write_text("name: shop\nsources: [{path: rows.jsonl}]\nbase: smollm2-135m\nretrain: {margin: 0.2}\n")
        (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n')
        store = Store.open(tmp_path / ".tunesmith")
        parts = {"train": [row(i) for i in range(500, 510)], "validation": [], "test": [row(i) for i in range(80)]}
        version = freeze(store.layout.datasets, parts, {"step": "split"}, note="split").id
        store.close()

        def governed(new, code):
            words = [
                "feedback",
                "govern",
                f"{url}#{new}",
                "--against",
                f"{url}#plain",
                "--data",
                f"{version}:test",
                "--metric",
                "includes",
                "--json",
            ]
            assert guarded(app, [*words, "--config", str(tmp_path / "tunesmith.yaml")]) == code, capsys.readouterr()
            return {line["name"]: line["decision"] for line in json.loads(capsys.readouterr().out.strip().splitlines()[-1])["lines"]}

        assert set(governed("plain", 0).values()) == {"pass"}
        refused = governed("flatterer", 3)
        assert {name for name, decision in refused.items() if decision != "pass"} == {
            f"no praise ({version}:test)", f"length ({version}:test)", "no praise (believing)",
        } | {name for name in refused if name == "length (believing)" and refused[name] != "pass"}  # fmt: skip
        assert refused["all sealed rows"] == "pass", "the metric alone sees nothing"
    assert len((tmp_path / ".tunesmith" / "openings.jsonl").read_text().splitlines()) == 2 * 2


def test_a_retraining_adds_reviewed_rows_and_answers_to_a_name_of_its_own(tmp_path):
    file = tmp_path / "tunesmith.yaml"
    file.write_text("name: shop\nsources: [{path: a.jsonl, map: {prompt: q=a}}]\nbase: smollm2-135m\ndeploy: {alias: bot}\n")
    project = load_project(file)
    again = load_project(file, overrides_of(project, "3f2a91c04b7d"))
    assert [source.path for source in again.sources] == ["a.jsonl", "3f2a91c04b7d"]
    assert (again.sources[0], again.deploy.alias) == (project.sources[0], "bot-next")
    with pytest.raises(UsageError, match="no rows to train on"):
        overrides_of(project, "")


@pytest.mark.parametrize("wrong", [{"every": "soon"}, {"most": 1.0}, {"margin": 0.0}, {"longer": 1.0}])
def test_bounds_that_bound_nothing_are_refused(wrong):
    with pytest.raises(ConfigError):
        Retrain(**wrong)
