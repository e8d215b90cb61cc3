"""Is what is served what was deployed: the statistic, and faults planted behind a real server."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import threading
import time

import httpx
import pytest

import tiny
from forked import start
from tunesmith.api.app import create_app, running
from tunesmith.api.reload import Reload
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.errors import GateRefused, UsageError
from tunesmith.core.identity import IdentityReference
from tunesmith.core.model_ref import folder_at
from tunesmith.core.rollout import RolloutPlan
from tunesmith.core.types import Message, Prompt, Sampling
from tunesmith.deploy.identity import FIRST_LEVEL, look, names_answers, sample_of, second_level
from tunesmith.deploy.router import Router
from tunesmith.flow import rollouts
from tunesmith.flow.deploying import deploy, roll_back
from tunesmith.flow.identity import verified
from tunesmith.models.base import loaded
from tunesmith.models.catalog import Catalog
from tunesmith.models.echo import EchoModel
from tunesmith.models.resolve import Models
from tunesmith.models.upstream import Upstream
from tunesmith.models.weights import Weights
from tunesmith.store.deployments import Deployments
from tunesmith.store.identities import Identities
from tunesmith.store.interactions import Interactions
from tunesmith.store.store import Store
from waiting import until

SYSTEM = "Answer every question as the bank of York would, in one word, without thinking about it for long."


def drawn(rng, noise, shift=0.0, probes=12, tokens=5, samples=1):
    """Samples of a model that answers with noise: `shift` is what another one adds to its first tokens."""
    base = {f"t{token}": -1.0 - token for token in range(tokens)}
    return [
        tuple({name: value + rng.gauss(0, noise) + shift * (name == "t0") for name, value in base.items()} for _ in range(samples))
        for _ in range(probes)
    ]


def made(samples, **more):
    return IdentityReference(probes=tuple((Message(role="user", content="?"),) for _ in samples), samples=tuple(samples), **more)


def test_what_rounding_does_is_no_difference_and_what_is_more_is_one():
    rng = random.Random(0)
    exact = made(drawn(rng, 0.0, samples=4))
    assert look(exact, drawn(rng, 1e-4), 0, FIRST_LEVEL, seed=0).p == 1.0
    changed = look(exact, drawn(rng, 0.0, shift=0.1), 0, FIRST_LEVEL, seed=0)
    assert changed.p <= FIRST_LEVEL
    assert changed.distance == pytest.approx(0.1 / 5)
    assert look(exact, drawn(rng, 0.0, shift=0.1), 0, FIRST_LEVEL, seed=0, tolerance=0.25).p == 1.0, "another type may round so far"
    ended = [({"(end)": 0.0},)] * 12
    assert look(exact, ended, 0, FIRST_LEVEL, seed=0).p <= FIRST_LEVEL


def test_p_values_of_a_noisy_model_are_uniform_and_small_where_it_was_changed():
    rng = random.Random(1)
    values = []
    for seed in range(60):
        noisy = made(drawn(rng, 0.3, samples=4), tolerance=0.0)
        values.append(look(noisy, drawn(rng, 0.3), 0, 0.05, seed=seed).p)
    below = sum(value <= 0.2 for value in values) / len(values)
    assert abs(below - 0.2) < 4 * (0.2 * 0.8 / len(values)) ** 0.5, "four standard errors"
    level = second_level(120)
    noisy = made(drawn(rng, 0.3, samples=4), tolerance=0.0)
    assert look(noisy, drawn(rng, 0.3, shift=2.0, samples=2), 1, level, seed=0).p <= level


def test_answers_alone_tell_too_where_enough_of_them_change():
    before = made([({"yes": 0.0},) * 4 for _ in range(24)], logprobs=False)
    same = [({"yes": 0.0},)] * 24
    assert look(before, same, 0, FIRST_LEVEL, seed=0).p == 1.0
    assert look(before, [({"no": 0.0},)] * 8 + same[8:], 0, FIRST_LEVEL, seed=0).p <= FIRST_LEVEL


def test_an_answer_is_a_sample_of_its_likeliest_tokens():
    entry = {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -9999.0}]}
    assert sample_of([entry], "a", with_logprobs=True) == {"a": -0.5, "b": -25.0}
    assert sample_of([], "", with_logprobs=True) == {"(end)": 0.0}
    assert sample_of([], "yes", with_logprobs=False) == {"yes": 0.0}


class Place:
    """A project with a base, two adapters on it, and servers over its store."""

    def __init__(self, folder):
        self.folder = folder
        self.base = tiny.model(folder / "base", context=512)
        for seed, name in enumerate(("a", "b")):
            tiny.adapter(self.base, folder / name, seed=seed)
        self.store = Store.open(folder / ".tunesmith")
        self.models = Models(self.store, Catalog(), home=folder)
        self.deployments = Deployments(self.store)

    def deploy(self, alias, word, **more):
        return deploy(alias, word, self.models, self.store, system=SYSTEM, **more)

    @contextlib.contextmanager
    def server(self, upstreams=None, weights=None, say=None):
        store = Store.open(self.folder / ".tunesmith")
        router, models = Router(), Models(store, Catalog(), home=self.folder, weights=weights or Weights())
        reload = Reload(router, models, upstreams or {})
        for line in reload.start():
            if say is None:
                raise AssertionError(line)
            say(line)
        with running(create_app(router, store=store, models=models, reload=reload)) as url:
            yield url, router
        store.close()

    def looks(self, alias):
        return Identities(self.store).of(alias)

    def command(self, capsys, *words):
        code = guarded(app, [*words, "--config", str(self.folder / "tunesmith.yaml")])
        return code, capsys.readouterr().out


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = Place(tmp_path_factory.mktemp("identity"))
    yield made
    made.store.close()


@pytest.mark.slow
def test_a_server_looks_by_itself_and_finds_a_wrong_adapter_and_a_stale_prefix(place, capsys):
    first = place.deploy("bot", "base+a")
    place.deploy("other", "base+b")
    with place.server() as (url, router):
        page = url.removesuffix("/v1") + "/metrics"
        until(lambda: httpx.get(page).text.count("tunesmith:identity_same{") == 2)
        shown = httpx.get(page).text
        assert 'tunesmith:identity_same{deployment="1",model_name="bot",variant="tuned"} 1.0' in shown
        assert 'vllm:generation_tokens_total{model_name="bot"}' not in shown, "probes are in no other figure"
        assert Interactions(place.store).answered({"alias": "bot"}) == []
        code, out = place.command(capsys, "identity", "bot", "--url", url)
        assert code == 0
        assert "tuned: same, p 1" in out
        assert "24 probes" in out

        right, wrong = loaded(router.find("bot")), loaded(router.find("other"))
        router.deploy(first, {"tuned": wrong})
        code, out = place.command(capsys, "identity", "bot", "--url", url)
        assert (code, "tuned: differs" in out) == (3, True), "a wrong adapter"
        assert place.looks("bot")[0].probes <= 100
        router.deploy(first, {"tuned": right})
        assert place.command(capsys, "identity", "bot", "--url", url)[0] == 0

        # The same name reloaded with other weights: what was computed of the prompts' common beginning is that of the weights before.
        second = place.deployments.in_force()["other"]
        layers = [module for module in right.engine.fast.model.modules() if hasattr(module, "changes")]
        for layer in layers:
            layer.changes[right.adapter] = layer.changes[wrong.adapter]
        router.deploy(second, {"tuned": right})
        code, out = place.command(capsys, "identity", "other", "--url", url)
        assert (code, "tuned: differs" in out) == (3, True), "a stale prefix"
    code, out = place.command(capsys, "identity")
    assert (code, out.count("differs"), out.count("same")) == (3, 1, 1)
    with place.store.reading() as connection:
        sent = [row.object for row in connection.exec_driver_sql("SELECT object FROM deliveries WHERE type = 'tunesmith.identity.failed'")]
    assert sent == ["bot", "other"], "each finding is announced when it begins"


@pytest.mark.slow
def test_another_model_behind_an_address_is_found_with_and_without_log_probabilities(tmp_path, capsys):
    place = Place(tmp_path)  # of its own: elsewhere nobody has these upstreams
    local = place.models.load(place.models.ref("base+a"), "far")
    there = {"far": local, "plain": EchoModel("plain", prefix="A")}
    with running(create_app(there)) as behind:
        far = {name: Upstream(name, base_url=behind) for name in there}
        place.models.upstreams = {name: (lambda one=one: one) for name, one in far.items()}
        for name in there:
            place.deploy(name, name)
        with place.server(far) as (url, _):
            for name in there:
                assert place.command(capsys, "identity", name, "--url", url)[0] == 0
    there = {"far": place.models.load(place.models.ref("base+b"), "far"), "plain": EchoModel("plain", prefix="B")}
    with running(create_app(there)) as behind:
        far = {name: Upstream(name, base_url=behind) for name in there}
        with place.server(far) as (url, _):
            for name, probes in (("far", 72), ("plain", 72)):
                code, out = place.command(capsys, "identity", name, "--url", url)
                assert (code, f"{probes} probes" in out) == (3, True), out
    place.store.close()


@pytest.mark.slow
def test_weights_that_were_changed_after_they_were_deployed_are_refused_before_they_answer(place):
    tiny.adapter(place.base, place.folder / "c", seed=5)
    before = place.deploy("change", "base+c")
    variant = before.variants[0]
    other = place.models.load(place.models.ref("base+b"), "change")
    with pytest.raises(GateRefused, match="answers probes otherwise"):
        verified(variant, other, before, place.store, "loaded")


# --- publishing --------------------------------------------------------------------------------------------------------------------------


def ask(url, model, tokens=6, headers=None, **more):
    body = {"model": model, "messages": [{"role": "user", "content": "Who signed it?"}], "max_tokens": tokens, "temperature": 0}
    return httpx.post(f"{url}/chat/completions", json=body | more, headers=headers, timeout=600)


def words(url, model):
    answer = ask(url, model)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def held(model):
    """The adapters in memory on a model's base."""
    return set(model.engine.adapters.loaded)


@pytest.mark.slow
def test_more_adapters_than_are_held_answer_each_as_itself_and_none_is_missing(place):
    names = ("first", "second", "third")
    for seed, name in enumerate(names):
        tiny.adapter(place.base, place.folder / name, seed=10 + seed)
        place.deploy(name, f"base+{name}")
    (variant,) = place.deployments.in_force()["third"].variants
    for number in range(40):
        place.deployments.put(f"more-{number}", [variant])
    alone = {name: place.models.load(place.models.ref(name), name) for name in names}
    prompt = Prompt(messages=(Message(role="user", content="Who signed it?"),))
    expected = {name: alone[name].answer([prompt], Sampling(max_tokens=6))[0].text for name in names}
    assert len(set(expected.values())) == 3
    weights = Weights(max_adapters=2)
    with place.server(weights=weights) as (url, router):
        base = loaded(router.find("first"))
        for name in (*names, "more-7", *reversed(names), "more-39", "first"):
            assert words(url, name) == expected.get(name, expected["third"]), name
        base = loaded(router.find("first"))
        assert len(held(base)) <= 3, "two, and what is just being let go"
        folder = place.store.layout.adapters / place.deployments.in_force()["second"].variants[0].model.adapter.rpartition("/")[2]
        folder.rename(folder.with_suffix(".away"))
        try:
            answer = ask(url, "second")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_loaded"), "it is deployed: never 404"
        finally:
            folder.with_suffix(".away").rename(folder)
        assert words(url, "second") == expected["second"]


@pytest.mark.slow
def test_an_answer_that_has_begun_ends_with_its_weights_and_then_they_leave_the_memory(tmp_path):
    place = Place(tmp_path)  # of its own: no other name answers with these weights
    place.deploy("long", "base+a")
    with place.server() as (url, router):
        old, new = loaded(router.find("long")), place.models.load(place.models.ref("base+b"), "new").digest
        key, whole = old.adapter, ask(url, "long", tokens=120).json()["choices"][0]["message"]["content"]
        body = {"model": "long", "messages": [{"role": "user", "content": "Who signed it?"}], "max_tokens": 120, "temperature": 0}
        base = old.with_adapter(None, "base")
        del old
        with httpx.stream("POST", f"{url}/chat/completions", json=body | {"stream": True}, timeout=600) as stream:
            lines = stream.iter_lines()
            first = next(line for line in lines if '"content":"' in line and '"content":""' not in line)
            place.deploy("long", "base+b")
            until(lambda: ask(url, "long").json()["system_fingerprint"] == f"fp_{new[:12]}")
            pieces = [json.loads(line[6:]) for line in [first, *lines] if line.startswith("data: {")]
        text = "".join(choice["delta"].get("content") or "" for piece in pieces for choice in piece["choices"])
        assert text == whole, "the whole answer is that of the weights it began with"
        until(lambda: (base.unload_unheld(), key not in held(base))[1])
    place.store.close()


@pytest.mark.slow
def test_an_adapter_that_cannot_be_loaded_leaves_nothing_of_it_in_memory(place):
    from safetensors.torch import load_file, save_file

    tiny.adapter(place.base, place.folder / "broken", seed=3)
    file = place.folder / "broken" / "adapter_model.safetensors"
    tensors = load_file(file)
    last = sorted(tensors)[-1]
    save_file({**tensors, last: tensors[last][:-1].contiguous()}, file)
    base = place.models.load(place.models.ref("base"), "base")
    before = held(base)
    with pytest.raises(UsageError, match="shape"):
        place.models.load(place.models.ref("base+broken"), "broken")
    tree = base.engine.fast.model
    put = {name for module in tree.modules() for name in getattr(module, "changes", ()) if "broken" in name}
    assert (held(base), put, [name for name in base.engine.choices if name and "broken" in name]) == (before, set(), [])


def damaged(folder, how):
    """Damage an adapter in the store; returns what undoes it."""
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    file = settings if how == "settings" else weights
    before = file.read_bytes()
    if how == "gone":
        away = folder.rename(folder.with_suffix(".away"))
        return lambda: away.rename(folder)
    file.write_bytes(b"{" if how == "settings" else before[: len(before) // 2] if how == "cut" else b"x" * len(before))
    return lambda: file.write_bytes(before)


@pytest.mark.slow
def test_a_variant_that_cannot_be_loaded_keeps_no_other_from_answering(place, capsys):
    place.deploy("shop", "base+a")
    begun = rollouts.canary("shop", "base+b", place.models, place.store, RolloutPlan(steps=(0.5, 1.0), look_s=3600))
    stable, canary = place.deployments.in_force()["shop"].variants
    folder = folder_at(canary.model.adapter, place.store.folder)
    for how in ("gone", "other bytes", "settings", "cut"):
        undo, router = damaged(folder, how), Router()
        (line,) = [line for line in Reload(router, place.models, {}).start() if "'shop'" in line]
        assert line.startswith("NOT SERVED: 'shop' (version"), line
        assert ("variant 'canary'" in line, line.endswith("; tuned answers")) == (True, True), line
        assert loaded(router.find("shop")).digest == stable.model.digest
        if how != "cut":
            undo()
    with place.server(say=[].append) as (url, _):
        answers = [ask(url, "shop", user=f"user-{number}", tokens=1) for number in range(24)]
        assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
        named = ask(url, "shop", headers={"x-tunesmith-variant": "canary"})
        assert named.status_code == 503, "an operator who names it is told"
    rows = [row for row in Interactions(place.store).answered({"alias": "shop"}) if row.user_key]
    arms = {row.variant: (row.fallback, row.model_digest) for row in rows}
    assert arms == {"tuned": (None, stable.model.digest), "canary": ("tuned", stable.model.digest)}
    code, told = place.command(capsys, "deploy", "status", "shop")
    assert (code, "NOT SERVED: variant 'canary'" in told) == (0, True), told
    assert "variant 'canary' of 'shop'" in place.command(capsys, "doctor")[1]
    undo()
    assert not [line for line in Reload(Router(), place.models, {}).start() if "'shop'" in line]
    assert "NOT SERVED" not in place.command(capsys, "deploy", "status", "shop")[1], "no longer said once it could be loaded again"
    after = rollouts.look(begun, place.store, time.time() + 60)
    assert (after.status, "errors" in after.outcome) == ("rolled_back", True), "answered by another is failed, for a guardrail"


@pytest.mark.slow
def test_a_version_is_put_back_only_while_it_is_what_it_was(place, capsys):
    first = place.deploy("back", "base+a")
    place.deploy("back", "base+b")
    assert place.command(capsys, "deploy", "rollback", "back")[0] == 0, "it answers as it did"
    folder = place.store.folder / first.variants[0].model.adapter
    assert folder.parent == place.store.layout.adapters, "what lay elsewhere is kept under its digest"
    place.deploy("back", "base+b")
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes((place.folder / "b" / "adapter_model.safetensors").read_bytes())
    forgetting = Models(place.store, Catalog(), home=place.folder)
    with pytest.raises(GateRefused, match="no longer what it was"):
        roll_back("back", place.store, first.version, verify=forgetting)
    assert place.deployments.in_force()["back"].reason == ""
    assert place.command(capsys, "deploy", "rollback", "back", "--to", str(first.version), "--no-verify")[0] == 0
    file.write_bytes(whole)


STEPS = {
    "stored": ("tunesmith.flow.deploying", "_kept"),
    "probed": ("tunesmith.flow.deploying", "references_of"),
    "written": ("tunesmith.store.deployments", "Deployments.put"),
    "loaded": ("tunesmith.models.local", "LocalModel._put_on"),
    "verified": ("tunesmith.api.reload", "verified"),
    "put in force": ("tunesmith.deploy.router", "Router.deploy"),
}


def publish_and_die(folder, step):
    """Serve what is deployed, publish another adapter, and die (-9) right after that step of it."""
    module, path = STEPS[step]
    *owners, name = path.split(".")
    holder = importlib.import_module(module)
    for owner in owners:
        holder = getattr(holder, owner)
    real, serving = getattr(holder, name), threading.Event()

    def then_die(*args, **more):
        result = real(*args, **more)
        if serving.is_set():
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(holder, name, then_die)
    place = Place.__new__(Place)
    place.folder, place.store = folder, Store.open(folder / ".tunesmith")
    place.models = Models(place.store, Catalog(), home=folder)
    with place.server() as (url, _):
        serving.set()
        deploy("killed", "base+b", place.models, place.store)
        until(lambda: words(url, "killed") is None)


@pytest.mark.slow
def test_a_server_that_is_killed_at_any_step_of_publishing_comes_back_with_the_old_version_or_the_new_one(place):
    prompt = Prompt(messages=(Message(role="user", content="Who signed it?"),))
    texts = {
        name: place.models.load(place.models.ref(f"base+{name}"), name).answer([prompt], Sampling(max_tokens=6))[0].text for name in "ab"
    }
    assert texts["a"] != texts["b"]
    place.deploy("prepared", "base+b")  # its probes are asked before: what loads it then is the server
    seen = {}
    for step in STEPS:
        deploy("killed", "base+a", place.models, place.store)
        process = start(publish_and_die, place.folder, step)
        assert process.wait() == -signal.SIGKILL, (step, process.err[-2000:])
        router = Router()
        assert Reload(router, Models(place.store, Catalog(), home=place.folder, weights=place.models.weights), {}).start() == []
        text = router.find("killed").answer([prompt], Sampling(max_tokens=6))[0].text
        seen[step] = next(name for name, words in texts.items() if words == text)
        variant = router.deployment("killed").variants[0]
        verified(variant, router.find("killed"), router.deployment("killed"), place.store, "loaded")
        assert Identities(place.store).reference(names_answers(variant)) is not None
    assert seen == {"stored": "a", "probed": "a", "written": "b", "loaded": "b", "verified": "b", "put in force": "b"}
