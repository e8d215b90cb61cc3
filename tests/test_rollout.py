"""Rollouts: the bets behind them, what is decided from counts, and canaries that grow, end and are taken back over a real store and servers."""

from __future__ import annotations

import itertools
import time
from math import comb, exp, log

import numpy as np
import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from test_variants import ask, call, place  # noqa: F401 - fixtures
from tunesmith.core.deployment import Enrolment, Variant
from tunesmith.core.errors import ConfigError
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.rollout import AnswerForm, RolloutPlan
from tunesmith.core.stats.excess import Stakes, _growth, excess_evidence
from tunesmith.core.types import Feedback
from tunesmith.deploy.answer_form import learned_form, malformed
from tunesmith.deploy.rollout import Block, advanced, begun, decide
from tunesmith.flow.rollouts import correlation, look, look_at_all, status
from tunesmith.store.feedback import FeedbackLog
from tunesmith.store.quality import KeptScore, QualityScores
from tunesmith.store.rollouts import Rollouts, Spread
from tunesmith.store.runs import Runs
from tunesmith.store.tables import interactions

# --- the bets ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.0, 0.01, 0.2, -0.01, -0.1])
def test_no_block_pays_on_average_where_the_claim_is_true(margin):
    """Over all outcomes of a block, exactly: rates on the claim's edge, guesses right or wrong."""
    for (n, m), guess in itertools.product(((1, 20), (2, 5), (4, 4)), (0.02, 0.3, 0.9)):
        outcomes = [(n, a, m, b) for a in range(n + 1) for b in range(m + 1)]
        paid = np.exp(_growth(np.array(outcomes, float), np.full(len(outcomes), guess), margin))
        for second in np.linspace(0.1, 0.8, 15):
            first = second + margin
            odds = [
                comb(n, a) * first**a * (1 - first) ** (n - a) * comb(m, b) * second**b * (1 - second) ** (m - b) for _, a, _, b in outcomes
            ]
            assert (np.array(odds) @ paid).max() <= 1 + 1e-9


def test_evidence_is_the_same_in_one_piece_and_in_many():
    rng = np.random.default_rng(2)
    blocks = np.stack([np.full(30, 4), rng.binomial(4, 0.2, 30), np.full(30, 40), rng.binomial(40, 0.05, 30)], axis=1)
    added = np.r_[0.5, np.full(29, 0.5 / 29)]
    whole, ended = excess_evidence(blocks, 0.01, Stakes(), added)
    stakes, pieces = Stakes(), []
    for start in range(0, 30, 7):
        part, stakes = excess_evidence(blocks[start : start + 7], 0.01, stakes, added[start : start + 7])
        pieces += list(part)
    assert pieces == pytest.approx(list(whole))
    assert stakes.logs == pytest.approx(ended.logs)
    assert stakes.log_evidence > log(100)


# --- decided from counts -----------------------------------------------------------------------------------------------------------------

PLAN = RolloutPlan(steps=(0.05, 0.25, 1.0), step_s=60, step_requests=20)


def seen(plan, blocks, *, step=0, state=None):
    """The state after blocks of five seconds, of each guardrail (canary's n, bad; others' m, worse)."""
    state = state or begun(plan, 0.0, {"errors": (200, 4)})
    made = [Block(ended=state.cut + 5 * (i + 1), requests=int(next(iter(b.values()))[0]), counts=b) for i, b in enumerate(blocks)]
    return advanced(plan, state, made, step, state.cut + 5 * len(made))


def fine(n=4, m=76):
    return {"errors": (n, 0, m, 1), "latency_p95": (n, 0, m, 4), "malformed": (n, 0, m, 1)}


def test_no_traffic_holds_and_one_side_alone_waits_for_the_other():
    state = seen(PLAN, [])
    assert decide(PLAN, state, 0, 0.0, 1e9).action == "hold"
    alone = seen(PLAN, [{**fine(), "errors": (5, 5, 0, 0)}] * 50)
    decision = decide(PLAN, alone, 0, 0.0, 1e9)
    assert decision.action == "hold"
    assert alone.guardrails["errors"].carried == (250, 250, 0, 0)


def test_a_step_needs_time_requests_and_evidence_by_every_guardrail():
    enough = seen(PLAN, [fine()] * 40)
    assert decide(PLAN, enough, 0, 0.0, 30.0).missing == ("30 s of the step's 60 s",)
    assert decide(PLAN, enough, 0, 0.0, 60.0).action == "advance"
    few = seen(PLAN, [fine()] * 4)
    missing = decide(PLAN, few, 0, 0.0, 60.0).missing
    assert missing[0] == "4 of the step's 20 requests"
    assert any("'errors'" in line for line in missing)
    unread = seen(PLAN, [{**fine(), "malformed": (0, 0, 0, 0)}] * 40)
    assert ["'malformed'" in line for line in decide(PLAN, unread, 0, 0.0, 60.0).missing] == [True]
    long = seen(PLAN, [fine(20, 60)] * 200, step=1)
    assert decide(PLAN, long, 1, 0.0, 60.0).action == "promote"
    assert decide(replace(PLAN, steps=(0.05, 0.25)), long, 1, 0.0, 60.0).action == "hold", "the last step below 1 waits for a person"


@pytest.mark.parametrize("bad", ["errors", "latency_p95", "malformed"])
def test_a_worse_canary_is_taken_back_with_the_guardrail_and_its_numbers(bad):
    state = seen(PLAN, [{**fine(), bad: (4, 2, 76, 2)}] * 12)
    decision = decide(PLAN, state, 0, 0.0, 60.0)
    assert (decision.action, decision.guardrail) == ("roll_back", bad)
    assert f"{bad} 24 of 48 against 24 of 912" in decision.reason
    assert decide(PLAN, state, 0, 0.0, 60.0, lambda _: [(25, 1, 912, 24)]).action == "hold", "they were one user's"


def test_one_that_turns_bad_after_an_hour_is_still_seen():
    state = seen(PLAN, [fine()] * 720)
    state = seen(PLAN, [{**fine(), "errors": (4, 2, 76, 2)}] * 30, state=state)
    assert decide(PLAN, state, 0, 0.0, 3600.0).guardrail == "errors"


def test_requests_of_one_user_count_as_many_as_they_are_unlike():
    alone = Spread(requests=100, users=100, squares=100, bad=10, bad_squares=10)
    assert correlation(alone, alone) == 0.0
    # 10 users of 10 requests: one of them fails always; then each fails once
    alike = Spread(requests=100, users=10, squares=1000, bad=10, bad_squares=10)
    assert correlation(alike, alike) == pytest.approx(1.0)
    unlike = Spread(requests=100, users=10, squares=1000, bad=10, bad_squares=1.0)
    assert correlation(unlike, unlike) == 0.0


# --- the form of answers -----------------------------------------------------------------------------------------------------------------


def test_the_form_is_what_nearly_all_answers_have():
    assert learned_form(["yes"] * 20) is None
    labels = learned_form(["yes", "no", "yes "] * 20)
    assert labels == AnswerForm(kind="labels", labels=("no", "yes"))
    objects = learned_form(['{"a": 1, "b": 2}', ' {"a": 2}'] * 30)
    assert objects == AnswerForm(kind="json", keys=("a",))
    assert learned_form([f"answer {i}" for i in range(60)]) == AnswerForm()
    for form, answer, calls, finish, wrong in (
        (labels, "perhaps", "[]", "stop", True),
        (labels, "no", "[]", "stop", False),
        (objects, '{"a": 3}', "[]", "stop", False),
        (objects, '{"b": 3}', "[]", "stop", True),
        (objects, 'Sure! {"a": 3}', "[]", "stop", True),
        (objects, "[" * 100_000, "[]", "stop", True),
        (None, "anything", "[]", "stop", False),
        (None, " ", "[]", "stop", True),
        (None, "cut", "[]", "length", True),
        (objects, "", '[{"function": {"name": "f", "arguments": "{}"}}]', "tool_calls", False),
        (objects, "", '[{"function": {"name": "f", "arguments": "{"}}]', "tool_calls", True),
    ):
        assert malformed(form, answer, calls, finish) is wrong, (form, answer)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": ()}, "the steps are none"),
        ({"steps": (0.5, 0.25)}, "shares that grow"),
        ({"steps": (1.0,)}, "below 100%"),
        ({"guardrails": {"error": 0.1}}, "did you mean 'errors'"),
        ({"guardrails": {"latency_p30": 0.1}}, "_p50 to _p99"),
        ({"guardrails": {"errors": 0.0}}, "more than 0"),
        ({"guardrails": {}}, "no guardrail"),
        ({"alpha": 0.5}, "at most 0.2"),
        ({"step_requests": 0}, "1 or more"),
        ({"look_s": 0.0}, "0.05 seconds or more"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(settings, expected):
    with pytest.raises(ConfigError, match=expected):
        RolloutPlan(**settings)


# --- over a store ------------------------------------------------------------------------------------------------------------------------

_ids = itertools.count()


def rows(place, rollout, start, seconds, *, canary=(), others=(), a_second=20):  # noqa: F811
    """Requests of so many seconds in the log, one of ten the canary's; each side's may have other values."""
    made, share = [], rollout.plan.steps[rollout.step]
    for i in range(int(seconds * a_second)):
        own = i % 10 == 0
        row = {
            "user_key": None, "cost_usd": None, "fallback": None, "id": f"r{next(_ids)}", "created": start + i / a_second, "alias": rollout.alias, "status": 200, "finish_reason": "stop",
            "variant": rollout.canary if own else "a", "prompt_tokens": 5, "completion_tokens": 5, "first_token_s": 0.1,
            "total_s": 0.2 + 0.01 * (i % 7), "messages": "[]", "answer": "yes" if i % 3 else "no", "deployment": rollout.version, "propensity": share if own else 1 - share,
        }  # fmt: skip
        made.append(row | dict(canary if own else others))
    with place.store.writing() as connection:
        connection.execute(sa.insert(interactions), made)


def begin(call, alias, *words):  # noqa: F811
    assert call("deploy", alias, "a")[0] == 0
    code, made, told = call("deploy", "canary", alias, "b", "--reason", "better in the tests", *words)
    assert code == 0, told
    return made


def newest(place, alias):  # noqa: F811
    return Rollouts(place.store).newest(alias)


@pytest.mark.slow
def test_a_canary_that_is_not_worse_takes_over_by_its_steps(place, call):  # noqa: F811
    begin(call, "grow", "--steps", "10%,50%,100%", "--step-s", "60", "--step-requests", "50", "--by", "anna")
    shares = []
    for _ in range(40):
        rollout = newest(place, "grow")
        if rollout.status != "running":
            break
        rows(place, rollout, rollout.looked, 60)
        look(rollout, place.store, rollout.looked + 60)
        shares.append(rollout.plan.steps[rollout.step])
    assert (rollout.status, sorted(set(shares))) == ("promoted", [0.1, 0.5])
    history = call("deploy", "history", "grow")[1]["versions"]
    assert [(version["by"], [(v["name"], v.get("weight", 1.0)) for v in version["variants"]]) for version in history[:3]] == [
        ("rollout", [("canary", 1.0)]),
        ("rollout", [("a", 0.5), ("canary", 0.5)]),
        ("anna", [("a", 0.9), ("canary", 0.1)]),
    ]
    assert "requests, not worse: errors 0 of" in history[0]["reason"]
    shown = call("deploy", "status", "grow")[1]
    assert (shown["rollout"]["status"], shown["form"]) == ("promoted", "one of no, yes")
    code, again, _ = call("deploy", "canary", "grow", "a")
    assert (code, again["canary"]) == (0, "canary-2"), "no conversation is taken for the new canary's"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guardrail", "canary"),
    [
        ("errors", {"status": 500, "answer": ""}),
        ("errors", {"fallback": "a"}),
        ("errors", {"status": 499, "answer": ""}),
        ("latency_p95", {"total_s": 0.9}),
        ("malformed", {"answer": "It depends."}),
        ("refusals", {"answer": "I'm sorry, but I can't help with that."}),
        ("cost_p50", {"cost_usd": 2.0}),
    ],
)
def test_each_guardrail_takes_a_worse_canary_back(place, call, guardrail, canary):  # noqa: F811
    alias = f"bad-{guardrail}-{'-'.join(canary)}"
    words = ["malformed=off", "latency_p95=off"] if guardrail == "refusals" else []
    words = [word for each in ("refusals=0.02", "cost_p50=0.2", *words) for word in ("--guardrail", each)]
    begin(call, alias, "--steps", "10%,100%", *words)
    before = newest(place, alias)
    for _ in range(3):
        if (rollout := newest(place, alias)).status == "running":
            rows(place, rollout, rollout.looked, 30, canary={"cost_usd": 1.0, **canary}, others={"cost_usd": 1.0})
            look(rollout, place.store, rollout.looked + 30)
    rollout = newest(place, alias)
    assert (rollout.status, f"{guardrail} " in rollout.outcome) == ("rolled_back", True), rollout.outcome
    assert rollout.state.requests <= 180
    back = place.deployments.in_force()[alias]
    assert ([variant.name for variant in back.variants], back.by) == (["a"], "rollout")
    assert back.reason == rollout.outcome
    assert look(before, place.store) is None, "of two that look one acts"
    seen = status(alias, place.store)
    assert seen.affected.requests >= rollout.state.requests
    assert seen.bounds[guardrail][0] > 0


@pytest.mark.slow
def test_one_user_alone_ends_no_rollout(place, call):  # noqa: F811
    begin(call, "single", "--steps", "10%,100%")
    rollout = newest(place, "single")
    rows(place, rollout, rollout.looked, 30)
    rows(place, rollout, rollout.looked, 30, canary={"status": 400, "user_key": "loud"}, others={"user_key": "quiet"}, a_second=10)
    after = look(rollout, place.store, rollout.looked + 40)
    assert after.status == "running"
    assert exp(after.state.guardrails["errors"].peak) > 200


@pytest.mark.slow
def test_requests_that_were_drawn_with_other_shares_or_named_are_not_compared(place, call):  # noqa: F811
    begin(call, "drawn", "--steps", "10%,100%")
    rollout = newest(place, "drawn")
    rows(place, rollout, rollout.looked, 30, others={"propensity": 0.99})
    rows(place, rollout, rollout.looked, 30, canary={"propensity": None, "status": 500}, a_second=10)
    after = look(rollout, place.store, rollout.looked + 40)
    assert after.state.guardrails["errors"].seen == (60, 0, 270, 0)


@pytest.mark.slow
def test_what_is_said_of_answers_takes_a_worse_canary_back(place, call):  # noqa: F811
    begin(call, "liked", "--steps", "10%,100%", "--guardrail", "quality:judge=0.1", "--guardrail", "score:tone=0.1")
    rollout = newest(place, "liked")
    rows(place, rollout, rollout.looked, 30)
    with place.store.reading() as connection:
        seen = connection.execute(sa.select(interactions.c.id, interactions.c.variant).where(interactions.c.alias == "liked")).all()
    words = FeedbackLog(place.store)
    for row in seen[-300:]:
        said = {"kind": "score", "name": "tone", "value": 0.2 if row.variant == "canary" else 0.9}
        words.put(Feedback(id=f"f-{row.id}", interaction=row.id, created=1.0, received=rollout.looked + 35, **said))
    score = {"instrument": "i", "alias": "liked", "metric": "judge", "answered": 1.0, "scored": rollout.looked + 35, "golden": False}
    QualityScores(place.store).put([KeptScore(interaction=row.id, value=0.7, **score) for row in seen])
    after = look(rollout, place.store, rollout.looked + 40)
    assert after.state.guardrails["quality:judge"].seen == pytest.approx((60, 18, 540, 162))
    assert (after.status, "score:tone 24.0 of 30 against 27.0 of 270" in after.outcome) == ("rolled_back", True), after.outcome


@pytest.mark.slow
def test_a_model_whose_run_did_not_pass_its_gate_is_refused(place, call):  # noqa: F811
    call("deploy", "gated", "a")
    run = Runs(place.store).begin("bot", "tunesmith run", [], {"train": "c0ffee"})
    Runs(place.store).finish(run.id, "cannot tell")
    place.deployments.put("other", [Variant(name="tuned", model=ModelRef(base="smollm2-135m", digest="d", made_by="run:c0ffee"))])
    code, _, told = call("deploy", "canary", "gated", "other")
    assert (code, "said 'cannot tell'" in told) == (3, True), told
    made = call("deploy", "canary", "gated", "other", "--gate", "any", "--reason", "looked at it")[1]
    assert made["reason"] == f"looked at it; the gate of run {run.id} said 'cannot tell', overruled"
    call("deploy", "abort", "gated")
    place.put("other", "one", a=1)  # servers of further tests would load its weights


@pytest.mark.slow
def test_people_approve_pause_resume_and_abort(place, call):  # noqa: F811
    waiting = begin(call, "slow", "--needs-approval", "--steps", "10%,100%")
    assert (waiting["status"], len(place.deployments.history("slow"))) == ("waiting", 1)
    assert call("deploy", "approve", "slow", "--by", "berta", "--reason", "read them")[1]["status"] == "running"
    assert (place.deployments.in_force()["slow"].by, "read them" in place.deployments.in_force()["slow"].reason) == ("berta", True)
    assert call("deploy", "step", "slow")[1]["status"] == "running"
    assert call("deploy", "pause", "slow")[1]["status"] == "paused"
    assert look_at_all(place.store) == []
    assert call("deploy", "step", "slow")[0] == 2
    assert call("deploy", "resume", "slow")[1]["status"] == "running"
    ended = call("deploy", "abort", "slow", "--reason", "another one", "--by", "anna")[1]
    assert (ended["status"], ended["outcome"]) == ("aborted", "aborted by anna: another one")
    assert [variant.name for variant in place.deployments.in_force()["slow"].variants] == ["a"]
    call("deploy", "canary", "slow", "b", "--steps", "10%,100%")
    call("deploy", "promote", "slow", "a", "--by", "anna")
    changed = call("deploy", "step", "slow")[1]
    assert (changed["status"], "by anna" in changed["outcome"]) == ("superseded", True)


@pytest.mark.slow
def test_what_cannot_be_rolled_out_is_one_error(place, call):  # noqa: F811
    begin(call, "once", "--steps", "10%,100%")
    halves = [Variant(name=name, upstream=name, weight=0.5) for name in "ab"]
    place.deployments.put("tried", halves, strategy="split", enrolment=Enrolment(experiment="half", layer="all"))
    for words, expected in {
        ("canary", "once", "broken"): "has an open rollout",
        ("canary", "once", "b"): "answers with 'b' already",
        ("canary", "nothing", "b"): "answers with nothing yet",
        ("canary", "tried", "broken"): "is under the experiment 'half'",
        ("canary", "once", "b", "--guardrail", "error=0.1"): "did you mean 'errors'",
        ("canary", "once", "b", "--guardrail", "errors"): "NAME=MARGIN",
        ("canary", "once", "b", "--guardrail", "errors=some"): "a number",
        ("canary", "once", "b", "--steps", "1%,x"): "x",
        ("canary", "once", "b", "--steps", "50%,10%"): "shares that grow",
        ("canary", "once", "b", "--gate", "perhaps"): "perhaps",
        ("status", "onc"): "did you mean 'once'",
        ("approve", "once"): "is running",
        ("resume", "once"): "is running",
    }.items():
        code, _, told = call("deploy", *words)
        assert (code, expected in told) == (2, True), f"{words}: {told}"
    code, _, told = call("ab", "start", "once", "a", "b", "--metric", "errors")
    assert (code, "is under a rollout of 'canary'" in told, "deploy abort once" in told) == (2, True, True)
    assert call("deploy", "status", "once")[1]["rollout"]["status"] == "running", "and it goes on"
    assert call("deploy", "abort", "once")[0] == 0
    for command in ("step", "pause", "abort", "approve"):
        assert call("deploy", command, "once")[0] == 2


@pytest.mark.slow
def test_a_failing_canary_is_taken_back_while_two_servers_answer(place, call):  # noqa: F811
    call("deploy", "live", "a")
    call("deploy", "canary", "live", "broken", "--steps", "50%,100%", "--look-s", "0.2", "--by", "anna")
    openai = pytest.importorskip("openai")
    failures, answered = [], 0
    with place.server() as first, place.server() as second:
        end = time.monotonic() + 120
        while newest(place, "live").status == "running" and time.monotonic() < end:
            for i, client in enumerate((first, second)):
                try:
                    assert ask(client, "live", user=f"user-{len(failures) + answered}-{i}")[0] == "Ahi"
                    answered += 1
                except openai.InternalServerError as error:
                    failures.append(str(error))
        rollout = newest(place, "live")
        assert rollout.status == "rolled_back", rollout.outcome
        for client in (first, second):  # with the very next request
            assert {ask(client, "live", user=f"after-{i}")[0] for i in range(8)} == {"Ahi"}
    seen = call("deploy", "status", "live")[1]
    assert (seen["affected"]["requests"], seen["affected"]["failed"]) == (len(failures), len(failures))
    assert not any("broken" in failure or "canary" in failure for failure in failures)
    versions = call("deploy", "history", "live")[1]["versions"]
    assert [version["by"] for version in versions[:2]] == ["rollout", "anna"]
    assert f"'canary' taken back: errors {rollout.state.guardrails['errors'].seen[1]:.0f} of" in versions[0]["reason"]
