"""Aliases with several variants: who is assigned, what clients see of it, what is written down, and changes while servers run."""

from __future__ import annotations

import contextlib
import json
from collections import Counter

import httpx
import pytest
from sqlalchemy import select

import tiny
from tunesmith.api.app import create_app, running
from tunesmith.api.reload import Reload
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.errors import ConfigError
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.types import Answer
from tunesmith.deploy.router import Router
from tunesmith.deploy.strategy import AskedState, bucket, choose
from tunesmith.models.catalog import Catalog
from tunesmith.models.echo import EchoModel
from tunesmith.models.resolve import Models
from tunesmith.models.upstream import Upstream
from tunesmith.store.deployments import Deployments
from tunesmith.store.interactions import Interactions
from tunesmith.store.keys import Keys
from tunesmith.store.shadows import ShadowAnswers
from tunesmith.store.store import Store
from tunesmith.store.tables import interactions

openai = pytest.importorskip("openai")


def deployment(strategy, version=1, **weights) -> Deployment:
    return Deployment(alias="bot", version=version, strategy=strategy, variants=tuple(far(name, weight=w) for name, w in weights.items()))


def far(name, **more) -> Variant:
    return Variant(name=name, upstream=name, **more)


# --- assignment --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "value", "expected"),
    [  # GrowthBook's published vectors of version 2
        ("seed", "a", 0.0505),
        ("seed", "b", 0.2696),
        ("foo", "ab", 0.2575),
        ("foo", "def", 0.2019),
        ("90850943850283058242805", "123", 0.7516),
        ("()**(%$##$%#$#", '___)((*":&', 0.0128),
    ],
)
def test_the_hash_is_the_published_one(seed, value, expected):
    assert bucket(seed, value) == expected


@pytest.mark.slow
def test_shares_are_the_weights_and_growing_ones_move_nobody_back():
    keys = [f"user-{i}" for i in range(20_000)]
    small, large = deployment("split", stable=0.9, canary=0.1), deployment("split", stable=3, canary=1)
    first = {key: choose(key, small, AskedState()) for key in keys}
    share = Counter(choice.variant.name for choice in first.values())["canary"] / len(keys)
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / len(keys)) ** 0.5  # four standard errors
    assert {(choice.variant.name, round(choice.propensity, 9)) for choice in first.values()} == {("stable", 0.9), ("canary", 0.1)}
    later = {key: choose(key, large, AskedState()).variant.name for key in keys}
    assert abs(Counter(later.values())["canary"] / len(keys) - 0.25) < 4 * (0.25 * 0.75 / len(keys)) ** 0.5
    assert all(later[key] == "canary" for key in keys if first[key].variant.name == "canary")
    assert choose("anybody", large, AskedState("canary", 0.1)).propensity == 0.1, "a conversation keeps what it was assigned with"
    assert choose("anybody", deployment("split", stable=1, canary=0), AskedState("gone", 0.1)).variant.name == "stable"
    other = Counter(
        choose(key, Deployment(alias="other", version=1, strategy="split", variants=small.variants), AskedState()).variant.name
        for key in keys
        if first[key].variant.name == "canary"
    )
    assert 0.05 < other["canary"] / sum(other.values()) < 0.15, "another alias is another draw"
    for wrong in ({"a": 0.0, "b": 0.0}, {"a": -1.0}, {"a": float("nan")}, {"a": float("inf")}):
        with pytest.raises(ConfigError, match="weight"):
            deployment("split", **wrong)


# --- served ------------------------------------------------------------------------------------------------------------------------------


class Broken(EchoModel):
    """Cannot answer."""

    def answer(self, prompts, sampling, on_answer=None) -> list[Answer]:
        raise ZeroDivisionError("a secret")


class Place:
    """One store with the servers over it; `echo-a` and `echo-b` are upstreams, real servers that answer with a prefix of their own."""

    def __init__(self, folder, url):
        self.folder, self.store = folder, Store.open(folder / ".tunesmith")
        self.upstreams = {name: Upstream(name, base_url=url) for name in ("a", "b", "broken")}
        self.deployments = Deployments(self.store)

    @contextlib.contextmanager
    def server(self):
        store = Store.open(self.folder / ".tunesmith")
        models, router = Models(store, Catalog(), home=self.folder), Router()
        reload = Reload(router, models, self.upstreams)
        reload.start()
        with running(create_app(router, store=store, models=models, reload=reload)) as url:
            yield openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        store.close()

    def put(self, alias, strategy, **weights):
        return self.deployments.put(alias, [far(name, weight=weight) for name, weight in weights.items()], strategy=strategy)

    def rows(self, alias):
        return Interactions(self.store).answered({"alias": alias})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    (folder / "rows.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi"}]})
    )
    behind = {"a": EchoModel("a", prefix="A"), "b": EchoModel("b", prefix="B"), "broken": Broken("broken")}
    with running(create_app(behind)) as url:
        lines = "".join(f'    {name}: {{base_url: "{url}", model: {name}}}\n' for name in behind)
        (folder / "tunesmith.yaml").write_text(
            f"name: bot\nsources: [{{path: rows.jsonl}}]\nbase: smollm2-135m\nserve:\n  upstreams:\n{lines}"
        )
        made = Place(folder, url)
        yield made
        made.store.close()


@pytest.fixture(scope="module")
def two(place):
    """(a client of one server, a client of another one over the same store)."""
    place.put("bot", "split", a=1, b=0)
    with place.server() as first, place.server() as second:
        yield first, second


def ask(client, alias, words="hi", *, stream=False, **more):
    """(the words of the answer, what else a client sees of who answered)."""
    made = client.chat.completions.create(model=alias, messages=[{"role": "user", "content": words}], stream=stream, **more)
    if not stream:
        return made.choices[0].message.content, (made.model, made.system_fingerprint, made.id[:9], len(made.id))
    chunks = list(made)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return text, (chunks[0].model, chunks[0].system_fingerprint, chunks[0].id[:9], len(chunks[0].id))


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_clients_cannot_see_their_arm_and_the_log_can(place, two, stream):
    alias = f"arms-{stream}"
    place.put(alias, "split", a=0.5, b=0.5)
    seen = {user: ask(two[0], alias, user=user, stream=stream) for user in map(str, range(12))}
    assert {words[0] for words, _ in seen.values()} == {"A", "B"}
    assert {shown for _, shown in seen.values()} == {(alias, next(iter(seen.values()))[1][1], "chatcmpl-", 45)}
    assert {ask(two[1], alias, user=user)[0] for user in seen} == {words for words, _ in seen.values()}
    for row in place.rows(alias):
        assert (row.variant.upper(), row.propensity, row.strategy, row.fallback) == (row.answer[0], 0.5, "split", None)
        assert row.answer == seen[row.user_key][0]
    response = two[0].responses.create(model=alias, input="hi", user="1")
    assert (response.output_text, response.model) == (seen["1"][0], alias)


@pytest.mark.slow
def test_a_change_is_in_force_with_the_next_request_on_every_server_and_conversations_stay(place, two):
    named = {"extra_headers": {"x-conversation-id": "talk"}}
    place.put("bot", "split", a=1, b=0)
    assert [ask(client, "bot", **named)[0] for client in two] == ["Ahi", "Ahi"]
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "Aone"}, {"role": "user", "content": "two"}]
    other = {"extra_headers": {"x-conversation-id": "other"}}
    assert ask(two[0], "bot", **other)[0] == "Ahi"
    assert ask(two[0], "bot", "one")[0] == "Aone"  # an unnamed conversation, which its history names
    place.put("bot", "split", a=0, b=1)
    for client in two:
        assert ask(client, "bot")[0] == "Bhi"
        assert ask(client, "bot", **named)[0] == "Ahi"
    assert ask(two[1], "bot", **other)[0] == "Ahi", "another server reads it in the store"
    assert two[0].chat.completions.create(model="bot", messages=turns).choices[0].message.content == "Atwo"
    place.put("new", "one", b=1)
    assert "new" in {model.id for model in two[1].models.list()}
    assert {ask(client, "new")[0] for client in two} == {"Bhi"}
    place.put("bot", "one", b=1)
    assert ask(two[1], "bot", **named)[0] == "Bhi", "a variant that is taken away cannot be kept"
    talk = [row for row in place.rows("bot") if row.conversation == "talk"]
    assert [(row.variant, row.propensity) for row in talk] == [("a", 1.0)] * 4 + [("b", 1.0)]


def test_a_version_that_cannot_be_loaded_leaves_the_one_before(place, two):
    place.put("kept", "one", a=1)
    assert ask(two[0], "kept")[0] == "Ahi"
    place.deployments.put("kept", [Variant(name="lost", model=ModelRef(base="./nowhere"))])
    place.deployments.put("never", [Variant(name="lost", model=ModelRef(base="./nowhere"))])
    assert ask(two[0], "kept")[0] == "Ahi"
    with pytest.raises(openai.InternalServerError, match="could not be loaded"):
        ask(two[0], "never")


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_fallback_answers_on_the_account_of_the_assigned_variant(place, two, stream):
    alias = f"chain-{stream}"
    place.put(alias, "fallback", broken=1, b=1)
    assert ask(two[0], alias, stream=stream)[0] == "Bhi"
    (row,) = place.rows(alias)
    assert (row.variant, row.fallback, row.strategy, row.status) == ("broken", "b", "fallback", 200)
    assert row.model_digest == place.upstreams["b"].digest
    place.put(alias, "fallback", broken=1)
    place.put(alias, "split", broken=1, b=0)
    with pytest.raises(openai.InternalServerError) as failed:
        ask(two[0], alias, stream=stream)
    assert "broken" not in str(failed.value)
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize("stream", [False, True])
def test_a_shadow_answers_beside_and_is_in_no_count(place, two, stream):
    alias = f"shade-{stream}"
    variants = [far("a"), far("b", copies_per_minute=2), far("broken")]
    made = place.deployments.put(alias, variants, strategy="shadow")
    for _ in range(3):
        assert ask(two[0], alias, stream=stream)[0] == "Ahi"
    assert two[0].completions.create(model=alias, prompt="hi").choices[0].text == "Ahi"
    rows = until(lambda: ShadowAnswers(place.store).of(alias), 8)
    assert {row.variant for row in place.rows(alias)} == {"a"}
    assert Interactions(place.store).count(aliases=[alias]).requests == 4
    told = Counter((row.variant, row.answer, row.skipped.partition(":")[0], bool(row.error)) for row in rows)
    assert told == {
        ("b", "Bhi", "", False): 2,
        ("b", "", "budget", False): 1,
        ("b", "", "texts to continue are not copied, chats and responses are", False): 1,
        ("broken", "", "", True): 3,
        ("broken", "", "texts to continue are not copied, chats and responses are", False): 1,
    }
    assert {row.interaction for row in rows if row.answer} < {row.id for row in place.rows(alias)}
    assert {row.deployment for row in rows} == {made.version}


def until(look, count):
    """What is seen once there is so much of it: copies are written after the answer."""
    import time

    end = time.monotonic() + 60
    while len(rows := look()) < count:
        assert time.monotonic() < end, rows
        time.sleep(0.01)
    return rows


@pytest.mark.slow
def test_a_slow_variant_is_replaced_in_time_and_counted(place, two):
    from test_answered import Held

    held = Held()
    router = Router()
    variants = (Variant(name="slow", upstream="slow", timeout_s=0.05), far("b"))
    router.deploy(
        Deployment(alias="slow", version=7, variants=variants, strategy="fallback"), {"slow": held, "b": EchoModel("b", prefix="B")}
    )
    with running(create_app(router, place.store)) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        try:
            assert ask(client, "slow")[0] == "Bhi"
        finally:
            held.let.set()
        page = httpx.get(url.removesuffix("/v1") + "/metrics").text
    line = 'tunesmith:variant_requests_total{deployment="7",model_name="slow",outcome="fallback",variant="slow"} 1.0'
    assert line in page


@pytest.mark.slow
def test_operators_name_a_variant_and_nobody_else(tmp_path):
    store, router = Store.open(tmp_path), Router()
    router.deploy(deployment("split", a=1, b=0), {"a": EchoModel("a", prefix="A"), "b": EchoModel("b", prefix="B")})
    keys = {scope: Keys(store).create(scope, scopes=[scope])[1] for scope in ("admin", "serve")}
    named = {"extra_headers": {"x-tunesmith-variant": "b"}}
    with running(create_app(router, store=store)) as url:
        admin, client = (openai.OpenAI(base_url=url, api_key=keys[scope], max_retries=0) for scope in ("admin", "serve"))
        assert ask(admin, "bot", **named)[0] == "Bhi"
        assert ask(admin, "bot")[0] == ask(client, "bot")[0] == "Ahi"
        with pytest.raises(openai.PermissionDeniedError, match="scope admin"):
            ask(client, "bot", **named)
        with pytest.raises(openai.NotFoundError, match="no variant 'c'"):
            ask(admin, "bot", extra_headers={"x-tunesmith-variant": "c"})
    row = next(row for row in Interactions(store).answered({"alias": "bot"}) if row.variant == "b")
    assert (row.strategy, row.propensity) == ("override", None)
    with store.reading() as connection:
        refused = connection.execute(select(interactions.c.variant).where(interactions.c.status == 403)).scalars().all()
    assert refused == [""], "no variant is blamed for what none was assigned"
    store.close()


@pytest.mark.slow
def test_weights_are_loaded_beside_the_requests_and_let_go(tmp_path):
    bases = [tiny.model(tmp_path / name, seed=i) for i, name in enumerate(("one", "two"))]
    store = Store.open(tmp_path / "store")
    models, router = Models(store, Catalog(), home=tmp_path), Router()
    deployments = Deployments(store)
    deployments.put("bot", [Variant(name="one", model=models.ref(str(bases[0])))])
    reload = Reload(router, models, {})
    assert reload.start() == []
    with running(create_app(router, store=store, models=models, reload=reload)) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        first = ask(client, "bot", max_tokens=4, temperature=0)
        deployments.put("bot", [Variant(name="two", model=models.ref(str(bases[1])))])
        deployments.put("new", [Variant(name="two", model=models.ref(str(bases[1])))])
        new = ask(client, "new", max_tokens=4, temperature=0)  # waits for its weights
        later = until(lambda: [shown] if (shown := ask(client, "bot", max_tokens=4, temperature=0))[1][1] != first[1][1] else [], 1)[0]
        assert (later[0], later[1][1]) == (new[0], new[1][1])
        until(lambda: [0] if len(models.weights._bases) == 1 else [], 1)
    rows = Interactions(store).answered({"alias": "bot"})
    assert {(row.variant, row.deployment) for row in rows} == {("one", 1), ("two", 2)}
    store.close()


# --- the command line --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def call(place, monkeypatch, capsys):
    monkeypatch.chdir(place.folder)

    def made(*words):
        code = guarded(app, [*words, "--json"])
        told = capsys.readouterr()
        return code, json.loads(told.out.splitlines()[-1]), told.err

    return made


def weights(made):
    return {variant["name"]: variant.get("weight", 1.0) for variant in made["variants"]}


@pytest.mark.slow
def test_a_canary_grows_is_promoted_and_taken_back_while_a_server_runs(place, two, call):
    assert call("deploy", "shop", "a", "--reason", "first", "--by", "anna")[0] == 0
    _, small, _ = call("deploy", "shop", "b", "--canary", "0.1")
    _, large, _ = call("deploy", "shop", "b", "--canary", "0.25", "--reason", "no complaints")
    assert (small["strategy"], weights(small), weights(large)) == ("split", {"a": 0.9, "canary": 0.1}, {"a": 0.75, "canary": 0.25})
    users = [f"user-{i}" for i in range(16)]
    expected = {user: "B" if bucket("shop", user) >= 0.75 else "A" for user in users}
    assert {user: ask(two[1], "shop", user=user)[0][0] for user in users} == expected
    assert len(set(expected.values())) == 2
    for variant in ("a", "canary"):
        evaluation = call("eval", f"shop:{variant}", "--data", "rows.jsonl")[1]["evaluations"][0]
        assert evaluation["model"] == f"shop:{variant}"
    call("deploy", "promote", "shop", "canary", "--reason", "better")
    assert ask(two[0], "shop")[0] == "Bhi"
    _, back, _ = call("deploy", "rollback", "shop", "--to", str(small["version"]))
    assert weights(back) == {"a": 0.9, "canary": 0.1}
    call("deploy", "rollback", "shop")
    assert ask(two[1], "shop")[0] == "Bhi"
    history = call("deploy", "history", "shop")[1]["versions"]
    assert [version.get("reason", "") for version in history][1:] == [
        f"back to version {small['version']}",
        "better",
        "no complaints",
        "",
        "first",
    ]
    assert history[-1]["by"] == "anna"
    assert guarded(app, ["deploy", "history", "shop"]) == 0
    assert call("deploy", "create", "history", "a")[1]["alias"] == "history"
    assert call("deploy", "--reason", "before", "late", "a")[1]["reason"] == "before"
    _, chain, _ = call("deploy", "shop", "a", "--fallback", "--timeout-s", "5")
    assert (chain["strategy"], weights(chain)) == ("fallback", {"canary": 1.0, "fallback": 1.0})


@pytest.mark.slow
def test_what_cannot_be_deployed_is_one_error(place, call):
    place.put("pair", "split", a=0.5, b=0.5)
    for words, expected in {
        ("deploy", "nothing", "a", "--canary", "0.1"): "answers with nothing yet",
        ("deploy", "pair", "broken", "--weight", "1"): "less than 1",
        ("deploy", "pair", "broken", "--weight", "nan"): "less than 1",
        ("deploy", "pair", "broken", "--weight", "-0.1"): "less than 1",
        ("deploy", "pair", "broken", "--canary", "0.1", "--shadow"): "one of --weight",
        ("deploy", "pair", "broken", "--canary", "0.1", "--weight", "0.2"): "one of --weight",
        ("deploy", "pair", "broken", "--shadow"): "has the strategy split",
        ("deploy", "pair", "broken", "--weight", "0.1", "--as", "a b"): "cannot be called",
        ("deploy", "pair", "broken", "--weight", "0.1", "--as", "a"): "already, with another model",
        ("deploy", "pair", "broken", "--copies-per-minute", "3"): "no shadow",
        ("deploy", "pair", "a", "--timeout-s", "0"): "more than 0",
        ("deploy", "promote", "pair", "c"): "a, b",
        ("deploy", "promote", "pare", "a"): "did you mean 'pair'",
        ("deploy", "rollback", "pair"): "never answered otherwise",
        ("deploy", "rollback", "pair", "--to", "99999"): "no version 99999",
        ("deploy", "history", "nothing"): "nothing is deployed as 'nothing'",
        ("eval", "pair", "--data", "rows.jsonl"): "pair:a, pair:b",
        ("eval", "pair:c", "--data", "rows.jsonl"): "no variant 'c'",
    }.items():
        code, _, told = call(*words)
        assert (code, expected in told) == (2, True), f"{words}: {told}"
    assert len(place.deployments.history("pair")) == 1
