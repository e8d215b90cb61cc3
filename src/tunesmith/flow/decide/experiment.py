"""`tunesmith decide`: what can be said is said before anything is spent, then every arm is built, all are asked the same sealed rows, and
the cheapest of the best is named. An interrupted experiment goes on: answers and trainings are found, the test rows are opened once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.errors import ConfigError, TunesmithError
from tunesmith.core.progress import Progress
from tunesmith.core.types import digest
from tunesmith.decide.arms import KINDS, Arm, Arms, arms_of
from tunesmith.decide.plan import Decide, Learning
from tunesmith.decide.records import Decision, MeasuredArm
from tunesmith.decide.rules import Guidance
from tunesmith.decide.verdict import broken_limits, cheapest_first, decide
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.decide.beforehand import ONE_ROUND, ExpectedBuild, check_budget, expected_build, look
from tunesmith.flow.decide.budget import Budget
from tunesmith.flow.decide.build import Built, build
from tunesmith.flow.decide.desk import Desk
from tunesmith.flow.decide.evidence import evidence_of, measured
from tunesmith.flow.decide.learning import learning_curve
from tunesmith.flow.decide.pooled import PooledDecision
from tunesmith.flow.decide.racing import drawn, run_race
from tunesmith.flow.decide.report import Found, written
from tunesmith.flow.decide.ruling import knowledge_probe, needs_of, ruled
from tunesmith.flow.decide.upkeep import Upkeep, priced, upkeep_of
from tunesmith.flow.decide.volume import volumes
from tunesmith.flow.pipeline.run import opened
from tunesmith.flow.project import Project
from tunesmith.flow.runner import only_one

_DATA = ("collect", "split", "tokens")
# What --quick changes where the file does not say it, and what of the plan.
_QUICK: dict[str, Any] = {
    "validation_rows": 10,
    "test_rows": 64,
    "shard": 12,
    "shots": (4,),
    "passages": (3,),
    "latency_rows": 3,
    "learning": Learning(shares=()),
}
_LEFT_TO_LONGER = (
    "few-shot-greedy",
    "optimised-prompt",
    "fine-tuned-retrieval",
    "distilled",
)  # kinds that --quick builds only where they are named


@dataclass(frozen=True)
class ExperimentOutcome:
    """How an experiment ended: its decision, and where the pages lie."""

    decision: Decision
    report: dict[str, Any]
    folder: Path

    def text(self) -> str:
        """In words."""
        lines = [self.decision.sentence]
        for arm in self.report["arms"]:
            interval = arm.get("interval")
            span = f" [{interval['low']:.3f}, {interval['high']:.3f}]" if interval else ""
            value = "–" if arm["value"] is None else f"{arm['value']:.3f}{span}"
            lines.append(f"  {arm['name']:<28} {value}  {arm['rows']} rows{'  ' + arm['dropped'] if arm['dropped'] else ''}")
        lines += [f"not tried: {name}: {why}" for name, why in self.report["left_out"].items()]
        lines += [f"next: {command}" for command in self.report["next"]]
        return "\n".join([*lines, f"decision: {self.folder / 'decision.html'}"])


def quickened(project: Project) -> Project:
    """The project as `--quick` has it: what the file leaves at its default is made smaller, one epoch where the plan says auto."""
    plan, usual = project.decide, Decide()
    smaller = {key: value for key, value in _QUICK.items() if getattr(plan, key) == getattr(usual, key)}
    train = msgspec.structs.replace(project.train, epochs=1) if project.train.epochs == "auto" else project.train
    return msgspec.structs.replace(project, decide=msgspec.structs.replace(plan, **smaller), train=train)


def run_decide(project: Project, folder: Path, progress: Progress, *, out: Path, command: str = "tunesmith decide") -> ExperimentOutcome:
    """Carry the experiment out and write `decision.html`, `.json` and `.md` into `out`.

    Raises ConfigError, before anything is spent, for arms that cannot be, a metric that cannot decide and a budget that is too small for
    one arm; NotFound for a word that names no model.
    """
    project = quickened(project) if project.decide.quick else project
    plan = project.decide
    arms = _arms(plan, project.base)
    with _contexts(project, folder, progress) as contexts:
        desk = Desk(plan, folder, contexts, Budget(plan.budget_s, plan.budget_usd, plan.machine_per_hour))
        with only_one(desk.project.store.folder):
            look(desk, arms.arms)
            for context in contexts.values():
                for stage in _DATA:
                    context.runner.run(stage)
            arms, published = ruled(desk, arms)
            identity = _identity(desk, arms)
            desk.folder = desk.project.store.layout.decisions / identity
            check_budget(desk, arms.arms)
            return _carried_out(desk, arms, ExperimentRequest(identity, out, command, published))


def _arms(plan: Decide, base: str) -> Arms:
    arms = arms_of(plan, base)
    if not plan.quick or plan.arms:
        return arms
    dropped = {arm.name: "left to the experiment without --quick" for arm in arms.arms if arm.kind in _LEFT_TO_LONGER}
    return Arms(arms=tuple(arm for arm in arms.arms if arm.name not in dropped), left_out=arms.left_out | dropped)


@contextmanager
def _contexts(project: Project, folder: Path, progress: Progress) -> Iterator[dict[str, ProjectContext]]:
    """A project at work for each base, all over the same store."""
    with ExitStack() as stack:
        yield {
            base: stack.enter_context(opened(msgspec.structs.replace(project, base=base), folder, progress))
            for base in (project.base, *project.decide.bases)
        }


def _identity(desk: Desk, arms: Arms) -> str:
    """What names the experiment: its rows, bases, plan and arms; what it may take and what prices are change nothing of it,
    another rule is another look at the test rows."""
    plan = msgspec.structs.replace(desk.plan, budget=None, budget_usd=None, machine_per_hour=None, busy=1.0, requests_per_month=None)
    bases = [(context.runner.digests["tokens"], context.project.train) for context in desk.contexts.values()]
    return digest(plan, arms.arms, bases, desk.project.project.evaluate, *([desk.documents] if desk.documents else []))[:16]


@dataclass(frozen=True)
class ExperimentRequest:
    """How an experiment was asked for, its name, and the published figures that bear on it."""

    identity: str
    out: Path
    command: str
    published: tuple[Guidance, ...]


def _carried_out(desk: Desk, arms: Arms, asked: ExperimentRequest) -> ExperimentOutcome:
    left_out = dict(arms.left_out)
    lacks = knowledge_probe(desk) if not desk.plan.quick else None
    timed = sorted(_built(desk, arms.arms, left_out), key=lambda pair: pair[0].arm.rank)
    untried = [arm.name for arm in arms.arms if arm.name in left_out]
    built, upkeeps = [arm for arm, _ in timed], {arm.arm.name: upkeep for arm, upkeep in timed}
    desk.forget()
    able, barred = _able(desk, built, upkeeps)
    raced = run_race(desk, able, asked.identity)
    figures = evidence_of(desk, able, raced)
    skipped: dict[str, str] = {}
    desk.forget()
    curve = learning_curve(desk, built, skipped)
    plan = desk.plan
    arms_measured = [measured(one, upkeeps[one.arm.name], raced, figure) for one, figure in zip(able, figures, strict=True)]
    pooled = PooledDecision(desk.metric, raced)
    by_metric: dict[str, Any] = {} if desk.metric.kind == "mean" else {"compare": pooled.compare, "score": pooled.score}
    decision = decide(
        [*arms_measured, *barred],
        plan.margin,
        plan.constraints,
        plan.alpha,
        requests=plan.requests_per_month,
        race=raced.race,
        untried=untried,
        **by_metric,
    )
    more = {
        "volume": volumes(list(upkeeps.values()), decision, plan.requests_per_month),
        "needs": msgspec.to_builtins(needs_of(desk)),
        "guidance": msgspec.to_builtins(asked.published),
        "probe": lacks,
    }
    left_out |= {arm.name: "; ".join(broken_limits(arm, plan.constraints)) for arm in barred} | skipped
    report = written(desk, Found(asked.identity, asked.command, decision, figures, raced, upkeeps, left_out, curve, more), asked.out)
    return ExperimentOutcome(decision, report, asked.out)


def _able(desk: Desk, built: Sequence[Built], upkeeps: Mapping[str, Upkeep]) -> tuple[list[Built], list[MeasuredArm]]:
    """The arms that keep the constraints, from the cheapest to the dearest, and the others, which no test row is spent on.

    Raises ConfigError where none keeps them.
    """
    by_name = {one.arm.name: one for one in built}
    arms = [priced(one, upkeeps[one.arm.name]) for one in built]
    broken = {arm.name: broken_limits(arm, desk.plan.constraints) for arm in arms}
    order = cheapest_first(arms, desk.plan.requests_per_month)
    if all(broken.values()):
        why = "; ".join(f"{name}: {', '.join(limits)}" for name, limits in broken.items())
        raise ConfigError(f"no arm keeps the constraints ({why})", where="decide.constraints", remedy="other limits, or other arms")
    return [by_name[name] for name in order if not broken[name]], [arm for arm in arms if broken[arm.name]]


def _built(desk: Desk, arms: tuple[Arm, ...], left_out: dict[str, str]) -> Iterator[tuple[Built, Upkeep]]:
    """The arms that the budget allows, built and timed; why another was not built is told. One that cannot be built for its own reasons,
    such as a server that does not answer, leaves the others alone.

    The first of each family come first, so that a short budget compares unlike arms. What is kept for the race is what the first rows take
    of all that are built. What answering took corrects what is expected of the next arms."""
    pace = _Pace(min(ONE_ROUND * desk.plan.shard, len(drawn(desk)[0])))
    for number, arm in enumerate(_broad(arms)):
        try:
            expected = expected_build(desk, arm)
            short = desk.budget.short(pace.build_s(expected), race_s=pace.race_s()) if number else ""
            if short:
                left_out[arm.name] = f"not built: {short}"
                desk.project.progress.say(f"{arm.name}: {left_out[arm.name]}")
                continue
            desk.project.progress.say(f"building {arm.name}")
            began = desk.budget.taken_s
            built = build(desk, arm)
            upkeep = upkeep_of(desk, built)
            pace.took(desk.budget.taken_s - began, built.train_s, expected, upkeep.busy_s)
            yield built, upkeep
        except ConfigError:
            raise
        except TunesmithError as error:
            left_out[arm.name] = f"not built: {error.what}"
            desk.project.progress.say(f"{arm.name}: {error}")


def _broad(arms: Sequence[Arm]) -> list[Arm]:
    """The first arm of each family on each base, from the simplest; then the others."""
    first: dict[tuple[str, str], Arm] = {}
    for arm in arms:
        first.setdefault((KINDS[arm.kind].family, arm.base), arm)
    return [*first.values(), *(arm for arm in arms if arm not in first.values())]


@dataclass
class _Pace:
    """How long building and asking take on this machine: what is expected by formula, corrected by what the arms so far took."""

    first_rows: int
    expected_s: float = 0.0
    answered_s: float = 0.0
    each_s: list[float] = field(default_factory=list)  # seconds a request of the arms that are built

    def took(self, seconds: float, train_s: float, expected: ExpectedBuild, busy_s: float) -> None:
        """An arm was built and timed in so many seconds, of which `train_s` were training."""
        self.answered_s += max(0.0, seconds - train_s)
        self.expected_s += expected.answering_s
        self.each_s.append(busy_s)

    def build_s(self, expected: ExpectedBuild) -> float:
        """Seconds to build an arm of which that is expected."""
        return expected.training_s + expected.answering_s * (self.answered_s / self.expected_s if self.expected_s else 1.0)

    def race_s(self) -> float:
        """Seconds to ask the first rows to the arms that are built and to one more, which is taken to be as slow as the slowest of them."""
        return self.first_rows * (sum(self.each_s) + max(self.each_s, default=0.0))
