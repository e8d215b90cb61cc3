"""The space of plans: which keys vary, over which values, and why; ready for each method, or a user's own. Knows nothing about training.

A key is one of the plan's, with dots (`adapter.r`). A choice such as `2r` for alpha is that many times the plan's rank.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tunesmith.core.errors import ConfigError, nearest
from tunesmith.core.types import Record
from tunesmith.tune.settings import Axis, Tune

TIMES_RANK = re.compile(r"^(\d+(?:\.\d+)?|)r$")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_REGRET = "Schulman et al., LoRA Without Regret, Thinking Machines 2025"
_CLIFF = "a decade below the rule and half a decade above it: above the stable rates is a cliff (`make bench-tune`)"


class Varied(Record, frozen=True):
    """One key of a space: its values, the default plan's own among them, and the source of its bounds."""

    key: str
    axis: Axis
    default: Any
    whole: bool = False  # whole numbers
    source: str = ""

    @property
    def labels(self) -> tuple[str | int | float | bool, ...]:
        """The choices as words of a database: what is no plain value as JSON."""
        return tuple(label(value) for value in self.axis.choices)

    @property
    def rising(self) -> tuple[int | float, ...]:
        """The choices in rising order where all of them are numbers; else none."""
        numbers = [value for value in self.axis.choices if isinstance(value, int | float) and not isinstance(value, bool)]
        return tuple(sorted(numbers)) if len(numbers) == len(self.axis.choices) else ()

    def value(self, word: Any) -> Any:
        """The plan's value of a choice's word, or the number of a range."""
        return self.axis.choices[self.labels.index(word)] if self.axis.choices else word

    def grid(self) -> list[Any]:
        """The values that a grid takes."""
        axis = self.axis
        if axis.choices:
            return list(self.labels)
        low, high = float(axis.low or 0), float(axis.high or 0)
        if axis.step is not None:
            values = [low + i * axis.step for i in range(math.floor((high - low) / axis.step + 1e-9) + 1)]
        elif axis.log:
            values = [float(f"{value:.6g}") for value in np.geomspace(low, high, axis.points)]
        else:
            values = [float(f"{value:.6g}") for value in np.linspace(low, high, axis.points)]
        return list(dict.fromkeys(round(value) for value in values)) if self.whole else values

    def text(self) -> str:
        """The values in a few words."""
        axis = self.axis
        if axis.choices:
            return ", ".join(map(str, self.labels))
        return f"{axis.low:g} to {axis.high:g}{', logarithmic' if axis.log else ''}"


def label(value: Any) -> str | int | float | bool:
    """A value as a database keeps it."""
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)


@dataclass(frozen=True)
class Ground:
    """What ready spaces are made from: the method and how its options are called, the default plan's values by key, how many training rows
    there are, the base's width, and the names of the layers that an adapter may reach."""

    method: str
    section: str
    options: tuple[str, ...]
    default: Mapping[str, Any]
    rows: int
    hidden_size: int
    layers: tuple[str, ...] = ()
    fixed: frozenset[str] = field(default_factory=frozenset)


def ready(ground: Ground) -> dict[str, tuple[Axis, str]]:
    """The axes that fit the method and the size, each with its source, around the default plan's own values."""
    default = ground.default
    found: dict[str, tuple[Axis, str]] = {"learning_rate": (_rates(default["learning_rate"]), f"{_REGRET}; {_CLIFF}")}
    if default["adapter.kind"] == "lora":
        found |= _adapter(ground)
    found["batch_size"] = (_around(default["batch_size"], 2, max(2, ground.rows // 4)), f"LoRA tolerates large batches worse: {_REGRET}")
    epochs = default["epochs"]
    found["epochs"] = (_chosen({max(1, epochs // 2), epochs, 2 * epochs}), "1–4 epochs are usual; half and twice the rule for so many rows")
    found["warmup_ratio"] = (_chosen({default["warmup_ratio"], 0.03, 0.1}), "3–10 % are usual")
    if ground.section == "preference" and "beta" in ground.options:
        beta = default["preference.beta"]
        found["preference.beta"] = (_chosen({beta, 0.03, 0.1, 0.3}), "DPO, arXiv 2305.18290: .1, and half a decade to each side")
    if ground.section == "reinforcement":
        found["reinforcement.beta"] = (_chosen({default["reinforcement.beta"], 0.0, 0.01, 0.04}), "GRPO, arXiv 2402.03300: .04; DAPO: 0")
    if ground.section == "distillation":
        found["distillation.beta"] = (_chosen({default["distillation.beta"], 0.0, 0.5, 1.0}), "arXiv 2306.13649: both ends and the middle")
    return {key: axis for key, axis in found.items() if key not in ground.fixed and _varies(axis[0])}


def _varies(axis: Axis) -> bool:
    return not axis.choices or len(axis.choices) > 1


def _rates(rule: float) -> Axis:
    """A decade below the rule and half a decade above it."""
    return Axis(low=float(f"{rule / 10:.3g}"), high=float(f"{rule * math.sqrt(10):.3g}"), log=True)


def _around(value: int, factor: int, most: int) -> Axis:
    return _chosen({value, *(size for size in (max(1, value // factor), value * factor) if size <= most)})


def _chosen(values: set[Any]) -> Axis:
    return Axis(choices=tuple(sorted(values)))


def _adapter(ground: Ground) -> dict[str, tuple[Axis, str]]:
    rank, alpha = ground.default["adapter.r"], ground.default["adapter.alpha"]
    ranks = {rank, *(each for each in (rank // 4, rank * 2) if 4 <= each <= ground.hidden_size // 2)}
    times = "r" if alpha == rank else "2r" if alpha == 2 * rank else alpha
    own = ground.default["adapter.targets"]
    found = {
        "adapter.r": (_chosen(ranks), f"capacity should exceed the data's information, beyond that rank matters little: {_REGRET}"),
        "adapter.alpha": (Axis(choices=tuple(dict.fromkeys([times, "r", "2r", "4r"]))), "arXiv 2106.09685, 2312.03732: the scale alpha/r"),
        "adapter.dropout": (_chosen({ground.default["adapter.dropout"], 0.0, 0.05, 0.1}), "0 to .1 on small data, arXiv 2106.09685"),
    }
    if own == "all-linear" and set(ATTENTION) <= set(ground.layers):
        found["adapter.targets"] = (Axis(choices=(own, ATTENTION)), f"all linear layers beat attention alone, at a higher price: {_REGRET}")
    return found


def space(tune: Tune, ground: Ground) -> tuple[Varied, ...]:
    """The keys that vary, each with the default plan's own value among its values. Raises ConfigError for a key that no plan has."""
    known = ready(ground)
    wanted = {key: known[key] for key in known} if not tune.space else {}
    for key, axis in tune.space.items():
        where = f"tune.space.{key}"
        if key not in ground.default:
            raise ConfigError(
                f"unknown key '{key}'", where=where, allowed="keys of train:, with dots", remedy=nearest(key, list(ground.default))
            )
        if key in ground.fixed:
            raise ConfigError(
                f"'{key}' cannot vary within a study: it changes the rows or how they are measured", where=where, remedy="leave it out"
            )
        if axis == "auto":
            if key not in known:
                raise ConfigError(
                    f"'{key}' has no ready values", where=where, allowed=f"auto for {', '.join(known)}", remedy="give low, high"
                )
            wanted[key] = known[key]
        else:
            wanted[key] = (axis, "the project's tune.space")
    if not wanted:
        raise ConfigError("nothing varies", where="tune.space", allowed="at least one key")
    return tuple(_varied(key, axis, ground.default, source) for key, (axis, source) in wanted.items())


def _varied(key: str, axis: Axis, default: Mapping[str, Any], source: str) -> Varied:
    """The axis with the default's own value in it: the default is a trial like any other."""
    own = default[key]
    if axis.choices:
        choices = tuple(tuple(value) if isinstance(value, list) else value for value in axis.choices)
        own = next((value for value in choices if times_rank(value, default) == own), own)
        if own not in choices:
            axis = Axis(choices=(*choices, own))
        elif choices != axis.choices:
            axis = Axis(choices=choices)
        return Varied(key=key, axis=axis, default=label(own), source=source)
    low, high = axis.low, axis.high
    if low is None or high is None or isinstance(own, bool) or not isinstance(own, int | float):
        raise ConfigError(f"'{key}' is {own!r} in the default plan, which no range holds", where=f"tune.space.{key}", allowed="choices")
    whole = isinstance(low, int) and isinstance(high, int) and isinstance(own, int)
    if axis.step is not None and own is not None and (own - low) % axis.step > 1e-9 * axis.step:
        raise ConfigError(
            f"the default plan's {key} {own} is none of {low}, {low + axis.step} …", where=f"tune.space.{key}", remedy="choices"
        )
    axis = Axis(low=min(low, own), high=max(high, own), log=axis.log, step=axis.step, points=axis.points)
    return Varied(key=key, axis=axis, default=own, whole=whole, source=source)


def times_rank(value: Any, plan: Mapping[str, Any]) -> Any:
    """`2r` as a number; any other value as it is."""
    match = TIMES_RANK.match(value) if isinstance(value, str) else None
    return value if match is None else float(match[1] or 1) * float(plan["adapter.r"])


def changes(varied: Sequence[Varied], params: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial's plan has in place of the default's values, by key."""
    values = {each.key: each.value(params[each.key]) for each in varied if each.key in params}
    seen = {**default, **values}
    return {key: times_rank(value, seen) for key, value in values.items()}


def grid(varied: Sequence[Varied], seed: int) -> list[dict[str, Any]]:
    """Every combination, in an order that the seed decides: a grid that is stopped has seen all of the space thinly."""
    combined = [dict(zip([each.key for each in varied], values, strict=True)) for values in itertools.product(*(v.grid() for v in varied))]
    return [combined[i] for i in np.random.default_rng(seed).permutation(len(combined))]


def drawn(varied: Sequence[Varied], seed: int) -> dict[str, Any]:
    """One plan by chance: rates log-normal around the default's with a deviation of half a decade (of choices, those that are nearer to it
    more often), all else even over its values."""
    rng = np.random.default_rng(seed)
    return {each.key: _draw(each, rng) for each in varied}


def _draw(each: Varied, rng: np.random.Generator) -> Any:
    axis = each.axis
    if axis.choices and each.key == "learning_rate" and each.rising and each.rising[0] > 0:
        near = np.exp([-2 * math.log10(value / each.default) ** 2 for value in each.rising])
        return each.rising[int(rng.choice(len(near), p=near / near.sum()))]
    if axis.choices:
        return each.labels[int(rng.integers(len(axis.choices)))]
    low, high = float(axis.low or 0), float(axis.high or 0)
    if axis.step is not None:
        value = low + axis.step * int(rng.integers(math.floor((high - low) / axis.step + 1e-9) + 1))
    elif axis.log and each.key == "learning_rate":
        value = math.exp(rng.normal(math.log(each.default), math.log(10) / 2))
        value = value if low <= value <= high else math.exp(rng.uniform(math.log(low), math.log(high)))
    elif axis.log:
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
    else:
        value = rng.uniform(low, high + each.whole)
    return min(round(high), max(round(low), math.floor(value))) if each.whole else min(high, max(low, float(value)))


def given(varied: Sequence[Varied], words: Mapping[str, Any]) -> dict[str, Any]:
    """A plan by hand: the given values, the default's for all else. Raises ConfigError for what the space does not hold."""
    keys = {each.key: each for each in varied}
    for key, value in words.items():
        if key not in keys:
            raise ConfigError(f"'{key}' does not vary in this study", allowed=", ".join(keys), remedy=nearest(key, list(keys)))
        axis = keys[key].axis
        plain = label(tuple(value) if isinstance(value, list) else value)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        held = plain in keys[key].labels if axis.choices else numeric and (axis.low or 0) <= value <= (axis.high or 0)
        if not held:
            raise ConfigError(
                f"{key} {value} is outside of this study's space",
                allowed=keys[key].text(),
                remedy="tunesmith tune clone, with a wider space",
            )
    return {key: label(words[key]) if key in words and each.axis.choices else words.get(key, each.default) for key, each in keys.items()}


def nearest_in(each: Varied, value: Any) -> Any:
    """The value of an axis that is nearest to one of another study."""
    if each.axis.choices:
        return value if value in each.labels else each.default
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return min(float(each.axis.high or 0), max(float(each.axis.low or 0), value)) if numeric else each.default
