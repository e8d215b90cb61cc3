"""Names put in force, changed and taken back by a person, not by a run's gate: each change is a new version. Loads what it deploys once, to
write down its digest."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from msgspec.structs import replace

from tunesmith.core.atomic import atomic_folder
from tunesmith.core.deployment import Deployment, StrategyName, Variant
from tunesmith.core.digests import files_digest
from tunesmith.core.errors import GateRefused, NotFound, TunesmithError, UsageError, nearest
from tunesmith.core.model_ref import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, ModelRef, place_of
from tunesmith.core.seal import seal
from tunesmith.core.types import Record
from tunesmith.flow.identity import model_of, references_of, verified
from tunesmith.models.echo import EchoModel
from tunesmith.models.resolve import Models, is_remote
from tunesmith.models.retrieval import asked_with
from tunesmith.store.deployments import Deployments
from tunesmith.store.indexes import Indexes
from tunesmith.store.store import Store

_Role = Literal["alone", "weight", "canary", "shadow", "fallback"]
_STRATEGIES: dict[_Role, StrategyName] = {"weight": "split", "canary": "split", "shadow": "shadow", "fallback": "fallback"}
_NAME = "letters, digits, '.', '-' and '_'"


class Role(Record, frozen=True):
    """What a variant is to do beside those that its alias has: answer `alone` in their place, answer its `weight` of the requests (a
    `canary` by that name), answer copies as a `shadow`, or answer as a `fallback` where those before it fail.

    `name` is the variant's; `timeout_s` and `copies_per_minute` are as in `Variant`.
    """

    role: _Role = "alone"
    weight: float | None = None
    name: str | None = None
    timeout_s: float | None = None
    copies_per_minute: int | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and not (0 <= self.weight < 1 or (self.weight == 1 and self.role == "shadow")):
            raise UsageError(
                f"a weight of {self.weight}", allowed="a share from 0 to less than 1", remedy="deploy promote gives all to one"
            )
        if self.weight is not None and self.role not in ("weight", "canary", "shadow"):
            raise UsageError(f"a weight, and the variant answers {self.role}", allowed="a weight beside others, or of a shadow")
        if self.name is not None and not (self.name.replace(".", "").replace("-", "").replace("_", "").isalnum() and self.name.isascii()):
            raise UsageError(f"a variant cannot be called '{self.name}'", allowed=_NAME)
        if self.copies_per_minute is not None and self.role != "shadow":
            raise UsageError("copies a minute, and no shadow", allowed="--shadow --copies-per-minute N")


def deploy(
    alias: str,
    word: str,
    models: Models,
    store: Store,
    role: Role = Role(),
    *,
    template: str | None = None,
    reason: str = "",
    by: str = "",
    system: str | None = None,
) -> Deployment:
    """Let `alias` answer with what the word names, as `role` says: a model here, an upstream's name, or what another name answers with,
    each also as MODEL?INDEX; the index is written down by its digest, so that a new one of the same name changes no deployment.
    What its weights answer to probes is written down with it; they are asked under the message `system`, the task's own.

    Raises NotFound for what the word does not name, UsageError for a model elsewhere that is no upstream, for a `template` without an
    index, and for a role that does not go with the variants in force.
    """
    if role.role != "alone":
        change = joined(alias, word, models, store, role, template=template)
        asked = references_of(change.variants[-1:], models, store, alias, system=system)
        after, strategy = change.before, _STRATEGIES[role.role]
        return Deployments(store, references=asked).put(alias, change.variants, strategy=strategy, reason=reason, by=by, after=after)
    before = Deployments(store).in_force().get(alias)
    variant = variant_of(alias, word, models, store, template)
    variant = replace(variant, name=role.name or variant.name, weight=1.0, timeout_s=role.timeout_s, copies_per_minute=None)
    asked, after = references_of([variant], models, store, alias, system=system), before.version if before is not None else 0
    return Deployments(store, references=asked).put(alias, [variant], reason=reason, by=by, after=after)


class Joined(NamedTuple):
    """The variants of an alias with a further one, the `name` of that, and the version `before`."""

    variants: Sequence[Variant]
    name: str
    before: int


def joined(alias: str, word: str, models: Models, store: Store, role: Role, *, template: str | None = None, new: bool = False) -> Joined:
    """What `deploy` would put in force for a role beside others; raises as that does. A `new` variant is none that is there, and has a name
    that no other model ever had for this alias, so that no conversation is taken for its own."""
    deployments = Deployments(store)
    before = deployments.in_force().get(alias)
    variant = variant_of(alias, word, models, store, template)
    if before is None:
        raise UsageError(
            f"'{alias}' answers with nothing yet, and a {role.role} is beside others",
            allowed="an alias that is deployed",
            remedy=f"tunesmith deploy {alias} MODEL",
        )
    if before.enrolment is not None:
        raise UsageError(
            f"'{alias}' is under the experiment '{before.enrolment.experiment}'",
            allowed="an alias that is under none",
            remedy=f"tunesmith ab stop {alias} --keep, or --promote VARIANT",
        )
    strategy = _STRATEGIES[role.role]
    if before.strategy != strategy and len(before.variants) > 1:
        raise UsageError(
            f"'{alias}' has the strategy {before.strategy} with the variants {', '.join(each.name for each in before.variants)}",
            allowed=f"one variant, or the strategy {strategy}",
            remedy=f"tunesmith deploy promote {alias} VARIANT",
        )
    if new:
        there = next((each for each in before.variants if _answers_as(each, variant)), None)
        if there is not None:
            raise UsageError(f"'{alias}' answers with '{word}' already, as its variant '{there.name}'", allowed="another model")
        taken = {each.name for version in deployments.history(alias) for each in version.variants}
        role = replace(role, name=role.name or _numbered(role.role, taken))
    variants = _joined(before, variant, role)
    return Joined(variants, variants[-1].name, before.version)


def promote(alias: str, name: str, store: Store, *, reason: str = "", by: str = "") -> Deployment:
    """Let one of the variants of an alias answer alone. Raises NotFound for an alias or a variant that is not there, UsageError for one
    that answers alone already."""
    before = _in_force(alias, store)
    variant = before.variant(name)
    if variant is None:
        names = [each.name for each in before.variants]
        raise NotFound(f"'{alias}' has no variant '{name}'", allowed=", ".join(names), remedy=nearest(name, names))
    if len(before.variants) == 1:
        raise UsageError(f"'{name}' answers alone for '{alias}' (version {before.version})", allowed="an alias with several variants")
    alone = replace(variant, weight=1.0, copies_per_minute=None)
    return Deployments(store).put(alias, [alone], reason=reason or f"promoted '{name}'", by=by, after=before.version)


def roll_back(
    alias: str, store: Store, to: int | None = None, *, reason: str = "", by: str = "", verify: Models | None = None
) -> Deployment:
    """Let an alias answer as it did in the version `to`, by default the one before the one in force; with the models of `verify` only once
    its variants have answered probes as they did then.

    Raises NotFound for an alias or a version that is not there, UsageError where nothing would change, GateRefused for variants that are
    no longer what they were, or that do not answer.
    """
    before = _in_force(alias, store)
    history = Deployments(store).history(alias)
    others = [each for each in history if not _alike(each, before) and each.enrolment is None]  # an experiment is begun, not gone back to
    if to is None and not others:
        raise UsageError(f"'{alias}' has never answered otherwise than in version {before.version}", allowed="an alias that was changed")
    target = others[0] if to is None else next((each for each in history if each.version == to), None)
    if target is None:
        raise NotFound(f"'{alias}' has no version {to}", allowed=", ".join(str(each.version) for each in history))
    if _alike(target, before):
        raise UsageError(f"'{alias}' answers as in version {target.version} already (version {before.version})", allowed="another version")
    if verify is not None:
        _verify(target, verify, store)
    why = reason or f"back to version {target.version}"
    return Deployments(store).put(alias, target.variants, strategy=target.strategy, reason=why, by=by, after=before.version)


def _verify(target: Deployment, models: Models, store: Store) -> None:
    """Ask every variant of a version its probes. Raises GateRefused where one does not answer as it did."""
    for variant in target.variants:
        try:
            verified(variant, model_of(variant, models, target.alias), target, store, "rollback")
        except TunesmithError as error:
            raise GateRefused(
                f"version {target.version} was not put back: '{variant.name}' is no longer what it was: {error.what}",
                where=error.where,
                allowed=error.allowed,
                remedy="put its files back, or --no-verify to have it anyway",
            ) from error


def history_of(alias: str, store: Store) -> list[Deployment]:
    """Every version of an alias, the newest first. Raises NotFound."""
    _in_force(alias, store)
    return Deployments(store).history(alias)


def _in_force(alias: str, store: Store) -> Deployment:
    in_force = Deployments(store).in_force()
    if alias not in in_force:
        raise NotFound(f"nothing is deployed as '{alias}'", allowed=", ".join(in_force) or "none", remedy=nearest(alias, in_force))
    return in_force[alias]


def _alike(one: Deployment, other: Deployment) -> bool:
    return (one.strategy, one.variants) == (other.strategy, other.variants)


def _joined(before: Deployment, variant: Variant, role: Role) -> Sequence[Variant]:
    """The variants of an alias with a further one, or with new settings of the one that answers as it does."""
    there = next((each for each in before.variants[1:] if role.name in (None, each.name) and _answers_as(each, variant)), None)
    name = role.name or (there.name if there is not None else _free(role, variant, before))
    if there is None and before.variant(name) is not None:
        names = ", ".join(each.name for each in before.variants)
        raise UsageError(
            f"'{before.alias}' has a variant '{name}' already, with another model",
            allowed=f"a name that is not one of {names}",
            remedy=f"--as NAME, or tunesmith deploy promote {before.alias} VARIANT first",
        )
    share = role.weight if role.weight is not None else 1.0
    more = {"weight": share, "timeout_s": role.timeout_s, "copies_per_minute": role.copies_per_minute}
    joined = replace(variant, name=name, **more)
    others = [each for each in before.variants if each is not there]
    if _STRATEGIES[role.role] == "split":
        total = sum(each.weight for each in others)
        if not total:
            raise UsageError(f"no other variant of '{before.alias}' has a weight", allowed="at least one, for the rest of the requests")
        others = [replace(each, weight=round(each.weight / total * (1 - share), 12)) for each in others]
    named = {each.name: each for each in [*others, joined]}
    order = [each.name for each in before.variants] + ([] if there is not None else [name])
    return [named[each] for each in order]


def _answers_as(one: Variant, other: Variant) -> bool:
    """Whether both answer alike, whatever they are called and how many requests they get."""
    same = {"name": "", "weight": 1.0, "timeout_s": None, "copies_per_minute": None}
    return replace(one, **same) == replace(other, **same)


def _free(role: Role, variant: Variant, before: Deployment) -> str:
    """What a further variant is called: by its role, else as it is called itself, with a number where that name is taken."""
    if role.role != "weight":
        return role.role
    return _numbered(variant.name, {each.name for each in before.variants})


def _numbered(word: str, taken: Collection[str]) -> str:
    """The word, with a number where it is taken."""
    number, name = 2, word
    while name in taken:
        name, number = f"{word}-{number}", number + 1
    return name


def _kept(ref: ModelRef, store: Store) -> ModelRef:
    """The model with its adapter where nobody changes it: one of another folder is copied into the store under the digest of its files."""
    if ref.adapter is None or not Path(ref.adapter).is_absolute():
        return ref
    source = Path(ref.adapter)
    files = [source / ADAPTER_SETTINGS, source / ADAPTER_WEIGHTS]
    if not all(file.is_file() for file in files):
        return ref  # said by who loads it
    place = store.layout.adapters / files_digest(files)
    if not place.is_dir():
        with atomic_folder(place) as work:
            for file in files:
                shutil.copyfile(file, work / file.name)
            seal(work)
    return replace(ref, adapter=place_of(place, store.folder))


def variant_of(alias: str, word: str, models: Models, store: Store, template: str | None) -> Variant:
    """What the word names, as a variant."""
    plain, retrieval = asked_with(word)
    if template is not None:
        if retrieval is None:
            raise UsageError(f"a template, and '{word}' looks nothing up", where="template", allowed="MODEL?INDEX")
        retrieval = replace(retrieval, template=template)
    if retrieval is not None:
        retrieval = replace(retrieval, index=Indexes(store.layout).find(retrieval.index))
    if not is_remote(plain) and (known := models.variant(plain)) is not None:
        if retrieval is not None and known.retrieval is not None:
            raise UsageError(f"'{plain}' looks passages up already", allowed=f"{plain} alone")
        variant = known if retrieval is None else replace(known, retrieval=retrieval)
    elif plain in models.upstreams:
        variant = Variant(name=plain, upstream=plain, retrieval=retrieval)
    elif is_remote(plain):
        names = ", ".join(models.upstreams) or "none is configured"
        raise UsageError(f"'{plain}' answers elsewhere", allowed=f"a model here, or an upstream ({names})", remedy="serve.upstreams")
    else:
        ref = _kept(models.ref(plain), store)
        name = "tuned" if ref.trained else "base"
        lazy = models.lazy(ref, alias)
        variant = Variant(name=name, model=replace(ref, digest=lazy.digest), retrieval=retrieval)
    if retrieval is not None:
        models.grounded(EchoModel(), retrieval)  # refuses what the index cannot do, whoever answers
    return variant
