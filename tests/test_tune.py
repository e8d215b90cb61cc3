"""Studies through the command line, with a tiny real model: they end, go on after a kill, keep the default, and never look at the test part."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import random
import shutil
import signal
from pathlib import Path

import pytest

import tiny
from forked import command
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.errors import ConfigError, UsageError
from tunesmith.flow.tuning.width import Meter, Width
from tunesmith.tune import halving, verdict
from tunesmith.tune.search import Search, StudyFacts, defaults
from tunesmith.tune.settings import Axis, Tune
from tunesmith.tune.space import Ground, changes, given, grid, space
from tunesmith.tune.trials import Rung, RungResult, Trial, front
from waiting import until

YAML = """
name: tiny
sources: [{{path: rows.jsonl}}]
base: {base}
split: {{validation: 0.3, test: 0.2, semantic: {{action: "off"}}}}
train: {{epochs: 2, learning_rate: 1e-4, batch_size: 8, dtype: float32, threads: 1, adapter: {{kind: lora, r: 8}}}}
evaluate: {{metrics: [exact_match], max_tokens: 3}}
tune:
  {{trials: 2, seeds: 2, finalists: 1, sampler: grid, seed: 2, rungs: [0.4, 1],
   space: {{learning_rate: {{choices: [1e-4, 0.01]}}, adapter.r: {{choices: [4, 8]}}}}}}
"""
DEFAULT = {
    "learning_rate": 1e-3, "adapter.kind": "lora", "adapter.r": 16, "adapter.alpha": 32.0, "adapter.dropout": 0.0, "adapter.targets": "all-linear",
    "batch_size": 8, "epochs": 2, "warmup_ratio": 0.05, "preference.beta": 0.1, "distillation.beta": 0.0, "reinforcement.beta": 0.0,
}  # fmt: skip
GROUND = Ground("sft", "", (), DEFAULT, rows=400, hidden_size=64, layers=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj"))


def project(folder: Path, base: Path, extra: str = "") -> Path:
    rng, rows = random.Random(0), []
    words = ["agreement", "bank", "entities", "sentence", "credit", "holdings", "amended", "signed", "ohio", "york", "june", "dated"]
    for _ in range(100):
        said = " ".join(rng.sample(words, 6))
        turns = [{"role": "user", "content": said}, {"role": "assistant", "content": "yes" if "bank" in said else "no"}]
        rows.append(json.dumps({"messages": turns}) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(rows))
    (folder / "tunesmith.yaml").write_text(YAML.format(base=base) + extra)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("base"), context=128)


@pytest.fixture(scope="module")
def study(base, tmp_path_factory):
    """A finished study, and what `tune` printed."""
    folder = project(tmp_path_factory.mktemp("study"), base)
    return folder, said(folder, "tune")


def said(folder: Path, *words: str, code: int = 0) -> dict:
    """What the command prints as JSON, run in that folder."""
    here, out = Path.cwd(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            ended = guarded(app, [*words, "--json"])
    finally:
        os.chdir(here)
    assert ended == code, out.getvalue()
    return json.loads(out.getvalue().splitlines()[-1])


def trial(number: int, *values: float, state: str = "paused", origin: str = "search", tokens: int = 0) -> Trial:
    looks = tuple(RungResult(rung=i, value=value, tokens=tokens) for i, value in enumerate(values))
    return Trial(number=number, params={}, state=state, origin=origin, looks=looks)


# Spaces


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{learning_rat: auto}", ["tune.space.learning_rat", "learning_rate"]),
        ("{adapter.rank: {choices: [4]}}", ["tune.space.adapter.rank", "adapter.r"]),
        ("{max_length: {choices: [64]}}", ["tune.space.max_length", "cannot vary"]),
        ("{seed: {choices: [1, 2]}}", ["tune.space.seed", "cannot vary"]),
        ("{batch_size: {choices: [8, 0]}}", ["tune.space.batch_size", "above 0"]),
        ("{schedule: {choices: [cosine, sqrt]}}", ["tune.space.schedule", "sqrt"]),
        ("{learning_rate: {low: 1e-3}}", ["low below high"]),
        ("{learning_rate: {low: 0, high: 1, log: true}}", ["low above 0"]),
        ("{learning_rate: {low: 1e-4, high: 1e-3, logs: true}}", ["logs", "log"]),
        ("{learning_rate: {choices: [1e-3], low: 1e-4, high: 1}}", ["choices or a range"]),
    ],
)
def test_what_cannot_be_searched_is_refused_before_any_work(section, words, tmp_path):
    (tmp_path / "tunesmith.yaml").write_text(f"name: p\nsources: [{{path: rows.jsonl}}]\nbase: x\ntune: {{space: {section}}}\n")
    message = said(tmp_path, "tune", "status", code=2)["error"]["message"]
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("key", "value"),
    [("trials", 0), ("eta", 1), ("seeds", 1), ("rungs", (0.5, 0.2, 1)), ("rungs", (0.1, 0.5)), ("proxy", 1.0), ("usd", 3.0)],
)
def test_settings_that_cannot_be_name_their_key(key, value):
    with pytest.raises(ConfigError, match=rf"tune\.{key}"):
        Tune(**{key: value})


def test_a_ready_space_holds_the_default_plan_and_names_its_sources():
    varied = space(Tune(), GROUND)
    assert {each.key for each in varied} >= {"learning_rate", "adapter.r", "adapter.alpha", "adapter.targets", "batch_size", "epochs"}
    assert all(each.source for each in varied)
    assert "preference.beta" not in {each.key for each in varied}
    assert changes(varied, defaults(varied), DEFAULT) == {each.key: DEFAULT[each.key] for each in varied}
    beta = space(Tune(), Ground("dpo", "preference", ("beta",), DEFAULT, rows=400, hidden_size=64))
    assert "preference.beta" in {each.key for each in beta}
    assert "adapter.targets" not in {each.key for each in beta}, "this base has no layers of those names"


def test_a_users_space_is_widened_to_hold_the_default_and_alpha_follows_the_rank():
    axes = {
        "learning_rate": Axis(low=2e-3, high=4e-3, log=True),
        "adapter.r": Axis(choices=(4, 8)),
        "adapter.alpha": Axis(choices=("r", "2r")),
    }
    varied = space(Tune(space=axes), GROUND)
    assert [each.default for each in varied] == [1e-3, 16, "2r"]
    assert (varied[0].axis.low, varied[1].axis.choices) == (1e-3, (4, 8, 16))
    asked = given(varied, {"adapter.r": 4, "learning_rate": 3e-3})
    assert changes(varied, asked, DEFAULT) == {"learning_rate": 3e-3, "adapter.r": 4, "adapter.alpha": 8.0}
    assert len(grid(varied, 0)) == 4 * 3 * 2
    assert {json.dumps(one) for one in grid(varied, 0)} == {json.dumps(one) for one in grid(varied, 1)}
    for wrong in ({"adapter.r": 5}, {"learning_rate": 1.0}, {"epochs": 2}):
        with pytest.raises(UsageError):
            given(varied, wrong)


# Halving


def test_rungs_lie_above_the_warm_up_and_a_proxy_has_rows_enough():
    assert [rung.share for rung in halving.ladder(Tune(), rows=500, steps=90, warmup=0.05)] == pytest.approx([1 / 9, 1])
    assert [rung.share for rung in halving.ladder(Tune(eta=3), rows=500, steps=90, warmup=0.05)] == pytest.approx([1 / 9, 1 / 3, 1])
    assert [rung.share for rung in halving.ladder(Tune(), rows=500, steps=90, warmup=0.1)] == pytest.approx([1 / 3, 1])
    assert [rung.share for rung in halving.ladder(Tune(), rows=60, steps=12, warmup=0.05)] == [1]
    large = halving.ladder(Tune(), rows=5000, steps=900, warmup=0.05)
    assert (large[0], large[-1]) == (Rung(share=0.1, proxy=True), Rung(share=1.0))
    assert halving.ladder(Tune(rungs=(0.25, 1), proxy=0.2), rows=9, steps=9, warmup=0.5) == (
        Rung(share=0.2, proxy=True),
        Rung(share=0.25),
        Rung(share=1.0),
    )


def test_of_three_on_a_rung_the_best_goes_on_the_default_always_and_two_finish():
    rungs, tune = (Rung(share=1 / 3), Rung(share=1.0)), Tune(finalists=2)
    ask = lambda trials, more: halving.step(trials, rungs, tune, higher=True, more=more)  # noqa: E731
    assert ask([trial(0, 0.1)], True) == (0, 1)
    whole = trial(0, 0.1, 0.2, state="finished")
    assert ask([whole, trial(1, 0.5)], True) == (None, 0)
    assert ask([whole, trial(1, 0.5), trial(2, 0.9)], True) == (2, 1)
    assert ask([whole, trial(1, 0.5), trial(2, 0.9, 0.9, state="finished")], True) == (None, 0)
    assert ask([whole, trial(1, 0.5), trial(2, 0.9, 0.9, state="finished"), trial(3, 0.05, state="pruned")], False) == (1, 1)
    assert ask([whole, trial(1, 0.5, 0.6, state="finished"), trial(2, 0.9, 0.9, state="finished")], False) is None
    high = trial(0, 1.0, 1.0, state="finished")
    assert halving.step([high, trial(1, 0.5), trial(2, 0.9)], rungs, tune, higher=False, more=True) == (1, 1)
    assert ask([whole, trial(1, 0.01, origin="added")], True) == (1, 1)


def test_on_a_rung_the_loss_counts_as_much_as_the_metric_where_all_have_one():
    """Answers that are the same for every question have a value too, and the loss shows that nothing was learned."""
    seen = [("always yes", 0.5, 1.2), ("learns", 0.4, 0.3), ("learns slowly", 0.1, 0.5), ("nothing", 0.0, 2.0)]
    trials = [
        Trial(number=i, params={"is": name}, state="paused", looks=(RungResult(rung=0, value=value, loss=loss),))
        for i, (name, value, loss) in enumerate(seen)
    ]
    order = [each.params["is"] for each in halving.standing(trials, higher=True)]
    assert order == ["learns", "always yes", "learns slowly", "nothing"]
    one = Trial(number=9, params={}, state="paused", looks=(RungResult(rung=0, value=0.45),))
    assert [each.number for each in halving.standing([*trials, one], higher=True)] == [0, 9, 1, 2, 3], (
        "by the metric, where one has no loss"
    )


def test_as_many_are_looked_at_for_one_that_goes_on_as_the_next_rung_costs():
    seen = [trial(0, 0.1, 0.2, state="finished"), *(trial(i, 0.1 * i) for i in range(1, 8))]
    rungs = (Rung(share=1 / 9), Rung(share=1.0))
    assert halving.step(seen, rungs, Tune(), higher=True, more=True) == (None, 0), "eight are there"
    assert halving.step([*seen, trial(8, 0.05)], rungs, Tune(), higher=True, more=True) == (7, 1)
    assert halving.step(seen, rungs, Tune(eta=3), higher=True, more=True) == (7, 1)


def test_the_front_of_quality_and_cost():
    trials = [
        trial(i, value, state="finished", tokens=tokens) for i, (value, tokens) in enumerate([(0.5, 10), (0.4, 20), (0.7, 30), (0.7, 40)])
    ]
    assert front(trials, higher=True) == [0, 2]
    assert front(trials, higher=False) == [0, 1]


# Proposals


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random", "grid"])
def test_a_study_that_is_opened_again_proposes_what_it_would_have(sampler, tmp_path):
    axes = {
        "learning_rate": Axis(low=1e-4, high=1e-2, log=True),
        "weight_decay": Axis(low=0.0, high=0.1),
        "batch_size": Axis(choices=(4, 8)),
    }
    varied = space(Tune(space=axes), Ground("sft", "", (), {**DEFAULT, "weight_decay": 0.0}, rows=400, hidden_size=64))
    facts = StudyFacts(
        identity="i", about={}, project="p", method="sft", metric="m", higher=True, space=varied, rungs=(Rung(share=1.0),), sampler=sampler,
        seed=3, parameters=10, rows=10,
    )  # fmt: skip
    seen = []
    for name, again in (("whole", False), ("broken", True)):
        url, params = f"sqlite:///{tmp_path / name}.db", []
        search = Search.begin(url, "s", facts)
        search.add(defaults(varied), "default")
        for number in range(6):
            if again and number in (2, 5):
                search = Search.open(url, "s")
            taken = search.next(9)
            assert taken is not None
            search.look(number, RungResult(rung=0, value=-abs(taken.params["learning_rate"] - 3e-3)), "finished")
            params.append(taken.params)
        seen.append(params)
        assert sum(search.importance().values()) == pytest.approx(1)
    assert seen[0] == seen[1]
    assert seen[0][0] == defaults(varied)
    assert len({json.dumps(params) for params in seen[0]}) == 6, "no plan twice"
    with pytest.raises(UsageError, match="about another"):
        Search.begin(
            url, "s", StudyFacts(**{**{f: getattr(facts, f) for f in facts.__struct_fields__}, "identity": "j", "about": {"data": "x"}})
        )


@pytest.mark.slow
def test_a_sampler_goes_by_what_was_learned_on_the_lowest_rung_until_whole_trainings_are_enough(tmp_path):
    """The default alone is whole, and bad. All answers are wrong on the lowest rung, and the loss falls with the rate."""
    varied = space(Tune(space={"learning_rate": Axis(low=1e-5, high=1e-1, log=True)}), GROUND)
    facts = StudyFacts(
        identity="i", about={}, project="p", method="sft", metric="m", higher=True, space=varied, rungs=(Rung(share=1 / 9), Rung(share=1.0)),
        sampler="tpe", seed=3, parameters=10, rows=10,
    )  # fmt: skip
    search = Search.begin(f"sqlite:///{tmp_path}/s.db", "s", facts)
    search.add(defaults(varied), "default")
    for i in range(20):
        search.add({"learning_rate": 10 ** (-5 + 0.2 * i)}, "added")
    for number in range(21):
        rate = search.next(30).params["learning_rate"]
        search.look(number, RungResult(rung=0, value=0.0, loss=abs(math.log10(rate / 1e-2))), "paused")
    search.look(0, RungResult(rung=1, value=0.0, loss=1.0), "finished")
    proposed = [search.next(30).params["learning_rate"] for _ in range(4)]
    assert all(3e-3 < rate < 3e-2 for rate in proposed), proposed


# Whole studies


@pytest.mark.slow
def test_a_study_measures_the_default_first_ends_with_a_verdict_and_is_not_repeated(study):
    folder, found = study
    assert (found["ended"], found["trials"][0]["origin"], found["trials"][0]["state"]) == ("done", "default", "finished")
    assert found["trials"][1]["params"] == {"learning_rate": 0.01, "adapter.r": 8}
    assert found["trials"][1]["value"] > found["trials"][0]["value"], "a rate a hundred times as high learns more in few steps"
    decided = found["verdict"]
    assert (decided["trial"], decided["seeds"], decided["recommended"] == "trial") == (1, 2, decided["difference"]["low"] > 0)
    assert -1 <= decided["difference"]["low"] <= decided["difference"]["high"] <= 1
    assert found["trials"][0]["interval"][0] <= found["trials"][0]["value"] <= found["trials"][0]["interval"][1]
    assert not (folder / ".tunesmith" / "openings.jsonl").exists(), "the test part is never looked at"
    page = Path(found["report"]).read_text()
    assert found["verdict"]["sentence"].split(":")[0] in page
    before = {path: path.stat().st_mtime_ns for path in (folder / ".tunesmith" / "tuning" / "tiny").rglob("evaluation.json")}
    again = said(folder, "tune")
    assert (again["trials"], again["verdict"]) == (found["trials"], found["verdict"])
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert said(folder, "tune", "status")["trials"] == found["trials"]


@pytest.mark.slow
def test_a_trial_that_was_paused_has_the_bytes_of_a_run_and_run_takes_its_plan(study):
    folder, found = study
    assert [look["rung"] for look in found["trials"][0]["looks"]] == [0, 1], "it was paused between"
    trained = said(folder, "train")
    own = folder / ".tunesmith" / "tuning" / "tiny" / "trials" / "0" / "train" / "adapter" / "adapter_model.safetensors"
    assert own.read_bytes() == (Path(trained["artifact"]) / "adapter_model.safetensors").read_bytes()
    best = said(folder, "tune", "best", "--trial", "0")
    assert best["train"]["learning_rate"] == 1e-4
    assert said(folder, "train", "--plan", "plan.yaml")["cached"], "the default's plan is the project's own"
    other = said(folder, "tune", "best", "--out", "other.yaml")
    rate = 0.01 if found["verdict"]["recommended"] == "trial" else 1e-4
    assert (other["train"]["learning_rate"], other["sentence"]) == (rate, found["verdict"]["sentence"])
    assert said(folder, "tune", "best", "--trial", "1", "--out", "other.yaml")["train"]["learning_rate"] == 0.01
    assert said(folder, "estimate", "--plan", "other.yaml", "--train.seed", "3")["plan"].get("learning_rate", 1e-3) == 0.01
    (folder / "wrong.yaml").write_text("train: {learning_rat: 1}\n")
    assert "wrong.yaml:1" in said(folder, "train", "--plan", "wrong.yaml", code=2)["error"]["message"]


@pytest.mark.slow
def test_of_two_processes_one_is_killed_and_nothing_finished_is_repeated(base, study, tmp_path):
    _, found = study
    folder, words = (
        project(tmp_path / "two", base),
        ["tune", "--tune.trials", "3", "--tune.seeds", "0", "--tune.rungs", "[1]", "--tune.at_once", "1"],
    )
    trials = folder / ".tunesmith" / "tuning" / "tiny" / "trials"
    first = command(words, folder)
    until(lambda: (trials / "1" / "train" / "events.jsonl").exists(), alive=first.alive, progress=lambda: first.err)
    os.kill(first.pid, signal.SIGSTOP)
    second = command([*words, "--json"], folder)
    assert second.wait() == 0, second.err
    shared = json.loads(second.out.splitlines()[-1])
    assert (shared["ended"], [row["state"] for row in shared["trials"]]) == ("elsewhere", ["finished", "running", "finished"])
    first.kill()
    kept = {path: path.stat().st_mtime_ns for path in trials.rglob("evaluation.json")}
    again = said(folder, *words)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert (again["ended"], [row["state"] for row in again["trials"]]) == ("done", ["finished"] * 3)
    whole = [row["number"] for row in found["trials"] if row["state"] == "finished"]
    for key in ("params", "value", "loss", "tokens"):
        assert [again["trials"][i][key] for i in whole] == [found["trials"][i][key] for i in whole], "with pauses and without"


@pytest.mark.slow
def test_trials_that_are_trained_side_by_side_have_what_they_have_alone(study, tmp_path):
    _, found = study
    folder = shutil.copytree(study[0], tmp_path / "copy")
    words = ["--study", "wide", "--tune.trials", "4", "--tune.seeds", "0", "--tune.at_once", "3"]
    wide = said(folder, "tune", *words)
    rates = json.loads((folder / ".tunesmith" / "tuning" / "wide" / "side_by_side.json").read_text())
    assert (wide["ended"], set(rates)) == ("done", {"1", "3"}), "the default alone, three beside each other"
    assert [row["params"] for row in wide["trials"][:2]] == [row["params"] for row in found["trials"]]
    for mine, own in zip(wide["trials"], found["trials"], strict=False):
        for look, alone in zip(mine["looks"], own["looks"], strict=False):
            assert (look["value"], look["tokens"]) == (alone["value"], alone["tokens"])
            assert look.get("loss") == pytest.approx(alone.get("loss"), rel=1e-6)


@pytest.mark.parametrize(
    ("rates", "most"),
    [({}, 1), ({1: 100}, 2), ({1: 100, 2: 101}, 1), ({1: 100, 2: 150}, 4), ({1: 100, 2: 150, 4: 140}, 2), ({1: 1, 2: 2, 4: 4, 8: 8}, 8)],
)
def test_twice_as_many_trials_are_tried_while_that_is_faster(rates, most, tmp_path):
    width = Width(tmp_path, "auto")
    for count, rate in rates.items():
        width.measured(count, rate)
        width.measured(count, 1.0)
    assert (Width(tmp_path, "auto").most, Width(tmp_path, 5).most) == (most, 5), "the first measurement holds, in every process"


def test_a_rate_counts_the_time_of_steps_and_no_evaluation_checkpoint_or_saving_between_those_of_other_trials():
    times = iter([0.0, 50.0, 51.0, 60.0, 61.0, 90.0, 100.0, 101.0])
    meter = Meter(lambda: next(times))
    for event in ("start", "start", "step", "evaluation", "step", "checkpoint", "saved", "step"):
        meter({"event": event, "tokens": 10})
    assert meter.rate == pytest.approx(30 / 3)


@pytest.mark.slow
def test_a_study_by_loss_on_a_proxy_and_on_rungs_and_a_plan_that_cannot_be_trained(study, tmp_path):
    folder = shutil.copytree(study[0], tmp_path / "copy")
    space = {"adapter.targets": {"choices": ["all-linear", ["nope_proj"]]}}
    words = {"by": "loss", "proxy": 0.4, "rungs": [0.5, 1], "sampler": "grid", "trials": 2, "seeds": 0, "space": space}
    ended = said(folder, "tune", "--study", "loss", "--tune", json.dumps(words))
    default, failed = ended["trials"][0], [row for row in ended["trials"] if row["state"] == "failed"]
    assert (ended["better"], len(ended["trials"]), len(failed)) == ("lower", 2, 1)
    assert all("nope_proj" in row["note"] for row in failed)
    tokens, losses = ([look[key] for look in default["looks"]] for key in ("tokens", "loss"))
    assert tokens == sorted(set(tokens))
    assert tokens[0] < 0.5 * (tokens[2] - tokens[0]), "the proxy has whole clusters of less than half of the rows"
    assert len(set(losses)) == 3
    assert default["values"]["exact_match"] is not None, "the metric is measured at the end"
    assert ended["best"] == 0


@pytest.mark.slow
def test_trials_by_hand_clones_and_another_plan_under_the_same_name(study, tmp_path):
    finished, found = study
    folder = shutil.copytree(finished, tmp_path / "copy")
    assert said(folder, "tune", "add", "adapter.r=4")["params"]["adapter.r"] == 4
    assert "outside" in said(folder, "tune", "add", "adapter.r=5", code=2)["error"]["message"]
    assert "does not vary" in said(folder, "tune", "add", "epochs=5", code=2)["error"]["message"]
    assert said(folder, "tune", "status")["trials"][-1]["state"] == "waiting"
    assert said(folder, "tune", "stop")["stopping"]
    assert said(folder, "tune", "status")["stopping"]
    message = said(folder, "tune", "--train.batch_size", "4", code=2)["error"]["message"]
    assert "about another plan" in message
    wider = "{learning_rate: {low: 1e-5, high: 1.0, log: true}, adapter.r: {choices: [4, 8, 16]}}"
    cloned = said(folder, "tune", "clone", "wider", "--tune.space", wider)
    whole = [row for row in found["trials"][1:] if row["state"] == "finished"]
    assert cloned["taken"] == len(whole) > 0
    assert [row["value"] for row in said(folder, "tune", "status", "--study", "wider")["trials"] if row["origin"] == "cloned"] == [
        row["value"] for row in whole
    ]
    assert said(folder, "tune", "best", "--study", "none", code=2)["error"]["type"] == "NotFound"


@pytest.mark.slow
def test_a_study_in_postgresql_is_another_than_that_of_its_name_beside_it(study, database, tmp_path):
    finished, found = study
    folder, there = shutil.copytree(finished, tmp_path / "copy"), ["--tune.storage", database]
    ended = said(folder, "tune", *there, "--study", "far", "--tune.trials", "1", "--tune.seeds", "0", "--tune.rungs", "[1]")
    mine, own = ended["trials"][0], found["trials"][0]
    assert (ended["ended"], mine["params"], mine["value"], mine["tokens"]) == ("done", own["params"], own["value"], own["tokens"])
    assert said(folder, "tune", "status", *there, "--study", "far")["trials"] == ended["trials"]
    assert said(folder, "tune", "status", "--study", "far", code=2)["error"]["type"] == "NotFound"
    message = said(folder, "tune", "status", "--tune.storage", "postgresql+psycopg://me:hidden@127.0.0.1:1/none", code=1)["error"][
        "message"
    ]
    assert "hidden" not in message


# Verdicts


def test_the_level_is_corrected_for_what_was_tried_and_the_default_stays_unless_the_interval_is_clear():
    from tunesmith.core.stats import paired_difference

    a, b = [0.0, 1.0] * 50, [1.0, 1.0] * 50
    for higher, wanted in ((True, "trial"), (False, "default")):
        difference = paired_difference(a, b, level=verdict.level(20))
        decided = verdict.decide(4, difference, metric="m", higher=higher, tried=20, seeds=3)
        assert decided.recommended == wanted
    assert verdict.level(20) == pytest.approx(0.9975)
    assert verdict.decide(4, paired_difference(a, a, level=0.99), metric="m", higher=True, tried=5, seeds=3).recommended == "default"
    assert verdict.decide(4, None, metric="m", higher=True, tried=5, seeds=3).recommended == "default"
    assert verdict.unrepeated(3, 9).recommended == verdict.unbeaten(None, 0).recommended == "default"
    assert verdict.winner({3: 0.5, 2: 0.5, 9: 0.4}, higher=True) == 2


def test_the_noise_between_seeds_widens_the_interval_by_its_own_share():
    from tunesmith.core.stats import paired_difference

    plain = paired_difference([0.0, 1.0] * 50, [1.0, 1.0] * 50, level=verdict.level(20))
    assert verdict.with_seeds(plain, [0.5, 0.5, 0.5], [1.0, 1.0, 1.0]) == plain
    noisy = verdict.with_seeds(plain, [0.45, 0.5, 0.55], [0.95, 1.0, 1.05])
    half = 2.776445 * (2 * 0.05**2 / 3) ** 0.5  # the t of 4 degrees of freedom at 95 %
    assert plain.estimate - noisy.low == pytest.approx(((plain.estimate - plain.low) ** 2 + half**2) ** 0.5, rel=1e-5)
    assert noisy.high > plain.high


@pytest.mark.slow
def test_a_study_of_equal_plans_recommends_the_default_and_a_better_one_is_seen():
    """Fourteen of the studies that `make bench-tune` simulates, with luck in seeds and in rows."""
    from benchmarks.tune_noise import recommends

    assert sum(recommends(seed, 0.3, 1.0, 0.0) for seed in range(8)) == 0
    assert sum(recommends(seed, 0.0, 0.5, 0.3) for seed in range(6)) >= 5
