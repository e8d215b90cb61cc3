"""The one place where a request ends, and who answers it: every kind of request leaves one row that leads back to what answered."""

from __future__ import annotations

import pytest

from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.errors import ConfigError, NotFound
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.types import Message
from tunesmith.deploy.router import Router
from tunesmith.models.echo import EchoModel


def deployment(version=3, **more) -> Deployment:
    variants = more.pop("variants", (variant("a"), variant("b")))
    return Deployment(alias="bot", version=version, variants=variants, **more)


def variant(name, **more) -> Variant:
    return Variant(name=name, model=ModelRef(base="echo"), **more)


def test_an_alias_leads_to_its_deployment_variant_and_model():
    router, first = Router({"echo": EchoModel()}), EchoModel("first")
    router.deploy(deployment(), {"a": first, "b": EchoModel("second")})
    target = router.target("bot", "somebody")
    assert (target.variant.name, target.deployment, target.propensity, target.model) == ("a", 3, 1.0, first)
    assert (router.target("echo").deployment, router.target("echo").propensity) == (None, None)
    with pytest.raises(NotFound, match="did you mean 'bot'"):
        router.target("bob")
    router.deploy(deployment(4, variants=(variant("b"),)), {"b": EchoModel()})
    assert (router.target("bot").deployment, router.target("bot").variant.name) == (4, "b")
    with pytest.raises(ConfigError, match="comes with models for"):
        router.deploy(deployment(5), {"a": first})


def test_a_variant_brings_its_instruction():
    router = Router()
    router.deploy(deployment(variants=(variant("a", instruction="be brief"),)), {"a": EchoModel()})
    asked = tuple(Message(role=role, content=role) for role in ("system", "user", "assistant", "developer", "user"))
    told = router.target("bot").instructed(asked)
    assert [(m.role, m.content) for m in told] == [("system", "be brief"), ("user", "user"), ("assistant", "assistant"), ("user", "user")]
    with pytest.raises(ConfigError, match="max_tokens, temperature, top_p"):
        variant("a", sampling={"temprature": 1.0})
