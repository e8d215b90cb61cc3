"""A pure function over pieces of rows, done by whoever executes: here, in processes, on Ray; knows nothing about what rows are.

An executor maps a function over pieces and gives the results in the order of the pieces, so that the outcome is the same wherever the
work is done. It takes a piece only when there is room for its result: memory does not grow with the number of pieces. For executors
that leave this process, function, pieces and results must be picklable; a piece of a stored file is only its place in the file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from tunesmith.core.errors import ConfigError
from tunesmith.core.load import need

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")

PIECE = 5_000  # rows


class Executor(Protocol):
    """Maps a function over pieces, lazily and in their order."""

    def __call__(self, function: Callable[[A], B], pieces: Iterable[A]) -> Iterator[B]:
        """The result of each piece, in the order of the pieces. Raises what the function raises."""


def here(function: Callable[[A], B], pieces: Iterable[A]) -> Iterator[B]:
    """One piece after the other in this process."""
    return map(function, pieces)


def in_processes(workers: int) -> Executor:
    """In so many processes of this machine, each started anew. Raises ConfigError for fewer than one."""
    if workers < 1:
        raise ConfigError(f"{workers} worker processes", allowed="at least 1")

    def execute(function: Callable[[A], B], pieces: Iterable[A]) -> Iterator[B]:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        # a fork would inherit locks of threads that do not exist in it
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from _in_order(lambda piece: pool.submit(function, piece), lambda future: future.result(), pieces, 2 * workers)

    return execute


def on_ray(**options: Any) -> Executor:
    """As tasks of a Ray cluster: the one that this process is connected to, else what `ray.init()` finds or starts. `options` are those of
    `ray.remote` (such as `num_cpus`). Files that pieces name must be readable on every machine of the cluster.

    Raises MissingExtra without the package `ray`.
    """
    ray = need("ray", extra="ray")

    def execute(function: Callable[[A], B], pieces: Iterable[A]) -> Iterator[B]:
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        task = ray.remote(**options)(_call) if options else ray.remote(_call)
        shared = ray.put(function)
        room = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        yield from _in_order(lambda piece: task.remote(shared, piece), ray.get, pieces, room)

    return execute


def _call(function: Callable[[A], B], piece: A) -> B:
    return function(piece)


def _in_order(begin: Callable[[A], Any], end: Callable[[Any], B], pieces: Iterable[A], room: int) -> Iterator[B]:
    """The results in the order of the pieces, of which at most `room` are under way."""
    under_way: deque[Any] = deque()
    for piece in pieces:
        under_way.append(begin(piece))
        if len(under_way) >= room:
            yield end(under_way.popleft())
    while under_way:
        yield end(under_way.popleft())


def pieces_of(rows: Sequence[T], size: int = PIECE) -> Iterator[Sequence[T]]:
    """Rows as slices of at most `size`; of a sequence that reads from a file the slices read only what they hold."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


@runtime_checkable
class InPieces(Protocol):
    """Rows that know how they are best divided."""

    def pieces(self) -> Iterator[Sequence[Any]]:
        """The rows in pieces, in their order."""


def map_rows(function: Callable[[Sequence[T]], B], rows: Sequence[T], executor: Executor = here, size: int | None = None) -> Iterator[B]:
    """What a pure function makes of each piece of the rows, in their order; the same whoever executes. `size`: rows in a piece (None: as
    the rows are best divided)."""
    pieces = rows.pieces() if size is None and isinstance(rows, InPieces) else pieces_of(rows, size or PIECE)
    return executor(function, pieces)
