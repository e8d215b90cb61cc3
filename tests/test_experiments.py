"""Experiments on what a name answers with: who is drawn, what is counted and for whom, what may be said and when, and how they end."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections import Counter
from functools import partial

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa

from tunesmith.api.app import create_app, running
from tunesmith.api.reload import Reload
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.deployment import Deployment, Enrolment, Variant
from tunesmith.core.errors import UsageError
from tunesmith.core.experiment import Experiment, ExperimentPlan, Verdict, guardrail_of, metric_of
from tunesmith.core.stats.anytime import anytime_p_value, anytime_reach, mixture_precision, share_above, share_evidence
from tunesmith.core.stats.group_sequential import bounds, drift_for, power, spent
from tunesmith.deploy.experiment import SUMS, anytime, effect, look_due, paired, ratio_mismatch, summed
from tunesmith.deploy.looking import SeenArms, look
from tunesmith.deploy.router import Router
from tunesmith.deploy.strategy import AskedState, bucket, choose
from tunesmith.flow.experiments import look_at_experiments
from tunesmith.models.catalog import Catalog
from tunesmith.models.echo import EchoModel
from tunesmith.models.resolve import Models
from tunesmith.models.upstream import Upstream
from tunesmith.store.deployments import Deployments
from tunesmith.store.experiments import Assignment, Experiments
from tunesmith.store.shadows import ShadowAnswers
from tunesmith.store.store import Store
from tunesmith.store.tables import feedback, interactions, quality_scores

openai = pytest.importorskip("openai")
RATE = metric_of("outcome:solved")


# --- intervals and bounds ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spending", "published"),  # Lan and DeMets, two-sided .05, five looks
    [
        ("obrien_fleming", [4.8769, 3.3570, 2.6803, 2.2898, 2.0310]),
        ("pocock", [2.438, 2.4268, 2.4102, 2.3966, 2.386]),
        ("quadratic", [3.0902, 2.7141, 2.4727, 2.2798, 2.1140]),
    ],
)
def test_bounds_are_the_published_ones_and_spend_what_they_may(spending, published):
    times = [0.2, 0.4, 0.6, 0.8, 1.0]
    assert bounds(times, 0.05, spending) == pytest.approx(published, abs=2e-4)
    assert power(0.0, times, 0.05, spending) == pytest.approx(0.05, abs=2e-4)
    assert spent(1.0, 0.05, spending) == pytest.approx(0.05)
    needed = drift_for(0.8, 5, 0.05, spending)
    assert power(needed, times, 0.05, spending) == pytest.approx(0.8, abs=1e-3)
    assert needed > 2.8016


def test_looks_with_more_in_common_need_lower_bounds():
    times = (0.5, 0.75)
    usual, alike = bounds(times), bounds(times, information=(0.5, 0.51))
    assert usual[0] == alike[0]
    assert alike[1] < usual[1]


def test_the_mixture_is_the_published_one():
    assert 10 * float(anytime_reach(100, mixture_precision(100))) == pytest.approx(30.35209, abs=2e-3)
    sums, n, m = (1396.87, 52377.9767), 3000, 3461  # GrowthBook's published case, of a relative difference
    other = (2422.7, 134698.29)
    (a, va), (b, vb) = (((s[0] / k), (s[1] - s[0] ** 2 / k) / (k - 1)) for s, k in ((sums, n), (other, m)))
    half = float(anytime_reach(n + m, mixture_precision(1000))) * math.sqrt(vb / m / a**2 + b**2 * va / n / a**4)
    assert (b / a - 1 - half, b / a - 1 + half) == pytest.approx((-0.55844, 1.56516), abs=3e-3)
    reach = float(anytime_reach(50.0, 7.0, 0.03))
    assert float(anytime_p_value(reach, 50.0, 7.0)) == pytest.approx(0.03)


def test_evidence_on_shares_pays_nothing_on_average_where_there_is_nothing():
    n, null = 12, 0.3
    k = np.arange(n + 1)
    chance = np.array([math.comb(n, int(i)) for i in k]) * null**k * (1 - null) ** (n - k)
    assert float(chance @ np.exp(share_evidence(k, n, null))) == pytest.approx(1.0)
    assert float(chance @ np.exp(share_above(k, n, null))) == pytest.approx(1.0)
    lower = np.array([math.comb(n, int(i)) for i in k]) * 0.2**k * 0.8 ** (n - k)
    assert float(lower @ np.exp(share_above(k, n, null))) < 1.0


def test_an_effect_is_that_of_the_mean_over_requests_with_users_as_units():
    rng = np.random.default_rng(4)
    arms = []
    for shift in (0.0, 0.3):
        m = rng.integers(1, 5, 80)
        user = rng.normal(size=80)
        x = [rng.normal(size=many) + own for many, own in zip(m, user, strict=True)]
        y = [own_x * 0.8 + rng.normal(size=many) * 0.2 + shift for own_x, many in zip(x, m, strict=True)]
        arms.append((m, np.array([each.sum() for each in y]), np.array([each.sum() for each in x])))
    seen = effect(summed(*arms[0]), summed(*arms[1]))
    means = [arm[1].sum() / arm[0].sum() for arm in arms]
    errors = [(arm[1] - mean * arm[0]) * 80 / arm[0].sum() for arm, mean in zip(arms, means, strict=True)]
    assert float(seen.estimate) == pytest.approx(means[1] - means[0])
    assert float(seen.se) == pytest.approx(math.sqrt(sum(np.var(e, ddof=1) / 80 for e in errors)))
    adjusted = effect(summed(*arms[0]), summed(*arms[1]), adjusted=True)
    assert float(adjusted.left) < 0.2
    assert abs(float(adjusted.estimate) - 0.3) < 4 * float(adjusted.se)
    few = effect(summed(*(part[:9] for part in arms[0])), summed(*arms[1]))
    assert np.isnan(few.estimate)
    assert anytime(seen, 0.05)[0] < float(seen.estimate) - 1.96 * float(seen.se)


def test_labels_correct_a_judge_of_pairs():
    rng = np.random.default_rng(7)
    truth = rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.8, 0.15], size=20_000)
    judged = np.where(rng.random(20_000) < 0.2, 1.0, truth)  # a judge that favours the copy
    labelled, others = summed(np.ones(2000), truth[:2000], judged[:2000]), summed(np.ones(18_000), np.zeros(18_000), judged[2000:])
    seen, alone = paired(labelled, others), paired(labelled, np.zeros(len(SUMS)))
    assert abs(float(seen.estimate) - 0.1) < 4 * float(seen.se) < 4 * float(alone.se)
    assert judged.mean() > 0.25


# --- what may be said --------------------------------------------------------------------------------------------------------------------


def plan_of(*metrics, **more) -> ExperimentPlan:
    return ExperimentPlan(control="a", treatment="b", metrics=metrics or (RATE,), **more)


def rates(n, a, b, *, treated=0.5) -> SeenArms:
    """Arms of n users together, of whom the shares `a` and `b` have a 1."""
    sizes = round(n * (1 - treated)), round(n * treated)
    control, treatment = (summed(np.ones(size), np.arange(size) < size * rate) for size, rate in zip(sizes, (a, b), strict=True))
    return SeenArms(control=tuple(control), treatment=tuple(treatment), unit_scale=True)


def looked(plan, units, seen, said=()):
    return look("exp_1", plan, units, seen, said, 1000.0)


def test_no_winner_is_shown_under_a_sample_ratio_mismatch_nor_after_it():
    plan, seen = plan_of(), {"outcome:solved": rates(4000, 0.1, 0.5)}
    sound = looked(plan, (2000, 2000), seen)
    assert [each.verdict for each in sound.metrics] == ["better"]
    broken = looked(plan, (2000, 1700), seen)
    assert (broken.whole, broken.fault, broken.metrics) == (False, "sample ratio", ())
    assert [(each.metric, each.verdict) for each in broken.fresh] == [("sample ratio", "mismatch")]
    after = looked(plan, (2000, 2000), seen, broken.fresh)
    assert (after.whole, after.fresh) == (False, ()), "once found it is not forgotten"
    assert looked(plan_of(treated=0.1), (3600, 400), seen).whole


def test_metrics_share_the_error_and_what_was_said_stays():
    metrics = (RATE, metric_of("score:kind"), metric_of("latency"))
    strong, weak = rates(4000, 0.1, 0.2), rates(4000, 0.1, 0.134)
    alone = looked(plan_of(RATE), (2000, 2000), {"outcome:solved": weak})
    assert [each.verdict for each in alone.metrics] == ["better"]
    nothing = rates(4000, 0.1, 0.1)
    names = [metric.name for metric in metrics]
    first = looked(plan_of(*metrics), (2000, 2000), dict(zip(names, (strong, weak, nothing), strict=True)))
    assert [(each.metric, each.verdict, round(each.level, 4)) for each in first.metrics] == [
        ("outcome:solved", "better", 0.9833),
        ("score:kind", "better", 0.975),
        ("latency", "cannot tell yet", 0.95),
    ]
    assert [each.metric for each in first.fresh] == names[:2]
    later = looked(plan_of(*metrics), (2000, 2000), dict(zip(names, (nothing, nothing, strong), strict=True)), first.fresh)
    assert [(each.verdict, each.since) for each in later.metrics] == [("better", 1000.0), ("better", 1000.0), ("worse", None)]
    assert [each.metric for each in later.fresh] == ["latency"]
    turned = looked(plan_of(RATE), (2000, 2000), {"outcome:solved": rates(4000, 0.2, 0.1)}, first.fresh[:1])
    assert [(each.metric, each.verdict) for each in turned.fresh] == [("outcome:solved", "worse")], "said beside it, not in silence"


def test_a_horizon_is_looked_at_by_bounds_that_spend_the_error():
    plan, said, words = plan_of(RATE, horizon=2000, margin=0.05), [], []
    for units in (60, 200, 240, 800, 830, 1400, 2000, 2200):
        seen = looked(plan, (units // 2, units // 2), {"outcome:solved": rates(units, 0.4, 0.41)}, tuple(said))
        said += seen.fresh
        words.append((units, seen.metrics[0].verdict if seen.metrics else "", seen.metrics[0].time if seen.metrics else None))
    assert [(units, time) for units, _, time in words if time] == [(200, 0.1), (800, 0.4), (1400, 0.7), (2000, 1.0)]
    assert [verdict.look["time"] for verdict in said] == [0.1, 0.4, 0.7, 1.0]
    assert {word for _, word, _ in words} == {"cannot tell yet"}
    assert look_due(100, 2000, []) == 0.05
    equal = looked(plan_of(RATE, horizon=8000, margin=0.05), (4000, 4000), {"outcome:solved": rates(8000, 0.4, 0.41)})
    assert equal.metrics[0].verdict == "equivalent"
    assert (equal.metrics[0].high - equal.metrics[0].low) < (equal.metrics[0].always_high - equal.metrics[0].always_low)


def test_guardrails_are_exact_for_rare_events_and_against_what_is_tolerated():
    guards = (guardrail_of("errors=1.5"), guardrail_of("latency=1.2"))
    plan = plan_of(guardrails=guards)
    few, many = rates(2000, 0.002, 0.004), rates(2000, 0.002, 0.03)
    slow = [summed(np.ones(1000), np.linspace(0.5, 1.5, 1000) * pace) for pace in (1.0, 1.5)]
    seen = {"errors": few, "latency": SeenArms(control=tuple(slow[0]), treatment=tuple(slow[0])), "outcome:solved": rates(2000, 0.1, 0.1)}
    calm = looked(plan, (1000, 1000), seen)
    assert {each.metric: each.verdict for each in calm.metrics[1:]} == {
        "guardrail errors": "cannot tell yet",
        "guardrail latency": "no harm",
    }
    seen |= {"errors": many, "latency": SeenArms(control=tuple(slow[0]), treatment=tuple(slow[1]))}
    harmed = looked(plan, (1000, 1000), seen, calm.fresh)
    assert {each.metric: each.verdict for each in harmed.metrics[1:]} == {"guardrail errors": "harm", "guardrail latency": "harm"}
    exact = next(each for each in harmed.metrics if each.metric == "guardrail errors")
    assert exact.low > 1.5 > 1 > looked(plan_of(metric_of("errors")), (1000, 1000), {"errors": few}).metrics[0].low


def test_a_covariate_that_the_treatment_moves_is_no_covariate():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 2000))
    arms = [tuple(summed(np.ones(2000), each + rng.normal(size=2000), each + moved)) for each, moved in zip(x, (0.0, 0.5), strict=True)]
    seen = looked(plan_of(covariate="prompt_tokens"), (2000, 2000), {"outcome:solved": SeenArms(control=arms[0], treatment=arms[1])})
    assert (seen.whole, seen.fault) == (False, "covariate")


# --- who is drawn ------------------------------------------------------------------------------------------------------------------------


def drawn(experiment="exp_1", layer="l", low=0.0, high=1.0) -> Deployment:
    variants = tuple(Variant(name=name, upstream=name, weight=0.5) for name in "ab")
    enrolment = Enrolment(experiment=experiment, layer=layer, low=low, high=high)
    return Deployment(alias="bot", version=3, strategy="split", variants=variants, enrolment=enrolment)


def test_layers_keep_experiments_apart_and_each_draws_anew():
    keys = [f"user-{i}" for i in range(3000)]
    first, second = drawn("exp_1", high=0.4), drawn("exp_2", low=0.4)
    ones, twos = ({key: choice for key in keys if (choice := choose(key, made, AskedState())).experiment} for made in (first, second))
    assert not ones.keys() & twos.keys()
    assert len(ones) + len(twos) == len(keys)
    assert abs(len(ones) / len(keys) - 0.4) < 0.04
    assert {(choice.variant.name, choice.propensity) for choice in ones.values()} == {("a", 0.5), ("b", 0.5)}
    outside = next(key for key in keys if key not in ones)
    assert (choose(outside, first, AskedState()).variant.name, choose(outside, first, AskedState()).experiment) == ("a", None)
    again = {key: choose(key, drawn("exp_3"), AskedState()).variant.name for key in ones}
    both = Counter((choice.variant.name, again[key]) for key, choice in ones.items())
    assert all(abs(count / len(ones) - 0.25) < 0.06 for count in both.values()), "what one drew says nothing about the next"


def test_what_began_before_the_experiment_stays_and_is_not_counted():
    made = drawn()
    before = choose("talk", made, AskedState("b", 1.0, None))
    assert (before.variant.name, before.propensity, before.experiment) == ("b", 1.0, None)
    held = choose("another key", made, AskedState("b", 0.5, "exp_1"))
    assert (held.variant.name, held.experiment, [each.name for each in held.instead]) == ("b", "exp_1", ["a"])


def test_the_baseline_answers_copies_where_its_score_is_the_covariate():
    made = msgspec.structs.replace(drawn(), enrolment=Enrolment(experiment="exp_1", layer="l", baseline=True))
    choices = [choose(f"user-{i}", made, AskedState()) for i in range(20)]
    assert {(choice.variant.name, *(each.name for each in choice.copies)) for choice in choices} == {("a", "a"), ("b", "a")}


# --- served ------------------------------------------------------------------------------------------------------------------------------


class Broken(EchoModel):
    """Cannot answer."""

    def answer(self, prompts, sampling, on_answer=None):
        raise ZeroDivisionError("a secret")


class Place:
    """A store, upstreams that are real servers, and a server over it."""

    def __init__(self, folder, url):
        self.folder, self.store = folder, Store.open(folder / ".tunesmith")
        self.upstreams = {name: Upstream(name, base_url=url) for name in ("a", "b", "broken")}

    @contextlib.contextmanager
    def server(self):
        store = Store.open(self.folder / ".tunesmith")
        models, router = Models(store, Catalog(), home=self.folder), Router()
        reload = Reload(router, models, self.upstreams)
        reload.start()
        with running(create_app(router, store=store, models=models, reload=reload)) as url:
            yield openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        store.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments")
    (folder / "rows.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi"}]})
    )
    behind = {"a": EchoModel("a", prefix="A"), "b": EchoModel("b", prefix="B"), "broken": Broken("broken")}
    with running(create_app(behind)) as url:
        lines = "".join(f'    {name}: {{base_url: "{url}", model: {name}}}\n' for name in behind)
        project = f"name: bot\nsources: [{{path: rows.jsonl}}]\nbase: smollm2-135m\nserve:\n  upstreams:\n{lines}"
        (folder / "tunesmith.yaml").write_text(project)
        made = Place(folder, url)
        yield made
        made.store.close()


@pytest.fixture
def call(place, monkeypatch, capsys):
    monkeypatch.chdir(place.folder)

    def made(*words, plain=False):
        code = guarded(app, [*words] if plain else [*words, "--json"])
        told = capsys.readouterr()
        return code, told.out if plain else json.loads(told.out.splitlines()[-1]), told.err

    return made


def until(look, count):
    """What is seen once there is so much of it: copies are written after the answer."""
    end = time.monotonic() + 60
    while len(rows := look()) < count:
        assert time.monotonic() < end, rows
        time.sleep(0.01)
    return rows


def rows_of(store, experiment):
    with store.reading() as connection:
        return list(connection.execute(sa.select(interactions).where(interactions.c.experiment == experiment)).mappings())


@pytest.mark.slow
def test_an_experiment_from_begin_to_end_while_clients_go_on(place, call):
    call("deploy", "shop", "a", "--reason", "first")
    with place.server() as client:
        talk = {"extra_headers": {"x-conversation-id": "old talk"}}

        def ask(user=None, *, stream=False, **more):
            named = {"user": user} if user else {}
            made = client.chat.completions.create(
                model="shop", messages=[{"role": "user", "content": "hi"}], stream=stream, **named, **more
            )
            if stream:
                chunks = list(made)
                words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
                return words, (chunks[0].model, chunks[0].system_fingerprint, len(chunks[0].id))
            return made.choices[0].message.content, (made.model, made.system_fingerprint, len(made.id))

        assert ask(**talk)[0] == "Ahi"
        code, began, _ = call(
            "ab", "start", "shop", "a", "b", "--metric", "tokens,higher", "--metric", "outcome:solved,missing=0", "--by", "anna",
            "--covariate", "judged:length@a",
        )  # fmt: skip
        assert (code, began["deployment"]["strategy"]) == (0, "split")
        number = began["experiment"]["id"]
        seen = {user: ask(user, stream=i % 2 == 0) for i, user in enumerate(map(str, range(16)))}
        assert {words for words, _ in seen.values()} == {"Ahi", "Bhi"}
        assert len({shown for _, shown in seen.values()}) == 1, "clients cannot see their arm"
        assert ask(**talk)[0] == "Ahi"
        head = client.chat.completions.with_raw_response.create(
            model="shop", messages=[{"role": "user", "content": "hi"}], user="0"
        ).headers
        assert not [name for name, value in head.items() if "exp" in f"{name}{value}".lower() and name != "access-control-expose-headers"]
        rows = rows_of(place.store, number)
        assert {row["user_key"] for row in rows} == set(seen), "what began before is not counted"
        assert all(row["answer"] == seen[row["user_key"]][0] and row["propensity"] == 0.5 for row in rows)
        late = [row["id"] for row in rows if row["variant"] == "b"]
        with place.store.writing() as connection:
            said = [
                {"id": f"fb-{i}", "interaction": each, "created": 1.0, "kind": "outcome", "name": "solved", "number": 1.0, "by": "x"}
                for i, each in enumerate(late)
            ]
            connection.execute(sa.insert(feedback), said)
        until(lambda: ShadowAnswers(place.store).of("shop"), 17)
        assert {copy.answer for copy in ShadowAnswers(place.store).of("shop")} == {"Ahi"}, "the control, whoever was drawn"
        assert call("ab", "score", "shop", "--metric", "length")[1]["fresh"] == 17
        _, report, _ = call("ab", "status", "shop")
        assert sum(report["seen"]["units"]) == 16
        assert sum(report["requests"]) == 17
        assert report["given"]["outcome:solved"] == [0.0, 1.0]
        code, words, _ = call("ab", "status", "shop", "--slice", "endpoint", plain=True)
        assert code == 0
        assert "too few, or too much alike" in words
        for wrong, expected in {
            ("ab", "start", "shop", "a", "b", "--metric", "errors"): f"under the experiment {number}",
            ("deploy", "shop", "broken", "--canary", "0.1"): "is under the experiment",
            ("ab", "stop", "shop"): "--promote ARM, or --keep",
            ("ab", "stop", "shop", "--promote", "c"): "a, b",
        }.items():
            code, _, told = call(*wrong)
            assert (code, expected in told) == (2, True), told
        call("ab", "stop", "shop", "--promote", "b", "--reason", "more words")
        assert {ask(user)[0] for user in seen} == {"Bhi"}
    history = call("deploy", "history", "shop")[1]["versions"]
    assert history[0]["reason"] == f"more words (experiment {number})"
    assert history[1]["by"] == "anna"
    _, report, _ = call("ab", "status", "shop")
    assert report["experiment"]["outcome"].startswith("promoted 'b': more words")
    assert call("ab", "list")[1]["experiments"][0]["id"] == number


@pytest.mark.slow
def test_a_failing_arm_is_answered_by_the_other_on_its_own_account(place, call):
    call("deploy", "frail", "a")
    _, began, _ = call("ab", "start", "frail", "a", "broken", "--metric", "errors", "--guardrail", "fallbacks=1.5")
    places = {f"u{i}": bucket(began["experiment"]["id"], f"u{i}") for i in range(200)}
    with place.server() as client:
        for user in [user for user, at in places.items() if at >= 0.5][:16] + [user for user, at in places.items() if at < 0.5][:8]:
            made = client.chat.completions.create(model="frail", messages=[{"role": "user", "content": "hi"}], user=user)
            assert made.choices[0].message.content == "Ahi"
    rows = rows_of(place.store, began["experiment"]["id"])
    assert {(row["variant"], row["fallback"]) for row in rows} == {("a", None), ("broken", "a")}
    number = began["experiment"]["id"]
    assert look_at_experiments(place.store) == [f"{number} on 'frail': errors: worse", f"{number} on 'frail': guardrail fallbacks: harm"]
    assert look_at_experiments(place.store) == [], "what was said is not said again"
    _, report, _ = call("ab", "status", "frail")
    json.dumps(report, allow_nan=False)  # PostgreSQL and other readers know no infinity
    shown = {each["metric"]: each["verdict"] for each in report["seen"]["metrics"]}
    assert shown == {"errors": "worse", "guardrail fallbacks": "harm"}
    assert [(each["metric"], each["verdict"]) for each in report["said"]] == [("errors", "worse"), ("guardrail fallbacks", "harm")]
    call("deploy", "promote", "frail", "a")
    words = call("ab", "status", "frail", plain=True)[1]
    assert re.search(r"errors +worse +0 → 1: ∞ \(95 %: [\d.]+ to ∞; exact", words)
    assert "has taken its place" in words
    _, ended, _ = call("ab", "stop", "frail", "--keep")
    assert "replaced by version" in ended["experiment"]["outcome"]
    assert ended["deployment"] is None


@pytest.mark.slow
def test_pairs_are_scored_answers_of_the_same_request(place, call):
    call("deploy", "twin", "a")
    _, began, _ = call("ab", "start", "twin", "a", "b", "--design", "pairs", "--metric", "score:good", "--by", "eva")
    assert began["deployment"]["strategy"] == "shadow"
    with place.server() as client:
        for i in range(40):
            client.chat.completions.create(model="twin", messages=[{"role": "user", "content": f"say {i} [[B]]"}])
        until(lambda: ShadowAnswers(place.store).of("twin"), 40)
    rows = rows_of(place.store, began["experiment"]["id"])
    assert {row["variant"] for row in rows} == {"a"}
    said = [
        {"id": f"{row['id']}{name}", "interaction": row["id"], "created": 1.0, "kind": "score", "name": name, "number": value, "by": "x"}
        for i, row in enumerate(rows) for name, value in (("good", 0.0), ("good@b", float(i % 4 > 0)))
    ]  # fmt: skip
    with place.store.writing() as connection:
        connection.execute(sa.insert(feedback), said)
    _, report, told = call("ab", "status", "twin")
    assert "seen" in report, told
    (shown,) = report["seen"]["metrics"]
    assert (shown["verdict"], shown["estimate"], shown["units"]) == ("better", 0.75, 40)
    assert call("ab", "score", "twin", "--judge", "twin:a", "--most", "10")[1] == {
        "name": "judge", "variant": "b", "fresh": 10, "missing": 0, "left": 30,
    }  # fmt: skip
    assert call("ab", "score", "twin", "--judge", "twin:a")[1]["fresh"] == 30
    assert call("ab", "score", "twin", "--judge", "twin:a")[1]["fresh"] == 0, "each once"
    with place.store.reading() as connection:
        kept = connection.execute(sa.select(quality_scores.c.value).where(quality_scores.c.alias == "twin")).scalars().all()
    assert kept == [0.5] * 80, "a judge that likes whoever comes second says nothing, asked in both orders"
    for wrong, expected in {
        ("ab", "score", "twin"): "neither a judge",
        ("ab", "score", "twin", "--metric", "vaild_json"): "no metric",
    }.items():
        code, _, told = call(*wrong)
        assert (code, expected in told) == (2, True), told
    assert call("ab", "stop", "twin", "--promote", "b")[1]["deployment"]["variants"][0]["name"] == "b"


@pytest.mark.slow
def test_the_design_is_named_that_decides_in_time(place, call):
    now, rng = time.time(), np.random.default_rng(1)
    base = {
        "alias": "plans",
        "variant": "a",
        "status": 200,
        "finish_reason": "stop",
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "deployment": 1,
    }
    base |= {"first_token_s": 0.1, "total_s": 0.2, "messages": "[]", "answer": "x", "tool_calls": "[]", "error": ""}
    rows = [{**base, "id": f"plan{i}", "created": now - i / 50 * 86_400} for i in range(500)]  # 50 a day, for ten days
    said = [
        {
            "id": f"pf{i}",
            "interaction": f"plan{i}",
            "created": 1.0,
            "kind": "score",
            "name": "good",
            "by": "x",
            "number": float(rng.random() < 0.7),
        }
        for i in range(500)
    ]
    with place.store.writing() as connection:
        connection.execute(sa.insert(interactions), rows)
        connection.execute(sa.insert(feedback), said)
    asked = ("ab", "plan", "plans", "--metric", "score:good", "--effect")
    named = {days: call(*asked, "0.1", "--days", days)[1]["named"] for days in ("1", "6", "13", "20")}
    assert [option and option["design"] for option in named.values()] == [
        None, "pairs", "users drawn, the baseline's score as covariate", "users drawn",
    ]  # fmt: skip
    _, seen, _ = call(*asked, "0.1", "--days", "20")
    assert seen["traffic"]["units"] == pytest.approx(50, rel=0.02)
    usual = 4 * 0.7 * 0.3 * (1.96 + 0.84) ** 2 / 0.1**2  # users of both arms of a fixed test
    assert usual < seen["options"][0]["units"] < 1.15 * usual
    code, words, _ = call(*asked, "0.01", plain=True)
    assert (code, "None decides 0.01 in 14 days" in words) == (0, True)
    _, assumed, _ = call(
        "ab", "plan", "plans", "--metric", "outcome:x", "--effect", "0.1", "--per-day", "50", "--mean", "0.7", "--days", "5"
    )
    assert (assumed["named"], assumed["options"][2]["possible"]) == (None, False)
    code, _, told = call("ab", "plan", "plans", "--metric", "outcome:x", "--effect", "0.1")
    assert (code, "--per-day and --mean" in told) == (2, True)


@pytest.mark.slow
def test_what_cannot_be_begun_is_one_error(place, call):
    call("deploy", "pair", "a")
    call("deploy", "other", "a")
    start = ("ab", "start", "pair", "a", "b", "--metric")
    for words, expected in {
        (*start, "latncy"): "did you mean 'latency'",
        (*start, "quality"): "of which metric",
        (*start, "latency,missing=0"): "known of every request",
        (*start, "score:x,missing=nan"): "no number",
        (*start, "score:x,best"): "NAME[,lower|higher]",
        (*start, "errors", "--guardrail", "latency=0.5"): "1 or more",
        (*start, "errors", "--covariate", "mood"): "earlier, prompt_tokens",
        (*start, "errors", "--horizon", "3"): "20 users",
        (*start, "errors", "--treated", "1"): "0.01 to 0.99",
        (*start, "errors", "--enrol", "0"): "0.001 to 1",
        (*start, "errors", "--metric", "errors"): "distinct",
        (*start, "thumbs", "--design", "pairs"): "nobody sees it",
        (*start, "errors", "--design", "both"): "split, pairs",
        (*start, "errors", "--judge", "score:j"): "--design pairs",
        ("ab", "start", "pair", "a", "a", "--metric", "errors"): "answer alike",
        ("ab", "start", "nowhere", "a", "b", "--metric", "errors"): "nothing is deployed",
        ("ab", "status", "pair"): "has had no experiment",
    }.items():
        code, _, told = call(*words)
        assert (code, expected in told) == (2, True), f"{words}: {told}"
    assert call("ab", "start", "pair", "a", "b", "--metric", "errors", "--layer", "home", "--enrol", "0.6")[0] == 0
    code, _, told = call("ab", "start", "other", "a", "b", "--metric", "errors", "--layer", "home", "--enrol", "0.5")
    assert (code, "no free part of 0.5: 'pair' 0 to 0.6" in told) == (2, True)
    _, second, _ = call("ab", "start", "other", "a", "b", "--metric", "errors", "--layer", "home", "--enrol", "0.4")
    assert (second["experiment"]["low"], second["experiment"]["high"]) == (0.6, 1.0)
    for alias in ("pair", "other"):
        call("ab", "stop", alias, "--keep")
    assert len(Deployments(place.store).history("pair")) == 3


# --- the sums of the store ---------------------------------------------------------------------------------------------------------------


def check_sums(store):
    """Feedback twice of most requests, users with an earlier mean and without one, pairs of which some have a person's rating."""
    plan = plan_of(RATE, covariate="earlier")
    made = Experiments(store).open("bot", plan, layer="l", share=1.0, reason="", by="")
    base = {"created": made.created + 1, "alias": "bot", "status": 200, "finish_reason": "stop", "prompt_tokens": 5, "completion_tokens": 3}
    base |= {"first_token_s": 0.1, "total_s": 0.2, "messages": "[]", "answer": "x", "tool_calls": "[]", "error": "", "experiment": made.id}
    rng = np.random.default_rng(0)
    rows, said, users = [], [], {}
    for i in range(60):
        user, arm = f"u{i % 20}", "ab"[i % 20 % 2]
        early = i < 20
        rows.append({**base, "id": f"r{i}", "user_key": user, "variant": arm, "experiment": None if early else made.id})
        rows[-1]["created"] = made.created + (-1 if early else 1)
        value = float(rng.integers(0, 2))
        if i % 7:
            said += [{"id": f"w{i}{j}", "interaction": f"r{i}", "created": 1.0, "kind": "outcome", "name": "solved", "by": "", "number": n}
                     for j, n in enumerate((1 - value, value))]  # fmt: skip
            users.setdefault((user, arm), {}).setdefault("early" if early else "values", []).append(value)
    with store.writing() as connection:
        connection.execute(sa.insert(interactions), rows)
        connection.execute(sa.insert(feedback), said)
    sums = {each.variant: each for each in Experiments(store).sums(made, [RATE])}
    rows_of_it = [each["early"][0] for each in users.values() if "early" in each for _ in range(2)]
    middle = np.mean(rows_of_it)
    for arm in "ab":
        of_arm = [each for (_, name), each in users.items() if name == arm and "values" in each]
        m, y = [len(each["values"]) for each in of_arm], [sum(each["values"]) for each in of_arm]
        x = [each.get("early", [middle])[0] * len(each["values"]) for each in of_arm]
        assert sums[arm].values == pytest.approx(tuple(summed(m, y, x)))
        assert sums[arm].unit_scale
    assert Experiments(store).units(made.id) == {"a": (10, 20), "b": (10, 20)}
    assert Experiments(store).mixed(made.id) == 0
    with store.writing() as connection:
        base = {"instrument": "i", "alias": "bot", "metric": "exact", "answered": 1.0, "scored": 1.0, "golden": False}
        connection.execute(sa.insert(quality_scores), [{**base, "interaction": f"r{i}", "value": 0.25 * (i % 2)} for i in range(30, 40)])
    scored = {each.variant: each.values[:3] for each in Experiments(store).sums(made, [metric_of("quality:exact")])}
    assert scored == {"a": (5.0, 5.0, 0.0), "b": (5.0, 5.0, 1.25)}
    parts = {(each.variant, each.slice): each for each in Experiments(store).sums(made, [metric_of("errors"), RATE], by="prompt")}
    assert {name for _, name in parts} == {"< 200 tokens"}
    assert Experiments(store).traffic("bot", RATE, 0.0) == (None, None), "nothing of it was deployed"


def test_sums_are_added_up_as_they_are_told(tmp_path):
    store = Store.open(tmp_path)
    check_sums(store)
    store.close()


def test_units_do_not_fall_as_drawn_is_found_without_crying_wolf():
    n = np.arange(100, 7300, 100)
    assert float(ratio_mismatch(n * 0.52, n * 0.48, 0.5)[-1]) > math.log(100) * 0.8
    assert (ratio_mismatch(n * 0.5, n * 0.5, 0.5) < 0).all()


def test_an_experiment_and_what_draws_its_users_come_together_or_not_at_all(tmp_path):
    store = Store.open(tmp_path)
    before = Deployments(store).put("bot", [Variant(name="a", upstream="x")])
    arms = (Variant(name="a", upstream="x", weight=0.5), Variant(name="b", upstream="y", weight=0.5))
    for after in (before.version + 1, before.version):
        assigning = Assignment(arms, "split", "experiment {id}", after, {})
        begun = partial(Experiments(store).open, "bot", plan_of(), layer="l", share=0.5, reason="", by="", assigning=assigning)
        if after != before.version:
            with pytest.raises(UsageError, match="by now"):
                begun()
            assert Experiments(store).of("bot") == [], "the name is free"
    made, version = begun(), Deployments(store).in_force()["bot"]
    assert (made.deployment, version.reason) == (version.version, f"experiment {made.id}")
    assert version.enrolment.experiment == made.id
    store.close()


def test_a_verdict_is_a_row_of_its_own(tmp_path):
    store = Store.open(tmp_path)
    experiments = Experiments(store)
    made = experiments.open("bot", plan_of(), layer="l", share=0.5, reason="why", by="who")
    assert isinstance(made, Experiment)
    words = [("better", None), ("worse", None), ("cannot tell yet", 0.1), ("better", 0.2)]
    said = [
        Verdict(experiment=made.id, created=1.0, metric="m", verdict=word, look={"time": at} if at else {"low": 0.1}) for word, at in words
    ]
    for verdict in said:
        for _ in range(2):  # two people look at the same moment
            experiments.add(made.id, [verdict])
    assert experiments.said(made.id) == said
    experiments.add(made.id, [Verdict(experiment=made.id, created=2.0, metric="m", verdict="worse", look={"time": 0.15})])
    assert experiments.said(made.id) == said, "a look that is behind one that was counted"
    store.close()
