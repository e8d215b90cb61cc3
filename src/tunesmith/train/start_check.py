"""The check at the start: does a route compute what transformers itself computes? Rows of the run, through the route and through the plain
one, with the same weights: log-probabilities of every target, and the gradient of every trainable tensor. Knows nothing about which
models there are, nor why one differs.

It sees rows that leak into each other, positions and frequencies that depend on the pack, attention that is capped, sunk or windowed
otherwise, logits that are changed after the output layer: whatever makes an answer another one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from tunesmith.core.chat import Rendered
from tunesmith.core.errors import TrainingError
from tunesmith.models.trial import RAISED, Tried, shown
from tunesmith.nets.nf4 import Nf4
from tunesmith.nets.prefix import first_of_each_kind
from tunesmith.train.choice import BY_NAME, PLAIN, ROUTES, Choice, Route, keep, place, read
from tunesmith.train.loss import chunked_logp
from tunesmith.train.packing import pack
from tunesmith.train.plan import ResolvedPlan

_log = logging.getLogger("tunesmith.train")

# Relative deviation that a route may have. In float32 right ones are within 1e-5, wrong ones from .07 on (156 variants, docs/training.md).
TOLERANCE = 1e-4
# A route that passed in float32 is tried once more in the run's own type, where two right ways differ by rounding alone: by this much, or
# by a multiple of what the plain route differs from itself with tokens after a row.
ROUNDING = 5e-2
NOISE_FACTOR = 6.0
# A gradient this much smaller than the largest one is compared with that much of it: near zero everything is noise.
_FLOOR = 1e-2
# Longer rows are only read, not learned from: their gradient would cost as much as the first steps. Of each row this many targets count.
_LONG = 192
_TARGETS = 16

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Measured:
    """log p of the targets, row after row, and each trainable tensor's gradient of their mean (None: not reached)."""

    logp: Floats
    grads: dict[str, torch.Tensor | None]


def choose_route(trainable: Any, base: Path, plan: ResolvedPlan, probe: Sequence[Rendered], name: str | None) -> Choice:
    """Put the trainable on the fastest route that passes, or on the named one; `trainable.choice` says which and why.

    Raises TrainingError when the base fails on the plain route too.
    """
    longest = max((len(row.ids) for row in probe), default=0)
    path = place(base, plan, longest, sorted((key, tuple(p.shape)) for key, p in trainable.parameters().items()))
    choice = read(path)
    if name is not None and (choice is None or choice.route != name):
        choice = Choice(route=name, alone=_keeps_state(trainable, probe_rows(probe, trainable)))
    elif choice is None:
        choice = check(trainable, plan, probe)
        keep(choice, path, base, plan)
    trainable.go(BY_NAME[choice.route])
    trainable.choice, trainable.parallel = choice, trainable.parallel and not choice.alone
    return choice


def check(trainable: Any, plan: ResolvedPlan, probe: Sequence[Rendered] = ()) -> Choice:
    """Try the routes from the fastest on until one passes. Weights, gradients and the random state are as before afterwards.

    Raises TrainingError when the base cannot be computed at all.
    """
    if trainable.balances:
        return Choice(route=PLAIN.name, reason="the base's configuration asks for its routers' loss, which the model itself computes")
    rows = probe_rows(probe, trainable)
    training, awake = trainable.model.training, _woken(trainable)
    trainable.model.eval()
    try:
        with first_of_each_kind(trainable.causal) as layers:
            choice = _tried(trainable, plan, rows)
        if not choice.tried[-1].passed and layers:  # cut off, the base itself cannot be computed
            choice = _tried(trainable, plan, rows)
        if not choice.tried[-1].passed:
            what = f"transformers itself cannot compute this base: {choice.tried[-1].raised}"
            raise TrainingError(what, where=trainable.causal.config.model_type)
        return msgspec.structs.replace(choice, alone=_keeps_state(trainable, rows))
    finally:
        _restore(trainable, awake)
        trainable.model.train(training)


def _keeps_state(trainable: Any, rows: Sequence[Rendered]) -> bool:
    """Whether passes leave something else in the model's modules than the one before did: states of a recurrence, frequencies that follow
    the length of a row. What a first pass makes once and for all does not count. In evaluation, on the route that the model is on."""
    short, long = (edge(rows, key=lambda row: len(row.ids)) for edge in (min, max))
    training = trainable.model.training
    trainable.model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            try:
                with first_of_each_kind(trainable.causal):
                    held = [_held(trainable, row) for row in (long, short, long)]
            except RAISED:  # cut off, the base itself cannot be computed
                held = [_held(trainable, row) for row in (long, short, long)]
    finally:
        trainable.model.train(training)
    return any(
        set(first) != set(second) or any(first[key].shape != second[key].shape or not first[key].equal(second[key]) for key in first)
        for first, second in pairwise(held)
    )


def _held(trainable: Any, row: Rendered) -> dict[tuple[str, str], torch.Tensor]:
    """What the tensors that the modules hold are after a pass over the row, but their parameters."""
    trainable.states(pack([row], share=False))
    return {
        (path, key): value.clone()
        for path, module in trainable.causal.named_modules()
        for key, value in (*vars(module).items(), *module.named_buffers(recurse=False))
        if isinstance(value, torch.Tensor)
    }


def _tried(trainable: Any, plan: ResolvedPlan, rows: Sequence[Rendered]) -> Choice:
    """The routes tried until one passed; only the plain one, failed, where that raises. Nothing lies over the model afterwards."""
    tried: list[Tried] = []
    try:
        with _in_float32(trainable):
            plain = _plain(trainable, rows)
        for route in ROUTES:
            if route is PLAIN:
                tried.append(Tried(route=PLAIN.name, deviation=0.0, bound=0.0))
            else:
                with _in_float32(trainable):
                    tried.append(_try(trainable, route, rows, plain))
                if tried[-1].passed and plan.dtype != "float32":
                    tried[-1] = _rounded(trainable, route, rows, tried[-1])
            _log.debug("%s", tried[-1].sentence())
            if tried[-1].passed:
                break
        unreached = sum(grad is None for grad in plain.grads.values())
        return Choice(route=tried[-1].route, tried=tuple(tried), unreached=unreached)
    except RAISED as error:
        return Choice(route=PLAIN.name, tried=(Tried(route=PLAIN.name, raised=shown(error)),))
    finally:
        trainable.go(PLAIN)


def _plain(trainable: Any, rows: Sequence[Rendered], *, after: int = 0) -> _Measured:
    trainable.go(PLAIN)
    return _measure(trainable, rows, after=after)


def _try(trainable: Any, route: Route, rows: Sequence[Rendered], plain: _Measured) -> Tried:
    try:
        trainable.go(route)
        return Tried(route=route.name, deviation=_deviation(_measure(trainable, rows), plain), bound=TOLERANCE)
    except RAISED as error:
        return Tried(route=route.name, raised=shown(error))
    finally:
        trainable.go(PLAIN)


def _rounded(trainable: Any, route: Route, rows: Sequence[Rendered], exact: Tried) -> Tried:
    """The route in the run's own type; what was seen in float32 stays, unless it fails here."""
    plain = _plain(trainable, rows)
    tried = _try(trainable, route, rows, plain)
    if tried.deviation is None or tried.deviation <= ROUNDING:
        return exact if tried.deviation is not None else tried
    bound = max(ROUNDING, NOISE_FACTOR * _deviation(_plain(trainable, rows, after=7), plain))
    return exact if tried.deviation <= bound else Tried(route=route.name, deviation=tried.deviation, bound=bound)


@contextmanager
def _in_float32(trainable: Any) -> Iterator[None]:
    """Weights and products in float32 for a while, of the layers that are there; 4-bit weights are read in it."""
    tensors = [*trainable.causal.parameters(), *trainable.causal.buffers()]
    narrow = [(tensor, tensor.data) for tensor in tensors if tensor.dtype in (torch.bfloat16, torch.float16)]
    packed = [(module, module.dtype) for module in trainable.causal.modules() if isinstance(module, Nf4)]
    autocast, trainable.autocast = trainable.autocast, False
    try:
        for tensor, data in narrow:
            tensor.data = data.float()
        for module, _ in packed:
            module.dtype = torch.float32
        yield
    finally:
        trainable.autocast = autocast
        for tensor, data in narrow:
            tensor.data = data
        for module, dtype in packed:
            module.dtype = dtype


def probe_rows(rows: Sequence[Rendered], trainable: Any) -> list[Rendered]:
    """Four rows at least: two that begin alike, and the longest and the shortest of `rows`; random ones where there are none."""
    limit = int(trainable.causal.get_input_embeddings().weight.shape[0])
    rng = np.random.default_rng(0)
    known = sorted({row.ids.tobytes(): row for row in rows if len(row.ids) > 1}.values(), key=lambda row: len(row.ids))
    chosen = [known[0], known[-1]] if known else []
    start = known[len(known) // 2].ids[:24] if known else rng.integers(0, limit, 24)
    for i, size in enumerate((13, 29)):
        chosen.append(_row(f"probe {i}", np.concatenate([start, rng.integers(0, limit, size)])))
    return [_thinned(row if row.mask[1:].any() else _row(row.example_id, row.ids)) for row in chosen]


def _thinned(row: Rendered) -> Rendered:
    """The row with at most `_TARGETS` of its targets, the first and the last among them."""
    places = 1 + np.flatnonzero(row.mask[1:])
    mask = np.zeros_like(row.mask)
    mask[places[np.unique(np.linspace(0, len(places) - 1, min(len(places), _TARGETS)).round().astype(int))]] = 1
    return Rendered(row.example_id, row.ids, mask)


def _row(name: str, ids: npt.NDArray[Any]) -> Rendered:
    mask = np.ones(len(ids), np.uint8)
    mask[0] = 0
    return Rendered(name, ids.astype(np.int32), mask)


def _measure(trainable: Any, rows: Sequence[Rendered], *, after: int = 0) -> _Measured:
    """The rows on the trainable's route; with `after`, each row is followed by so many other tokens, which a causal model does not see."""
    if after:
        rows = [_followed(row, after) for row in rows]
    short, long = [row for row in rows if len(row.ids) <= _LONG + after], [row for row in rows if len(row.ids) > _LONG + after]
    parameters = trainable.parameters()
    with torch.random.fork_rng():
        logp = _logps(trainable, short)
        mean = torch.cat(logp).mean()
        grads = torch.autograd.grad(mean, list(parameters.values()), allow_unused=True) if parameters else ()
        with torch.no_grad():
            logp += _logps(trainable, long)
    values = torch.cat([part.detach() for part in logp]).double().cpu().numpy()
    return _Measured(values, dict(zip(parameters, grads, strict=True)))


def _followed(row: Rendered, after: int) -> Rendered:
    """The row with tokens after it whose last one is trained, so that a pack computes them all; that target is left out again."""
    ids = np.concatenate([row.ids, np.roll(row.ids, 3)[:after]]) if len(row.ids) >= after else np.concatenate([row.ids, row.ids, row.ids])
    mask = np.concatenate([row.mask, np.zeros(len(ids) - len(row.ids), np.uint8)])
    mask[-1] = 2
    return Rendered(row.example_id, ids, mask)


def _logps(trainable: Any, rows: Sequence[Rendered]) -> list[torch.Tensor]:
    """log p of every target, row after row."""
    if not rows:
        return []
    shares = trainable.route.tree
    packs = [pack(rows, share=shares)] if trainable.route.packed else [pack([row], share=False) for row in rows]
    logps: list[torch.Tensor] = []
    for i, packed in enumerate(packs):
        logp = chunked_logp(trainable.states(packed), trainable.head, torch.from_numpy(packed.targets).to(trainable.device))
        each = rows if trainable.route.packed else [rows[i]]
        logps += [_own(logp[torch.from_numpy(packed.row == number).to(logp.device)], row) for number, row in enumerate(each)]
    return logps


def _own(logp: torch.Tensor, row: Rendered) -> torch.Tensor:
    """The row's own targets, without the one that `_followed` added."""
    return logp[:-1] if row.mask[-1] == 2 else logp


def _deviation(other: _Measured, plain: _Measured) -> float:
    """The largest relative difference, of log-probabilities (against at least 1 nat) and of any gradient."""
    if not np.isfinite(other.logp).all():
        return float("inf")
    worst = float((np.abs(other.logp - plain.logp) / np.maximum(1.0, np.abs(plain.logp))).max())
    sizes = {name: float(grad.float().norm()) for name, grad in plain.grads.items() if grad is not None}
    largest = max(sizes.values(), default=0.0)
    for name, size in sizes.items():
        own, expected = other.grads[name], plain.grads[name]
        if own is None or expected is None:
            return float("inf")
        worst = max(worst, float((own.float() - expected.float()).norm()) / max(size, _FLOOR * largest, 1e-30))
    return worst


def _woken(trainable: Any) -> dict[str, torch.Tensor]:
    """Give fresh adapters small random B matrices, without which A has no gradient; returns what was there."""
    before: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(5)
    for name, p in trainable.parameters().items():
        if "lora_B" in name and not bool(p.detach().any()):
            before[name] = p.detach().clone()
            p.data.copy_(torch.randn(p.shape, generator=generator).to(p) * 0.05)
    return before


def _restore(trainable: Any, before: dict[str, torch.Tensor]) -> None:
    for name, p in trainable.parameters().items():
        if name in before:
            p.data.copy_(before[name])
