"""One study of a project: begun or found again, its folder, its trials one leg at a time, and the budget. Decides nothing about plans."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any

import msgspec

from tunesmith.core.counted import counted
from tunesmith.core.errors import ConfigError, TunesmithError
from tunesmith.core.seal import checked
from tunesmith.core.types import digest
from tunesmith.evaluate.run import Evaluation, load_evaluation
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.plan_keys import changed, ground, values
from tunesmith.flow.tuning.bench import StudyMaterials, StudyStopped, Trained
from tunesmith.flow.tuning.width import Width
from tunesmith.train.methods import METHODS
from tunesmith.train.plan import Plan
from tunesmith.train.resolve import resolve
from tunesmith.tune.halving import ladder, standing, step
from tunesmith.tune.search import Search, StudyFacts, defaults, earlier
from tunesmith.tune.settings import Tune
from tunesmith.tune.space import changes, space
from tunesmith.tune.trials import DEFAULT, Repeat, Rung, RungResult, Trial, find

STOP = "stop"
_ALL_TOGETHER = ("added", "cloned")  # trials beyond the budget of trials


def database(context: ProjectContext) -> str:
    """The URL of the studies' database: as the project says, else a file in its store."""
    return context.project.tune.storage or f"sqlite:///{context.store.layout.tuning / 'studies.db'}"


@contextmanager
def held(folder: Path, name: str = "lock", *, wait: bool = True) -> Iterator[IO[str] | None]:
    """Hold a file of a folder against other processes; None where another has it and nobody waits. The kernel lets go when one dies."""
    file = _claim(folder, name, wait=wait)
    try:
        yield file
    finally:
        if file is not None:
            file.close()


def _claim(folder: Path, name: str = "lock", *, wait: bool = False) -> IO[str] | None:
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / name).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    return file


@dataclass
class Leg:
    """A trial on its way to a rung, held by this process."""

    trial: Trial
    rung: int
    lock: IO[str]


@dataclass
class Study:
    """A study at work in one process."""

    context: ProjectContext
    bench: StudyMaterials
    search: Search
    tune: Tune
    began: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        """Where its trials lie."""
        return self.context.store.layout.tuning / self.search.name

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """How far trials are trained between looks."""
        return self.search.facts.rungs

    @property
    def higher(self) -> bool:
        """Whether more is better of what the study goes by."""
        return self.search.facts.higher

    @cached_property
    def _default(self) -> dict[str, Any]:
        return dict(ground(self.bench.plan, self.bench.facts, self.context.base).default)

    def plan(self, trial: Trial) -> Plan:
        """The plan of a trial; trial 0 has the project's own, to the letter."""
        plan = self.bench.plan
        if trial.number != DEFAULT:
            plan = changed(plan, changes(self.search.facts.space, trial.params, self._default))
        chooses = self.tune.by == "metric" and (plan.keep == "best" or plan.patience is not None)  # by its evaluations
        if plan.eval_every is not None or len(self.rungs) < 2 or chooses:
            return plan
        # What is seen on a rung is the validation loss there too, so it is measured there.
        resolved = values(resolve(plan, self.bench.facts)[0])
        steps = -(-self.bench.facts.rows // resolved["batch_size"]) * resolved["epochs"]
        return msgspec.structs.replace(plan, eval_every=math.ceil(next(r.share for r in self.rungs if not r.proxy) * steps))

    def written(self, trial: Trial) -> Plan:
        """The plan of a trial as the project's file would have it."""
        own = self.context.project.train
        return own if trial.number == DEFAULT else changed(own, changes(self.search.facts.space, trial.params, self._default))

    # The budget

    @property
    def stop_file(self) -> Path:
        """Its being there asks every process of the study to stop."""
        return self.folder / STOP

    def spent(self) -> tuple[int, float]:
        """Tokens and seconds of all trials, and of the finalists' repetitions."""
        trials, repeats = self.search.trials(), self.repeats()
        tokens = sum(trial.tokens for trial in trials if trial.origin != "cloned") + sum(each.tokens for each in repeats)
        return tokens, sum(trial.seconds for trial in trials if trial.origin != "cloned") + sum(each.seconds for each in repeats)

    def whole(self) -> tuple[int, float]:
        """Tokens and seconds of one whole training of the default plan with its answers, as far as they are known."""
        trials = self.search.trials()
        last = trials[DEFAULT].looks[-1] if trials and trials[DEFAULT].state == "finished" else None
        return (last.tokens, last.seconds) if last is not None else (0, 0.0)

    def affordable(self, legs: Sequence[Leg] = ()) -> bool:
        """Whether the search may go on after these legs; half of the budget at most is held back for the finalists' repetitions."""
        (tokens, seconds), (one, one_s) = self.spent(), self.whole()
        repeats, begun = self.tune.seeds * (self.tune.finalists + 1), sum(self._part(leg) for leg in legs)
        for limit, used, each in ((self.tune.tokens, tokens, one), (self.tune.seconds, seconds, one_s)):
            if limit is not None and used + begun * each + min(repeats * each, limit / 2) >= limit:
                return False
        return True

    def _part(self, leg: Leg) -> float:
        """The share of a whole training that a leg is."""
        rung, before = self.rungs[leg.rung], self.rungs[leg.rung - 1] if leg.rung else None
        return rung.share if before is None or before.proxy else rung.share - before.share

    def over(self) -> bool:
        """Whether this process is to stop at the next step."""
        if self.stop_file.exists():
            return True
        limit = self.tune.seconds
        return limit is not None and self._spent_before + (time.monotonic() - self.began) >= limit

    @cached_property
    def _spent_before(self) -> float:
        return self.spent()[1]

    # The trials

    def take(self) -> list[Leg]:
        """The next legs, all to one rung, held by this process; none when nothing is left for it. The default plan is trained alone, so
        that it has the bytes of a run."""
        legs: list[Leg] = []
        with held(self.folder):
            while len(legs) < (self.width.most if legs else 1) and (leg := self._taken(legs)) is not None:
                legs.append(leg)
                if leg.trial.number == DEFAULT:
                    break
        return legs

    def _taken(self, legs: Sequence[Leg]) -> Leg | None:
        """One more leg, to the rung of those that are taken."""
        rung = legs[0].rung if legs else None
        if self.over():
            return None
        for trial in self.search.trials():
            fits = trial.state == "running" and rung in (None, len(trial.looks)) and not (legs and trial.number == DEFAULT)
            if fits and (lock := _claim(self.place(trial.number))) is not None:
                return Leg(trial, len(trial.looks), lock)
        return self._next(rung, self._more()) if self.affordable(legs) else None

    def _more(self) -> bool:
        return sum(trial.origin not in _ALL_TOGETHER for trial in self.search.trials()) < self.tune.trials

    def _next(self, rung: int | None, more: bool) -> Leg | None:
        chosen = step(self.search.trials(), self.rungs, self.tune, higher=self.higher, more=more)
        if chosen is None or rung not in (None, chosen.rung) or (rung is not None and chosen.number == DEFAULT):
            return None
        if chosen.number is None:
            trial = self.search.next(self.tune.trials)
            if trial is None:  # the grid has no other plan
                return self._next(rung, False) if more else None
        else:
            trial = find(self.search.trials(), chosen.number)
            self.search.mark(trial.number, "running")
        lock = _claim(self.place(trial.number), wait=True)
        assert lock is not None
        return Leg(trial, chosen.rung, lock)

    @cached_property
    def width(self) -> Width:
        """How many trials are trained side by side."""
        draws = METHODS[self.bench.plan.method].draws  # between its steps, each for itself
        return Width(self.folder, 1 if draws else self.tune.at_once)

    def place(self, number: int) -> Path:
        """The folder of a trial."""
        return self.folder / "trials" / str(number)

    def carry_out(self, legs: Sequence[Leg]) -> list[Trial]:
        """Train the trials to their rung, side by side where there are several, and look at them there. A trial that cannot be trained has
        failed, with the reason; the default plan's failure is the study's. Raises Stopped, after what was trained was looked at."""
        began = time.monotonic()
        trained = self._trained([(leg.trial, leg.rung) for leg in legs])
        each, rate = (time.monotonic() - began) / len(legs), self.bench.meter.rate
        if legs[0].rung == 0 and rate is not None and not any(isinstance(result, Exception) for result in trained):
            self.width.measured(len(legs), rate)
        for leg, result in zip(legs, trained, strict=True):
            if not isinstance(result, StudyStopped):
                self._ended(leg, result, each)
        if stopped := next((result for result in trained if isinstance(result, StudyStopped)), None):
            raise stopped
        return [find(self.search.trials(), leg.trial.number) for leg in legs]

    def _ended(self, leg: Leg, trained: Trained | Exception, seconds: float) -> None:
        try:
            if isinstance(trained, Exception):
                raise trained
            self._looked(leg.trial, leg.rung, trained, seconds)
        except TunesmithError as error:
            if leg.trial.number == DEFAULT:
                raise
            self.search.mark(leg.trial.number, "failed", str(error).splitlines()[0])

    def measured(self, trial: Trial, rung: int) -> Trial:
        """The trial after it was trained to a rung and looked at there. Raises TunesmithError where it cannot be, Stopped."""
        began = time.monotonic()
        (trained,) = self._trained([(trial, rung)])
        if isinstance(trained, Exception):
            raise trained
        return self._looked(trial, rung, trained, time.monotonic() - began)

    def _trained(self, legs: Sequence[tuple[Trial, int]]) -> list[Trained | Exception]:
        """Each trial trained to its rung, or what was raised; several side by side."""
        _ = self._spent_before, self.bench.items  # read before there are threads
        return self.bench.together([self._training(trial, self.rungs[index]) for trial, index in legs])

    def _training(self, trial: Trial, rung: Rung) -> Callable[[], Trained]:
        items = self.bench.proxy(rung.share) if rung.proxy else None
        work = self.place(trial.number) / ("proxy" if rung.proxy else "train")
        label, share = f"trial {trial.number}", 1.0 if rung.proxy else rung.share
        return partial(self.bench.train, self.plan(trial), work, share, items=items, label=label, stop=self.over)

    def _looked(self, trial: Trial, index: int, trained: Trained, seconds: float) -> Trial:
        """The trial after it was looked at on a rung; `seconds` were spent for its training."""
        began, place, rung = time.monotonic(), self.place(trial.number) / f"rung-{index}", self.rungs[index]
        evaluation, before = None, trial.last or RungResult(rung=-1, value=None)
        on_proxy = 0 if rung.proxy else sum(look.tokens for look in trial.looks if self.rungs[look.rung].proxy)
        if self.tune.by == "metric" or index == len(self.rungs) - 1:
            evaluation = self.bench.ask(trained.weights, place, f"trial {trial.number}")
        spread = None if evaluation is None else self.bench.interval(evaluation)
        value = trained.loss if self.tune.by == "loss" else None if evaluation is None else evaluation.values[self.bench.metric.name]
        if value is None:
            what = f"no row has a value of {self.search.facts.metric}"
            raise TunesmithError(what, where=f"trial {trial.number}", remedy="another first metric in evaluate.metrics")
        look = RungResult(
            rung=index,
            value=value,
            values={} if evaluation is None else evaluation.values,
            low=None if spread is None else spread.low,
            high=None if spread is None else spread.high,
            loss=trained.loss,
            tokens=on_proxy + trained.tokens,
            seconds=before.seconds + seconds + time.monotonic() - began,
            place="" if evaluation is None else str(place.relative_to(self.context.store.layout.tuning)),
        )
        self.search.look(trial.number, look, "finished" if index == len(self.rungs) - 1 else "paused")
        return find(self.search.trials(), trial.number)

    def prune(self, rung: int) -> list[int]:
        """Give up those that are paused on a rung and are worse there than its best, row by row on the same questions, and in loss; which
        they were."""
        there = [trial for trial in self.search.trials() if any(look.rung == rung and look.place for look in trial.looks)]
        at = {trial.number: next(look for look in trial.looks if look.rung == rung) for trial in there}
        seen = [Trial(number=number, params={}, state="paused", looks=(look,)) for number, look in at.items()]
        best, pruned = standing(seen, higher=self.higher), list[int]()
        for trial in there if len(best) > 1 else ():
            mine = trial.state == "paused" and len(trial.looks) == rung + 1 and trial.number != DEFAULT and trial.origin != "added"
            lower = (at[trial.number].loss or 0.0) < (at[best[0].number].loss or 0.0)  # it may yet learn what the best one has learned
            if not mine or trial.number == best[0].number or lower:
                continue
            leader, own = (self.evaluation(at[number]) for number in (best[0].number, trial.number))
            compared = self.bench.compared([leader], [own], ("the best", "this one"), 0.95).metrics[0]
            if compared.verdict == "worse" and compared.difference is not None:
                d = compared.difference
                numbers = f"{compared.metric} {d.estimate:+.3g} ({d.low:+.3g} to {d.high:+.3g})"
                self.search.mark(trial.number, "pruned", f"worse than trial {best[0].number} on the same rows: {numbers}")
                pruned.append(trial.number)
                shutil.rmtree(self.place(trial.number) / "train" / "checkpoints", ignore_errors=True)  # it never goes on
        return pruned

    def evaluation(self, look: RungResult) -> Evaluation:
        """What a trial answered on a rung."""
        return load_evaluation(self.context.store.layout.tuning / look.place)

    # The finalists

    def repeats(self) -> list[Repeat]:
        """Every repetition that is finished."""
        paths = sorted((self.folder / "finals").glob("*/repeat.json"))
        return [msgspec.json.decode(checked(path).read_bytes(), type=Repeat) for path in paths]


def begin(context: ProjectContext, name: str, *, alone: bool = False) -> Study:
    """The study of that name (empty: the project's), begun with the default plan as trial 0 or found again; its rows are tokenised. One
    that is `alone` takes nothing from earlier studies.

    Raises UsageError where a study of that name is about something else.
    """
    tune = context.project.tune
    bench = StudyMaterials(context, tune.rows, by_loss=tune.by == "loss" or context.project.train.eval_every is None)
    facts = facts_of(bench, tune)
    url = database(context)
    search = Search.begin(url, name or context.project.name, facts)
    study = Study(context, bench, search, tune)
    study.folder.mkdir(parents=True, exist_ok=True)
    with held(study.folder):
        study.stop_file.unlink(missing_ok=True)
        if not search.trials():
            search.add(defaults(search.facts.space), "default")
            for params in earlier(url, search.facts, but=search.name) if tune.warm_start and not alone else ():
                search.add(params, "earlier")
    said = counted(len(search.facts.space), "key")
    rungs = ", ".join(rung.name for rung in study.rungs)
    context.progress.say(f"study {search.name}: {said} vary ({', '.join(v.key for v in search.facts.space)}); looked at after {rungs}")
    return study


def facts_of(bench: StudyMaterials, tune: Tune) -> StudyFacts:
    """What a study of this project is about, as it is configured now. Raises ConfigError for a metric without a good direction."""
    context, method = bench.context, METHODS[bench.plan.method]
    if bench.metric.better == "neither":
        raise ConfigError(
            f"no value of {bench.metric.name} is better than another", where="evaluate.metrics", remedy="another metric first"
        )
    grounds = ground(bench.plan, bench.facts, context.base)
    varied = space(tune, grounds)
    steps = -(-bench.facts.rows // grounds.default["batch_size"]) * grounds.default["epochs"]
    axes = [each.axis for each in varied if each.key == "warmup_ratio"]
    warm = max([grounds.default["warmup_ratio"], *(value for axis in axes for value in (*axis.choices, axis.high or 0.0))])
    quick = tune if not method.graded else msgspec.structs.replace(tune, proxy=0.0)
    rungs = ladder(quick, rows=bench.facts.rows, steps=steps, warmup=warm)
    about = {
        "data": digest(context.runner.digests["tokens"], [row.id for row in bench.questions]),
        "base": context.base_digest,
        "plan": digest(bench.plan),
        "measure": digest(context.project.evaluate.metrics, context.sampling(), tune.by),
        "space": digest(varied),
        "search": digest(tune.sampler, tune.seed, rungs),
    }
    return StudyFacts(
        identity=digest(about),
        about=about,
        project=context.project.name,
        method=bench.plan.method,
        metric="validation loss" if tune.by == "loss" else bench.metric.name,
        higher=tune.by == "metric" and bench.metric.better == "higher",
        space=varied,
        rungs=rungs,
        sampler=tune.sampler,
        seed=tune.seed,
        parameters=bench.facts.parameters,
        rows=bench.facts.rows,
    )
