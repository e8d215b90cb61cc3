"""Searches that choose among plans whose curves were measured: each gives the tokens that it has trained when a whole training first has
the best value of the grid; all of them where it never meets it. All see the same numbers, and only their choices differ.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable

from benchmarks.harness import peer_python
from benchmarks.tune_tasks import RUNGS, Grid, key

SEEDS = 5


def searches() -> dict[str, Callable[[Grid, int], int]]:
    return {
        "tunesmith tune": _ours,
        "tunesmith tune, eight side by side": _eight_at_once,
        "Optuna 5, its own pruner (successive halving)": _optuna_pruned,
        "Optuna 5 (TPE)": _optuna,
        "syne-tune 0.16 (ASHA)": _syne_tune,
        "random": _random,
        "grid, in order": _in_order,
    }


def _ours(grid: Grid, seed: int, at_once: int = 1) -> int:
    """The study's own database, proposals and halving, over the measured curves; `at_once` trials of a rung are chosen together."""
    from tunesmith.tune.halving import step
    from tunesmith.tune.search import Search, StudyFacts, defaults
    from tunesmith.tune.settings import Axis, Tune
    from tunesmith.tune.space import Varied
    from tunesmith.tune.trials import DEFAULT, Rung, RungResult, Trial, find

    own, count = json.loads(grid.default), len(grid.curves)
    space = tuple(Varied(key=name, axis=Axis(choices=tuple(axis["choices"])), default=own[name]) for name, axis in grid.space.items())
    at = (0, len(RUNGS) - 1)  # the rungs of a study's own ladder: a ninth, and all
    rungs = tuple(Rung(share=RUNGS[place]) for place in at)
    with tempfile.TemporaryDirectory() as folder:
        facts = StudyFacts(
            identity="", about={}, project="bench", method="sft", metric="exact_match", higher=True, space=space, rungs=rungs,
            sampler="tpe", seed=seed, parameters=1, rows=1,
        )  # fmt: skip
        search, tune, spent = Search.begin(f"sqlite:///{folder}/s.db", "s", facts), Tune(trials=count), 0
        search.add(defaults(space), "default")
        while True:
            legs: list[tuple[Trial, int]] = []
            while len(legs) < at_once and not (legs and legs[0][0].number == DEFAULT):
                chosen = step(search.trials(), rungs, tune, higher=True, more=len(search.trials()) < count)
                if chosen is None or (legs and chosen.rung != legs[0][1]):
                    break
                trial = search.next(count) if chosen.number is None else find(search.trials(), chosen.number)
                assert trial is not None
                search.mark(trial.number, "running")
                legs.append((trial, chosen.rung))
            if not legs:
                return grid.tokens
            for trial, rung in legs:
                curve = grid.curves[key(trial.params)]
                tokens, value, loss = curve[at[rung]]
                spent += tokens - (curve[at[rung - 1]][0] if rung else 0)
                top = rung == len(rungs) - 1
                search.look(trial.number, RungResult(rung=rung, value=value, loss=loss, tokens=tokens), "finished" if top else "paused")
                if top and value >= grid.best:
                    return spent


def _eight_at_once(grid: Grid, seed: int) -> int:
    return _ours(grid, seed, at_once=8)


def _plain(grid: Grid, order: list[str]) -> int:
    spent = 0
    for name in order:
        spent += grid.curves[name][-1][0]
        if grid.curves[name][-1][1] >= grid.best:
            return spent
    return spent


def _random(grid: Grid, seed: int) -> int:
    order = list(grid.curves)
    random.Random(seed).shuffle(order)
    return _plain(grid, order)


def _in_order(grid: Grid, seed: int) -> int:
    """Of a full grid all plans are trained before the best is known."""
    return grid.tokens


def _optuna(grid: Grid, seed: int) -> int:
    return _by_optuna(grid, seed, pruned=False)


def _optuna_pruned(grid: Grid, seed: int) -> int:
    return _by_optuna(grid, seed, pruned=True)


def _by_optuna(grid: Grid, seed: int, *, pruned: bool) -> int:
    """Optuna as its documentation has it: TPE with its defaults, and its pruner for successive halving. A plan twice costs twice."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(reduction_factor=3) if pruned else optuna.pruners.NopPruner()
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner)
    spent = 0
    while spent < grid.tokens:
        trial = study.ask()
        params = {name: trial.suggest_categorical(name, axis["choices"]) for name, axis in grid.space.items()}
        before, ended = 0, False
        for rung, (tokens, value, _) in enumerate(grid.curves[key(params)]):
            spent, before = spent + tokens - before, tokens
            trial.report(value, 3**rung)
            if rung < len(RUNGS) - 1 and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                ended = True
                break
        if not ended:
            study.tell(trial, value)
            if value >= grid.best:
                return spent
    return grid.tokens


_SYNE = """
import json, sys
from syne_tune.config_space import choice
from syne_tune.optimizer.baselines import ASHA
from syne_tune.backend.trial_status import Trial
import datetime
given = json.loads(sys.stdin.read())
curves, space = given["curves"], {key: choice(axis["choices"]) for key, axis in given["space"].items()}
best, whole = max(c[-1][1] for c in curves.values()), sum(c[-1][0] for c in curves.values())
found = []
for seed in range(given["seeds"]):
    made = ASHA(space, metric="value", time_attr="epoch", max_t=9, grace_period=1, reduction_factor=3, do_minimize=False, random_seed=seed)
    spent, number, reached = 0, 0, None
    while spent < whole and reached is None:
        suggestion = made.suggest()
        trial = Trial(number, suggestion.config, datetime.datetime.now())
        made.on_trial_add(trial)
        number += 1
        before = 0
        key = json.dumps({k: suggestion.config[k] for k in sorted(given["space"])}, sort_keys=True)
        for rung, (tokens, value, _) in enumerate(curves[key]):
            spent, before = spent + tokens - before, tokens
            result = {"epoch": 3**rung, "value": value}
            if rung == len(curves[key]) - 1:
                made.on_trial_complete(trial, result)
                reached = spent if value >= best else None
            elif made.on_trial_result(trial, result) != "CONTINUE":
                made.on_trial_remove(trial)
                break
    found.append(reached or whole)
print(json.dumps(found))
"""
_syne_found: dict[str, list[int]] = {}


def _syne_tune(grid: Grid, seed: int) -> int:
    """ASHA with its defaults (stopping), in an environment of its own; where it cannot run it counts as the whole grid, which is said."""
    import subprocess

    given = json.dumps({"curves": grid.curves, "space": grid.space, "seeds": SEEDS})
    if given not in _syne_found:
        try:
            done = subprocess.run(
                [peer_python("syne-tune-0.16", ["syne-tune==0.16.0"]), "-c", _SYNE],
                input=given,
                capture_output=True,
                text=True,
                timeout=600,
            )
            _syne_found[given] = json.loads(done.stdout.splitlines()[-1])
        except (subprocess.SubprocessError, IndexError, ValueError) as error:
            print(f"  syne-tune did not run: {error}", flush=True)
            _syne_found[given] = [grid.tokens] * SEEDS
    return _syne_found[given][seed]
