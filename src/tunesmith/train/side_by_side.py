"""Several trainings in one process on one frozen base, as PLoRA (arXiv 2508.02932) and LoRAFusion (arXiv 2510.00206) do. Knows nothing
about studies, rows or what a training is for.

Each training is the same code as alone, in a thread of its own, and one thread computes at a time. Where all of them have come to the
gradients of a step, their packs are laid one after the other into common passes: the products with the frozen weights are one over all
rows, each adapter's own products are over its rows. A training's packs, draws, order of sums and optimiser are those that it has alone, so
that it gives the same numbers but for the rounding of products with more rows. A training whose layers are more than frozen ones with a
plain adapter computes its steps for itself when it is its turn.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.nets.dropout import dropout_seed
from tunesmith.nets.linear import FusedLoraLinear, SharedLinear, Sharing, low_rank, sharing
from tunesmith.train.adapters import Trainable, load_base
from tunesmith.train.microbatch import Gradients, Lanes, StepItems, Work, collected, gradients, packs_of
from tunesmith.train.objectives import Objective, Step, Sums
from tunesmith.train.packing import Pack
from tunesmith.train.plan import ResolvedPlan
from tunesmith.train.routes import lay
from tunesmith.train.targets import inner_model

T = TypeVar("T")
# Tokens of a pass that fill a processor's products. Packs are not joined beyond: what they hold would only leave the cache.
FULL = 512


class Cancelled(Exception):
    """The trainings beside this one were given up, and so is this one."""


@dataclass
class StepRequest:
    """The gradients of one step that a training waits for; `seed` is that of its draws."""

    trainable: Trainable
    objective: Objective
    batch: StepItems
    plan: ResolvedPlan
    lanes: Lanes
    seed: int
    sums: Sums | None = None
    error: BaseException | None = None

    def alone(self) -> Sums:
        """Computed for itself."""
        return gradients(self.trainable, self.objective, self.batch, self.plan, self.lanes, seed=self.seed)


class _Piece(NamedTuple):
    """One pack of one training in a common pass."""

    request: StepRequest
    step: Step
    number: int
    work: Work


_here = threading.local()


def shared_base() -> SharedBase | None:
    """The base that this thread's training shares with others; None where it trains alone."""
    return getattr(_here, "base", None)


def side_by_side(works: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Every work's result or what it raised, in order. Each runs in a thread of its own, one at a time; their trainings share a base where
    it is the same. Interrupted, all of them end at their next step."""
    return SharedBase(len(works)).run(works)


@dataclass
class SharedBase:
    """Frozen weights that several trainings have in common, and their common passes."""

    members: int
    turn: threading.Condition = field(default_factory=threading.Condition)
    waiting: dict[int, StepRequest] = field(default_factory=dict)
    cancelled: bool = False
    models: dict[tuple[Path, torch.dtype, str], Any] = field(default_factory=dict)
    _conductors: list[Conductor] = field(default_factory=list)
    _plain: dict[int, tuple[Trainable, bool]] = field(default_factory=dict)

    def run(self, works: Sequence[Callable[[], T]]) -> list[T | Exception]:
        """See `side_by_side`."""
        results: list[T | Exception | None] = [None] * len(works)
        threads = torch.get_num_threads()

        def carried(number: int) -> None:
            torch.set_num_threads(threads)
            _here.base, _here.number = self, number
            with self.turn:
                try:
                    results[number] = works[number]()
                except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's, and the other trainings go on
                    results[number] = error
                finally:
                    self.members -= 1
                    self.turn.notify_all()

        started = [threading.Thread(target=carried, args=(number,), name=f"training {number}") for number in range(len(works))]
        try:
            for thread in started:
                thread.start()
            for thread in started:
                thread.join()
        except BaseException:
            self.cancelled = True  # they look when it is their turn
            for thread in started:
                thread.join()
            raise
        return [cast("T | Exception", result) for result in results]

    def model(self, base: Path, dtype: torch.dtype, device: str) -> Any:
        """A model of its own for a training: other modules over the same weights, which are read once."""
        key = (base, dtype, device)
        if key not in self.models:
            self.models[key] = load_base(base, dtype, device)
        return twin(self.models[key])

    def gradients(self, request: StepRequest) -> Sums:
        """As `microbatch.gradients`, once all trainings wait for theirs. Raises Cancelled."""
        mine = _here.number
        self.waiting[mine] = request
        while request.sums is None and request.error is None:
            if self.cancelled:
                self.waiting.pop(mine, None)
                raise Cancelled
            if len(self.waiting) == self.members:
                self._compute()
            else:
                self.turn.wait()
        if request.error is not None:
            raise request.error
        assert request.sums is not None
        return request.sums

    def _compute(self) -> None:
        """What all of them wait for."""
        requests = [self.waiting[number] for number in sorted(self.waiting)]
        self.waiting.clear()
        groups: dict[tuple[Any, ...], list[StepRequest]] = {}
        for request in requests:
            key = self._together(request)
            if key is not None:
                groups.setdefault(key, []).append(request)
        for key, group in groups.items():
            if len(group) > 1:
                self._shared(key, group)
        for request in requests:
            if request.sums is None and request.error is None:
                try:
                    request.sums = request.alone()
                except Exception as error:  # noqa: BLE001 - raised in the training that it belongs to
                    request.error = error
        self.turn.notify_all()

    def _together(self, request: StepRequest) -> tuple[Any, ...] | None:
        """What a request must have in common with others to be computed with them; None for one that is computed for itself."""
        trainable, plan = request.trainable, request.plan
        weight = trainable.causal.get_input_embeddings().weight
        known = next((key for key, model in self.models.items() if model.get_input_embeddings().weight is weight), None)
        if known is None or not trainable.route.packed or not trainable.parallel or plan.activation_checkpointing:
            return None
        if id(trainable) not in self._plain:  # once: a walk over all modules takes as long as a small product
            plain = all(low_rank(layer) is not None for layer in _layers(trainable).values())
            self._plain[id(trainable)] = trainable, plain  # the trainable itself, so that no other has its id
        if not self._plain[id(trainable)][1]:
            return None
        return *known, trainable.route.name, plan.adapter.dropout > 0  # layers that drop inputs are computed one by one

    def _shared(self, key: tuple[Any, ...], group: list[StepRequest]) -> None:
        try:
            sums = self._conductor(key, group).gradients(group)
            for request, own in zip(group, sums, strict=True):
                request.sums = own
        except Exception as error:  # noqa: BLE001 - raised in every training that was part of it
            for request in group:
                request.error = error

    def _conductor(self, key: tuple[Any, ...], group: list[StepRequest]) -> Conductor:
        for conductor in self._conductors:
            if conductor.key == key and all(request.trainable in conductor.members for request in group):
                return conductor
        self._conductors = [conductor for conductor in self._conductors if conductor.key != key]
        self._conductors.append(Conductor(key, self.models[key[:3]], [request.trainable for request in group]))
        return self._conductors[-1]


def twin(model: nn.Module) -> Any:
    """Other modules with the same parameters and buffers."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo=cast("dict[int, Any]", tensors))


def _layers(trainable: Trainable) -> dict[str, FusedLoraLinear]:
    return {name: module for name, module in trainable.causal.named_modules() if isinstance(module, FusedLoraLinear)}


class Conductor:
    """Common passes of the trainings in `members`, which are on one route: a model whose layers reach the adapters of all of them."""

    def __init__(self, key: tuple[Any, ...], model: Any, members: Sequence[Trainable]) -> None:
        self.key, self.base, self.members = key, model, list(members)
        self.route = members[0].route
        self.device = members[0].device

    @cached_property
    def decoder(self) -> Any:
        """What computes common passes; made for the first of them, since there is none where each training's packs fill one."""
        model = twin(self.base)
        layers: dict[str, dict[int, FusedLoraLinear]] = {}
        for number, member in enumerate(self.members):
            for name, layer in _layers(member).items():
                layers.setdefault(name, {})[number] = layer
        for name, own in layers.items():
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, SharedLinear(model.get_submodule(name), own))
        lay(model, model, self.route, str(model.config._attn_implementation))
        return inner_model(model)

    def gradients(self, requests: Sequence[StepRequest]) -> list[Sums]:
        """The gradient of each request's loss in `.grad` of its parameters; its sums."""
        pieces = []
        for request in requests:
            step = request.batch.step(request.trainable, request.objective, request.plan, request.lanes)
            works = packs_of([item.rows for item in request.batch.items], request.plan, shares=request.trainable.route.tree)
            pieces.append([_Piece(request, step, number, work) for number, work in enumerate(works)])
        lanes = max((request.lanes for request in requests), key=lambda side: side.pool._max_workers)
        budget = max(request.plan.micro_batch_tokens for request in requests)
        budget = min(budget, FULL) if self.device == "cpu" else budget
        passes = laid(pieces, budget=budget, lanes=lanes.pool._max_workers)
        if any(len(some) > 1 for some in passes):
            _ = self.decoder  # made before lanes want it
        done: dict[tuple[int, int], Gradients] = {}
        for computed in lanes.pool.map(self._pass, passes):
            done |= computed
        return [
            collected(request.trainable, [done[id(request), piece.number] for piece in own])
            for request, own in zip(requests, pieces, strict=True)
        ]

    def _pass(self, pieces: Sequence[_Piece]) -> dict[tuple[int, int], Gradients]:
        """One common pass: for each piece its sums and the gradients of its training's parameters."""
        if len(pieces) == 1:
            return self._own(pieces[0])
        states = self._states([piece.work.pack for piece in pieces], pieces)
        losses, sums = [], []
        for piece, own in zip(pieces, states, strict=True):
            request = piece.request
            loss, seen = request.batch.loss(request.trainable, request.objective, piece.work, piece.step, states=own)
            losses.append(loss)
            sums.append(seen)
        parameters = [list(piece.request.trainable.parameters().values()) for piece in pieces]
        given = iter(torch.autograd.grad(losses, [p for own in parameters for p in own], allow_unused=True))
        grads = [[(p, next(given)) for p in own] for own in parameters]
        return {
            (id(piece.request), piece.number): (seen, tuple(torch.zeros_like(p) if grad is None else grad for p, grad in own))
            for piece, own, seen in zip(pieces, grads, sums, strict=True)
        }

    def _own(self, piece: _Piece) -> dict[tuple[int, int], Gradients]:
        """A pass with one pack: its training's own, as alone."""
        request, parameters = piece.request, list(piece.request.trainable.parameters().values())
        with dropout_seed(request.seed + piece.number):
            loss, sums = request.batch.loss(request.trainable, request.objective, piece.work, piece.step)
            grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        whole = tuple(torch.zeros_like(p) if grad is None else grad for p, grad in zip(parameters, grads, strict=True))
        return {(id(request), piece.number): (sums, whole)}

    def _states(self, packs: Sequence[Pack], pieces: Sequence[_Piece]) -> tuple[Tensor, ...]:
        """The states at the targets of each pack, all packs in one pass over the base."""
        ends = np.cumsum([len(packed.ids) for packed in packs])
        rows = [slice(int(end) - len(packed.ids), int(end)) for packed, end in zip(packs, ends, strict=True)]
        members = [
            Sharing(self.members.index(piece.request.trainable), own, torch.Generator().manual_seed(piece.request.seed + piece.number))
            for piece, own in zip(pieces, rows, strict=True)
        ]
        laid = [(packed.ids, packed.positions, packed.at + own.start) for packed, own in zip(packs, rows, strict=True)]
        ids, positions, at = (torch.from_numpy(np.concatenate(part)).to(self.device) for part in zip(*laid, strict=True))
        spans = tuple(
            span._replace(start=span.start + own.start, end=span.end + own.start, reach=span.reach + own.start)
            for packed, own in zip(packs, rows, strict=True)
            for span in packed.spans
        )
        more = {"spans": spans, "longest": max(packed.longest for packed in packs), "places": positions} if self.route.tree else {}
        with sharing(members):
            states: Tensor = self.decoder(input_ids=ids[None], position_ids=positions[None], use_cache=False, **more).last_hidden_state[
                0, at
            ]
        return states.split([len(packed.at) for packed in packs])


def laid(pieces: Sequence[Sequence[_Piece]], *, budget: int, lanes: int) -> list[list[_Piece]]:
    """The packs of several trainings in common passes: one pack of a training at most in each, at most about `budget` tokens, as many
    passes as `lanes` have work for."""
    passes: list[list[_Piece]] = []
    sizes: list[int] = []
    least = min(lanes, sum(map(len, pieces)))
    for piece in sorted((piece for own in pieces for piece in own), key=lambda piece: (piece.number, -len(piece.work.pack.ids))):
        size = len(piece.work.pack.ids)
        room = [
            i for i, each in enumerate(passes) if sizes[i] + size <= budget and all(other.request is not piece.request for other in each)
        ]
        if room and len(passes) >= least:
            chosen = min(room, key=lambda i: sizes[i])
            passes[chosen].append(piece)
            sizes[chosen] += size
        else:
            passes.append([piece])
            sizes.append(size)
    return passes
