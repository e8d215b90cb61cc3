"""The body of POST /fine_tuning/jobs as one checked record, and its hyperparameters as a training plan; knows nothing about the queue.

OpenAI's own hyperparameters are checked against its documented ranges. Any other key in `hyperparameters` must be one of `EXTRAS`,
which are keys of the training plan under the names that people use for them; what is neither is refused by name.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from tunesmith.core import wire
from tunesmith.core.config import convert
from tunesmith.core.errors import ConfigError, UsageError, nearest
from tunesmith.core.types import Record, digest
from tunesmith.core.wire import BadRequest
from tunesmith.store.jobs import JobRequest
from tunesmith.train.methods import JOB_METHODS
from tunesmith.train.methods.base import Method
from tunesmith.train.plan import Plan, ResolvedReinforcement
from tunesmith.train.resolve import check

if TYPE_CHECKING:
    from tunesmith.evaluate.graders import Grader

# Inclusive bounds (low, high, whole numbers only); a bound with "excluded" is named in `_OPEN`.
_RANGES: dict[str, tuple[float, float, bool]] = {
    "batch_size": (1, 256, True),
    "n_epochs": (1, 50, True),
    "learning_rate_multiplier": (0, 1e6, False),
    "beta": (0, 2, False),
    "compute_multiplier": (1e-5, 10, False),
    "eval_interval": (1, 1 << 31, True),
    "eval_samples": (1, 1 << 31, True),
}
_OPEN = frozenset({"learning_rate_multiplier", "beta", "compute_multiplier"})  # the lower bound itself is not allowed
# What the reasoning effort means here: how many tokens an answer may have ("default" leaves it to the plan).
EFFORTS = {"default": None, "low": 128, "medium": 256, "high": 1024}
COMMON = ("batch_size", "learning_rate_multiplier", "n_epochs")
# What a job of each type shows, whether it was given or not.
KEYS = {kind: (*COMMON, *method.job.shown) for kind, method in JOB_METHODS.items()}
# Keys of the plan that a client may set; what belongs to the machine (threads, device, dtype) is not among them.
EXTRAS = {
    **{name: name for name in ("learning_rate", "max_length", "over_length", "schedule", "warmup_ratio", "weight_decay", "max_grad_norm")},
    **{name: name for name in ("keep", "eval_every", "checkpoint_every")},
    "context_length": "max_length",
    "packing": "pack",
    "pack": "pack",
    **{f"lora_{name}": f"adapter.{name}" for name in ("r", "alpha", "dropout", "targets")},
    "lora": "adapter",
}


class _Wandb(Record, frozen=True):
    project: str
    name: str | None = None
    entity: str | None = None
    tags: tuple[str, ...] = ()


class _Integration(Record, frozen=True):
    type: Literal["wandb"]
    wandb: _Wandb


class _Tuning(Record, frozen=True):
    hyperparameters: dict[str, Any] | None = None


class _Reinforcement(_Tuning, frozen=True):
    grader: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None


if TYPE_CHECKING:

    class _Method(Record, frozen=True):
        type: str

else:  # a type and a section for each method that there is
    _SECTIONS = [(kind, (_Reinforcement if method.graded else _Tuning) | None, None) for kind, method in JOB_METHODS.items()]
    _Method = msgspec.defstruct("_Method", [("type", Literal[tuple(JOB_METHODS)]), *_SECTIONS], bases=(Record,), frozen=True, kw_only=True)


class _Body(Record, frozen=True):
    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int | None = None
    metadata: dict[str, str] | None = None
    integrations: tuple[_Integration, ...] | None = None
    method: _Method | None = None
    hyperparameters: dict[str, Any] | None = None
    priority: int = 0


def job_request(body: bytes, *, python: bool = False, word_of: Callable[[str], str] = str) -> JobRequest:
    """The checked request of its JSON bytes; `python` allows Python graders, `word_of` gives a grading model's name as the
    word by which a worker finds it.

    Raises BadRequest with the key, what came and what was allowed.
    """
    tree = wire.decode_object(body)
    asked = wire.convert(tree, _Body)
    check_metadata(asked.metadata)
    if asked.suffix is not None and not 1 <= len(asked.suffix) <= 64:
        raise BadRequest(f"'suffix' has {len(asked.suffix)} characters", param="suffix", code="invalid_value", allowed="1 to 64")
    if asked.suffix is not None and not asked.suffix.isprintable():
        what = f"'suffix' is {asked.suffix!r}: it has characters that cannot be printed"
        raise BadRequest(what, param="suffix", code="invalid_value", allowed="letters, digits, signs and spaces")
    if asked.seed is not None and not 0 <= asked.seed <= 2147483647:
        raise BadRequest(f"'seed' is {asked.seed}", param="seed", code="invalid_value", allowed="0 to 2147483647")
    if not -100 <= asked.priority <= 100:
        raise BadRequest(f"'priority' is {asked.priority}", param="priority", code="invalid_value", allowed="-100 to 100")
    if asked.integrations is not None and len(asked.integrations) > 5:
        raise BadRequest(f"{len(asked.integrations)} integrations", param="integrations", code="invalid_value", allowed="at most 5")
    kind = asked.method.type if asked.method else "supervised"
    method = JOB_METHODS[kind]
    tuning = (getattr(asked.method, kind) if asked.method else None) or _Reinforcement()
    where = f"method.{kind}.hyperparameters" if tuning.hyperparameters is not None else "hyperparameters"
    given = tuning.hyperparameters if tuning.hyperparameters is not None else (asked.hyperparameters or {})
    shown, extras = _hyperparameters(given, method, where)
    if method.graded:
        _reinforce(extras, shown, tuning, python, word_of)
    for name in method.job.models:
        _put(extras, method.job.options[name], _model_of(shown[name], f"{where}.{name}", word_of))
    plan(method, extras, shown, where)  # refused now, not when a worker has time
    more = {"grader": tuning.grader} if method.graded else {}
    return JobRequest(
        model=asked.model,
        training_file=asked.training_file,
        validation_file=asked.validation_file,
        suffix=asked.suffix,
        seed=random.SystemRandom().randrange(1 << 31) if asked.seed is None else asked.seed,
        metadata=asked.metadata,
        integrations=None if asked.integrations is None else [msgspec.to_builtins(integration) for integration in asked.integrations],
        method={"type": kind, kind: {"hyperparameters": shown, **more}},
        extras=extras,
        priority=asked.priority,
        fingerprint=digest(tree),
    )


def check_metadata(metadata: dict[str, str] | None) -> None:
    """At most 16 pairs, keys of 64 and values of 512 characters. Raises BadRequest."""
    for key, value in (metadata or {}).items():
        if len(key) > 64 or len(value) > 512:
            allowed = "keys of at most 64 characters, values of at most 512"
            raise BadRequest(f"metadata '{key[:64]}' is too long", param="metadata", code="invalid_value", allowed=allowed)
    if metadata and len(metadata) > 16:
        raise BadRequest(f"'metadata' has {len(metadata)} pairs", param="metadata", code="invalid_value", allowed="at most 16")


def grader_of(tree: Any, param: str, *, python: bool) -> Grader:
    """The typed grader of its JSON at `param`; `python` allows Python graders. Raises BadRequest."""
    from tunesmith.evaluate.graders import parse

    if not python and _runs_python(tree):
        allowed = "the other types; Python once the server's tunesmith.yaml has serve.python_graders: true"
        raise BadRequest(
            "a grader is of type 'python', and this server runs no Python", param=param, code="invalid_grader", allowed=allowed
        )
    try:
        return parse(tree, python=python)
    except UsageError as error:
        raise BadRequest(str(error), param=param, code="invalid_grader") from error


def _runs_python(part: Any) -> bool:
    if isinstance(part, list):
        return any(map(_runs_python, part))
    return isinstance(part, dict) and (part.get("type") == "python" or any(map(_runs_python, part.values())))


def _reinforce(extras: dict[str, Any], shown: dict[str, Any], asked: _Reinforcement, python: bool, word_of: Callable[[str], str]) -> None:
    """Add to the plan's tree what a reinforcement job asks for."""
    key, form = "method.reinforcement.grader", "method.reinforcement.response_format"
    if asked.response_format not in (None, {"type": "text"}):
        what = f"'{form}' is {str(asked.response_format)[:100]}: the answers that a job draws are not held to a format here"
        allowed = "{'type': 'text'}, or no such key and a grader that gives nothing for another format"
        raise BadRequest(what, param=form, code="unsupported_parameter", allowed=allowed)
    if asked.grader is None:
        raise BadRequest(f"Missing required parameter: '{key}'", param=key, code="missing_required_parameter")
    grader_of(asked.grader, key, python=python)
    try:
        options: dict[str, Any] = {"grader": _with_models(asked.grader, word_of)}
    except UsageError as error:
        raise BadRequest(str(error), param=key, code="invalid_grader") from error
    if shown["compute_multiplier"] != "auto":
        options["samples"] = max(2, round(ResolvedReinforcement().samples * shown["compute_multiplier"]))
    if EFFORTS[shown["reasoning_effort"]] is not None:
        options["max_tokens"] = EFFORTS[shown["reasoning_effort"]]
    if shown["eval_samples"] != "auto":
        options["eval_samples"] = shown["eval_samples"]
    if shown["eval_interval"] != "auto":
        extras["eval_every"] = shown["eval_interval"]
    extras["reinforcement"] = options | extras.get("reinforcement", {})


def _with_models(grader: Any, name_of: Callable[[str], str]) -> Any:
    """The grader (or a part of one) with `name_of(model)` for the name of each model that it asks."""
    if isinstance(grader, list):
        return [_with_models(part, name_of) for part in grader]
    if not isinstance(grader, dict):
        return grader
    whole = {key: _with_models(part, name_of) for key, part in grader.items()}
    asks = whole.get("type") in ("score_model", "label_model") and isinstance(whole.get("model"), str)
    return whole | {"model": name_of(whole["model"])} if asks else whole


def _model_of(name: Any, param: str, word_of: Callable[[str], str]) -> str:
    """What a worker finds the model by that a client calls `name`."""
    if name in (None, "auto"):
        raise BadRequest(f"Missing required parameter: '{param}'", param=param, code="missing_required_parameter")
    if not isinstance(name, str):
        raise BadRequest(f"'{param}' is {name!r}", param=param, code="invalid_type", allowed="the name of a model")
    try:
        return word_of(name)
    except BadRequest as error:
        raise BadRequest(error.what, param=param, code="invalid_value", allowed=error.allowed) from error


def _hyperparameters(given: dict[str, Any], method: Method, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what is shown: every documented key, "auto" where none came, and the extra keys as they came; the extra keys as a plan's tree)."""
    keys = KEYS[method.job.type]
    shown: dict[str, Any] = {key: "default" if key == "reasoning_effort" else "auto" for key in keys}
    extras: dict[str, Any] = {}
    known = EXTRAS | method.job.options
    for key, value in given.items():
        param = f"{where}.{key}"
        if key in keys:
            if value is not None:
                shown[key] = value if key in method.job.models else _checked(key, value, param)
            continue
        if key not in known:
            hint = nearest(key, [*keys, *known])
            raise BadRequest(
                f"Unrecognized request argument supplied: {param}" + (f"; {hint}" if hint else ""),
                param=param,
                code="unknown_parameter",
                allowed=", ".join(dict.fromkeys([*keys, *known])),
            )
        shown[key] = value
        _put(extras, known[key], _adapter(value, param) if key == "lora" else value)
    return shown, extras


def _adapter(value: Any, param: str) -> Any:
    """`lora: true`, `lora: false`, or the adapter's own keys, of which `start_from` is no client's: it names a folder of this machine, and
    may be another project's. Raises BadRequest."""
    if isinstance(value, dict) and "start_from" in value:
        raise BadRequest(
            f"Unrecognized request argument supplied: {param}.start_from",
            param=f"{param}.start_from",
            code="unknown_parameter",
            allowed="the fine-tuned model's own name (ft:…) as 'model': training goes on with its adapter",
        )
    return {"kind": "lora" if value else "none"} if isinstance(value, bool) else value


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    head, dot, rest = path.partition(".")
    if dot:
        _put(tree.setdefault(head, {}), rest, value)
    elif isinstance(value, dict):
        tree[head] = {**tree.get(head, {}), **value}
    else:
        tree[head] = value


def _checked(key: str, value: Any, param: str) -> Any:
    if key == "reasoning_effort":
        if value not in EFFORTS:
            raise BadRequest(f"'{param}' is {value!r}", param=param, code="invalid_value", allowed=", ".join(EFFORTS))
        return value
    low, high, whole = _RANGES[key]
    allowed = f'"auto", or a number {"above" if key in _OPEN else "from"} {low:g} up to {high:g}'
    if value == "auto":
        return value
    number = isinstance(value, int) or (isinstance(value, float) and (not whole or value.is_integer()))
    if isinstance(value, bool) or not number or not low <= value <= high or (key in _OPEN and value == low):
        raise BadRequest(f"'{param}' is {value!r}", param=param, code="invalid_value", allowed=allowed)
    return int(value) if whole else value


def plan(method: Method, extras: dict[str, Any], shown: dict[str, Any], where: str = "hyperparameters", **fixed: Any) -> Plan:
    """The training plan of a job: its extra keys, those of its shown ones that are options of the method, and `fixed` fields. Where a
    method may cut long rows, OpenAI does. Raises BadRequest naming the key."""
    tree = copy.deepcopy(extras)
    for key in method.job.shown:
        if key in method.job.options and key not in method.job.models and shown[key] != "auto":
            _put(tree, method.job.options[key], shown[key])
    cut = "truncate" if "truncate" in method.over_length else "auto"
    try:
        made = msgspec.structs.replace(
            convert(tree, Plan), method=method.name, keep_checkpoints=3, over_length=extras.get("over_length", cut), **fixed
        )
        check(made)
    except ConfigError as error:
        path = error.where.removeprefix("train.").rpartition(": ")[2]
        key = {place: name for name, place in (EXTRAS | method.job.options).items()}.get(path, path)
        raise BadRequest(f"{error.what} (at {where}.{key})", param=f"{where}.{key}", code="invalid_value", allowed=error.allowed) from error
    return made


def option_of(made: Plan, path: str) -> Any:
    """The value at a place in the plan, such as `preference.beta`."""
    return functools.reduce(getattr, path.split("."), made)
