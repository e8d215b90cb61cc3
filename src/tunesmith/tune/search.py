"""A study in its database, and which plan it tries next: Optuna (MIT licence) underneath. Knows nothing about how a plan is trained.

Optuna keeps the trials in SQLite or PostgreSQL, so that any of its tools can read them; a trial that is paused or was pruned is `running`
or `pruned` there and has its looks beside it. What is proposed follows from the study's seed, the trial's number and what was seen, and
not from the process: a study that was killed goes on as it would have.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from tunesmith.core.errors import NotFound, StoreError, UsageError, nearest
from tunesmith.core.load import need
from tunesmith.core.types import Record
from tunesmith.tune.halving import at_rung, standing
from tunesmith.tune.settings import Axis, Sampler
from tunesmith.tune.space import Varied, drawn, grid, label, nearest_in
from tunesmith.tune.trials import DEFAULT, Origin, Rung, RungResult, Trial, TrialState

_FACTS, _OF = "tunesmith", "tunesmith:trial"
_STARTUP = 10  # plans by chance before TPE or CMA-ES has enough to go by; fewer in a short study
_ATTEMPTS = 5  # proposals that were tried already, before chance decides
_EARLIER = 2  # how many plans of earlier studies are tried first


class StudyFacts(Record, frozen=True):
    """What a study is about; none of it changes while it lasts. `identity` names rows, base, default plan and measure; `about` names
    each of them, so that a difference can be told. `parameters` and `rows` say which other studies are of a like size."""

    identity: str
    about: dict[str, str]
    project: str
    method: str
    metric: str
    higher: bool
    space: tuple[Varied, ...]
    rungs: tuple[Rung, ...]
    sampler: Sampler
    seed: int
    parameters: int
    rows: int


class _Beside(Record, frozen=True):
    """What Optuna has no column for."""

    state: TrialState = "running"
    origin: Origin = "search"
    looks: tuple[RungResult, ...] = ()
    note: str = ""


def _optuna() -> Any:
    optuna = need("optuna", extra="tune")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Search:
    """The studies of one database; `Search.begin` and `Search.open` give one of them."""

    def __init__(self, study: Any, facts: StudyFacts) -> None:
        self._study, self.facts = study, facts
        self.name: str = study.study_name

    @staticmethod
    def begin(url: str, name: str, facts: StudyFacts) -> Search:
        """The study of that name, made where there is none. Raises UsageError where it is about something else, StoreError."""
        optuna, storage = _optuna(), _storage(url)
        direction = "maximize" if facts.higher else "minimize"
        study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
        if _FACTS not in study.user_attrs:
            study.set_user_attr(_FACTS, msgspec.json.encode(facts).decode())
        search = Search(study, msgspec.json.decode(study.user_attrs[_FACTS], type=StudyFacts))
        if search.facts.identity != facts.identity:
            differ = [key for key, value in facts.about.items() if search.facts.about.get(key) != value]
            raise UsageError(
                f"the study '{name}' is about another {' and another '.join(differ) or 'project'}",
                where="--study",
                remedy="--study NEWNAME begins another one; tunesmith tune clone NEWNAME takes over what fits",
            )
        return search

    @staticmethod
    def open(url: str, name: str) -> Search:
        """A study that is there. Raises NotFound with the names of those that are, StoreError."""
        names = studies(url)
        if name not in names:
            raise NotFound(f"no study '{name}'", allowed=", ".join(names) or "none yet", remedy=nearest(name, names) or "tunesmith tune")
        study = _optuna().load_study(study_name=name, storage=_storage(url))
        if _FACTS not in study.user_attrs:
            raise UsageError(f"the study '{name}' was not made by Tunesmith", where="--study", allowed="one that tunesmith tune began")
        return Search(study, msgspec.json.decode(study.user_attrs[_FACTS], type=StudyFacts))

    def trials(self) -> list[Trial]:
        """Every trial, in order."""
        return [self._trial(frozen) for frozen in self._study.get_trials(deepcopy=False)]

    def _trial(self, frozen: Any) -> Trial:
        beside = _beside(frozen)
        waiting = frozen.state.name == "WAITING"
        params = frozen.system_attrs.get("fixed_params", {}) if waiting else frozen.params
        state: TrialState = "waiting" if waiting else beside.state
        return Trial(number=frozen.number, params=dict(params), state=state, origin=beside.origin, looks=beside.looks, note=beside.note)

    def add(self, params: Mapping[str, Any], origin: Origin) -> int:
        """Let that plan be tried next; its number."""
        self._study.enqueue_trial(dict(params), user_attrs={_OF: _encoded(_Beside(origin=origin))})
        return int(self._study.get_trials(deepcopy=False)[-1].number)

    def take_over(self, trials: Sequence[Trial]) -> int:
        """Finished trials of another study, as if they had been tried in this one; how many."""
        optuna = _optuna()
        for trial in trials:
            beside = _Beside(state="finished", origin="cloned", looks=trial.looks, note=trial.note)
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=trial.params,
                    distributions=self._distributions(),
                    value=trial.value,
                    intermediate_values=_seen(trial.looks),
                    user_attrs={_OF: _encoded(beside)},
                )
            )
        return len(trials)

    def next(self, planned: int) -> Trial | None:
        """Begin the next trial of a study of `planned` ones: what was asked for, else what the sampler proposes. None where a grid ends."""
        if not any(trial.state.name == "WAITING" for trial in self._study.get_trials(deepcopy=False)):
            params, attributes = self._proposal(planned)
            if params is None:
                return None
            self.add(params, "search")
            for key, value in attributes.items():
                waiting = self._study.get_trials(deepcopy=False)[-1]
                self._study._storage.set_trial_system_attr(waiting._trial_id, key, value)
        asked = self._study.ask(self._distributions())
        frozen = self._study.get_trials(deepcopy=False)[asked.number]
        self._note(asked.number, msgspec.structs.replace(_beside(frozen), state="running"))
        return self._trial(self._frozen(asked.number))

    def _proposal(self, planned: int) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """What the sampler proposes, and what it wants to remember."""
        trials, facts = self.trials(), self.facts
        number, tried = len(trials), [trial.params for trial in trials]
        seed = facts.seed * 1_000_003 + number
        if facts.sampler == "grid":
            return next((params for params in grid(facts.space, facts.seed) if params not in tried), None), {}
        startup = max(3, min(_STARTUP, planned // 3))
        if facts.sampler == "random" or sum(trial.value is not None for trial in trials) < startup:
            return next(
                (p for p in (drawn(facts.space, seed + 7919 * i) for i in range(20)) if p not in tried), drawn(facts.space, seed)
            ), {}
        optuna = _optuna()
        view = optuna.create_study(direction="maximize")
        rung, places = self._places(trials)
        for frozen, trial in zip(self._study.get_trials(deepcopy=False), trials, strict=True):
            view.add_trial(self._as_seen(optuna, frozen, trial, rung, places))
        for attempt in range(_ATTEMPTS):  # a plan that was tried would say the same again, at the same price
            view.sampler = _sampler(optuna, facts.sampler, seed + 7919 * attempt)
            proposed = self._named(view.ask(self._ordered()).params)
            if proposed not in tried:
                return proposed, dict(view.trials[-1].system_attrs)
        return next((p for p in (drawn(facts.space, seed + 7919 * i) for i in range(100)) if p not in tried), proposed), {}

    def _ordered(self) -> dict[str, Any]:
        """The space as a sampler sees it: of choices that are numbers their places in order, so that it tries what is near a good one."""
        optuna = _optuna()
        ordered = {each.key: optuna.distributions.IntDistribution(0, len(each.rising) - 1) for each in self.facts.space if each.rising}
        return self._distributions() | ordered

    def _placed(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """A trial's parameters as a sampler sees them."""
        places = {each.key: each.rising.index(params[each.key]) for each in self.facts.space if each.rising and each.key in params}
        return {**params, **places}

    def _named(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What a sampler proposed, as a trial's parameters."""
        return {**params, **{each.key: each.rising[params[each.key]] for each in self.facts.space if each.rising}}

    def _places(self, trials: Sequence[Trial]) -> tuple[int, list[dict[int, float]]]:
        """The rung that a sampler goes by, and on every rung how good each trial was there, by its number.

        As BOHB does (arXiv 1807.01774): the highest rung with two trials more than there are keys, since a few whole trainings say nothing
        of the space; else the lowest. What is good on a rung is what halving says, so that sampler and halving look for the same.
        """
        rungs = range(len(self.facts.rungs))
        there = [[seen for trial in trials if (seen := at_rung(trial, rung)) is not None] for rung in rungs]
        orders = [standing(seen, higher=self.facts.higher) for seen in there]
        enough = [rung for rung in rungs if len(orders[rung]) >= len(self.facts.space) + 2]
        return max(enough, default=0), [{trial.number: -float(place) for place, trial in enumerate(order)} for order in orders]

    def _as_seen(self, optuna: Any, frozen: Any, trial: Trial, rung: int, places: Sequence[Mapping[int, float]]) -> Any:
        """A trial as a sampler should see it: whole where it was seen on the rung that it goes by, pruned where it did not come there."""
        states = optuna.trial.TrialState
        state, value, seen = states.RUNNING, places[rung].get(trial.number), {}
        if trial.state == "failed" or not frozen.params:
            state, value = states.FAIL, None
        elif value is not None:
            state = states.COMPLETE
        elif trial.state in ("paused", "pruned"):
            state, seen = states.PRUNED, {at: place[trial.number] for at, place in enumerate(places[:rung]) if trial.number in place}
        return optuna.trial.create_trial(
            state=state,
            value=value,
            params=self._placed(frozen.params),
            distributions={key: self._ordered()[key] for key in frozen.params},
            intermediate_values=seen,
            system_attrs=frozen.system_attrs,
        )

    def _distributions(self) -> dict[str, Any]:
        optuna = _optuna()
        return {each.key: _distribution(optuna, each) for each in self.facts.space}

    def look(self, number: int, look: RungResult, state: TrialState, note: str = "") -> None:
        """Keep what was seen of a trial, and what becomes of it."""
        frozen = self._frozen(number)
        beside = _beside(frozen)
        looks = (*(each for each in beside.looks if each.rung != look.rung), look)
        if look.value is not None:
            self._study._storage.set_trial_intermediate_value(frozen._trial_id, look.rung, look.value)
        self._put(number, msgspec.structs.replace(beside, looks=looks, note=note), state)

    def mark(self, number: int, state: TrialState, note: str = "") -> None:
        """What becomes of a trial, and why."""
        self._put(number, msgspec.structs.replace(_beside(self._frozen(number)), note=note), state)

    def _put(self, number: int, beside: _Beside, state: TrialState) -> None:
        """First what Optuna has no column for, so that a kill in between leaves nothing that is not known."""
        self._note(number, msgspec.structs.replace(beside, state=state))
        states = _optuna().trial.TrialState
        if state == "finished":
            self._study.tell(number, beside.looks[-1].value, skip_if_finished=True)
        elif state in ("failed", "pruned"):
            self._study.tell(number, state=states.FAIL if state == "failed" else states.PRUNED, skip_if_finished=True)

    def _note(self, number: int, beside: _Beside) -> None:
        self._study._storage.set_trial_user_attr(self._frozen(number)._trial_id, _OF, _encoded(beside))

    def _frozen(self, number: int) -> Any:
        return self._study.get_trials(deepcopy=False)[number]

    def importance(self) -> dict[str, float]:
        """How much each key mattered among the trials that have a value (PED-ANOVA, arXiv 2304.10255), adding up to 1; empty for few."""
        optuna, trials = _optuna(), [trial for trial in self.trials() if trial.value is not None and trial.params]
        if len(trials) < 4:
            return {}
        study = optuna.create_study(direction="maximize" if self.facts.higher else "minimize")
        for trial in trials:
            study.add_trial(optuna.trial.create_trial(params=trial.params, distributions=self._distributions(), value=trial.value))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls itself experimental
            found = optuna.importance.get_param_importances(study)
        return {key: float(value) for key, value in found.items()}


def studies(url: str) -> list[str]:
    """The names of the studies of a database; none where there is no database yet."""
    path = url.removeprefix("sqlite:///")
    if path != url and not Path(path).is_file():
        return []
    return [str(name) for name in _optuna().study.get_all_study_names(_storage(url))]


def earlier(url: str, facts: StudyFacts, *, but: str) -> list[dict[str, Any]]:
    """The best plans of earlier studies with the same method and metric, of a base and rows of a like size, as plans of this space. Rates
    are carried over by the square root of the ratio of the bases' parameters."""
    found: list[dict[str, Any]] = []
    for name in studies(url):
        if name == but:
            continue
        try:
            search = Search.open(url, name)
        except UsageError:
            continue
        other = search.facts
        alike = (other.method, other.metric) == (facts.method, facts.metric)
        if not alike or not _near(other.parameters, facts.parameters, 4) or not _near(other.rows, facts.rows, 10):
            continue
        sign = -1 if other.higher else 1
        done = [t for t in search.trials() if t.state == "finished" and t.value is not None and t.number != DEFAULT]
        for trial in sorted(done, key=lambda t: sign * (t.value or 0.0))[:1]:
            found.append(_carried(trial.params, other, facts))
    return found[-_EARLIER:]


def _near(a: int, b: int, factor: float) -> bool:
    return max(a, b) <= factor * max(1, min(a, b))


def _carried(params: Mapping[str, Any], other: StudyFacts, facts: StudyFacts) -> dict[str, Any]:
    moved = dict(params)
    if isinstance(moved.get("learning_rate"), float):
        moved["learning_rate"] *= (other.parameters / facts.parameters) ** 0.5
    return {each.key: nearest_in(each, moved[each.key]) if each.key in moved else each.default for each in facts.space}


def _storage(url: str) -> Any:
    optuna, path = _optuna(), url.removeprefix("sqlite:///")
    if path != url:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    options = {"connect_args": {"timeout": 60}} if path != url else {"pool_pre_ping": True}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=options)
    except Exception as error:  # SQLAlchemy's, a driver's or Optuna's own: whatever it is, the address is to be looked at
        first = str(error).strip().splitlines()[0]
        raise StoreError(
            f"the studies' database cannot be opened: {first}",
            where="tune.storage",
            allowed="sqlite:///FILE, or postgresql+psycopg://USER@HOST/NAME",
        ) from error


def _sampler(optuna: Any, name: Literal["tpe", "cmaes", "random", "grid"], seed: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental arguments
        if name == "cmaes":
            need("cmaes", extra="tune")
            return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, constant_liar=True)


def _distribution(optuna: Any, each: Varied) -> Any:
    axis: Axis = each.axis
    if axis.choices:
        return optuna.distributions.CategoricalDistribution(each.labels)
    if each.whole:
        return optuna.distributions.IntDistribution(int(axis.low or 0), int(axis.high or 0), log=axis.log, step=int(axis.step or 1))
    return optuna.distributions.FloatDistribution(float(axis.low or 0), float(axis.high or 0), log=axis.log, step=axis.step)


def _beside(frozen: Any) -> _Beside:
    return msgspec.json.decode(frozen.user_attrs[_OF], type=_Beside) if _OF in frozen.user_attrs else _Beside()


def _encoded(beside: _Beside) -> str:
    return msgspec.json.encode(beside).decode()


def _seen(looks: Sequence[RungResult]) -> dict[int, float]:
    return {look.rung: look.value for look in looks if look.value is not None}


def defaults(space: Sequence[Varied]) -> dict[str, Any]:
    """The default plan as a trial's parameters."""
    return {each.key: label(each.default) for each in space}
