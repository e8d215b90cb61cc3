"""The card of an exported model (README.md): what it is, what it came from and what was measured of exactly these weights. States only
what is recorded; holds no times of its own."""

from __future__ import annotations

from tunesmith.core.stats import Interval
from tunesmith.core.types import Record


class CardMetric(Record, frozen=True):
    """One metric of one evaluation of these weights; no interval where none could be computed."""

    data: str
    rows: int
    metric: str
    value: float
    interval: Interval | None = None


class CardFacts(Record, frozen=True):
    """What is known of a model: its base (with digest and licence), the digest over all that decides its answers, where it comes from
    (kind, name, words; the nearest first), and what was measured."""

    name: str
    base: str
    base_digest: str
    license: str = ""
    digest: str = ""
    lineage: tuple[tuple[str, str, str], ...] = ()
    measured: tuple[CardMetric, ...] = ()


def card(facts: CardFacts, library: str, use: str) -> str:
    """The card as Markdown, with the header that model hubs read; `use` says how this target is loaded."""
    base = f"`{facts.base}`, digest `{facts.base_digest}`" + (f", licence {facts.license}" if facts.license else "")
    on_hub = [f"base_model: {facts.base}"] if "/" in facts.base[1:] else []
    header = ["---", f"library_name: {library}", "tags: [tunesmith]", *on_hub, "---"]
    return "\n".join([*header, f"# {facts.name}\n", f"Base: {base}.", *_origin(facts), *_scores(facts), f"\n## Use\n\n{use}"]) + "\n"


def _origin(facts: CardFacts) -> list[str]:
    digest = [f"\nDigest of all that decides its answers: `{facts.digest}`."] if facts.digest else []
    if not facts.lineage:
        return [*digest, "\n## Where it comes from\n\nNothing is recorded."]
    lines = [f"| {kind} | `{name}` | {_cell(words)} |" for kind, name, words in facts.lineage]
    return [*digest, "\n## Where it comes from\n", "| | | |\n|---|---|---|", *lines]


def _scores(facts: CardFacts) -> list[str]:
    if not facts.measured:
        return ["\n## Measured\n\nNo evaluation of these weights is kept."]
    lines = [f"| {_cell(row.data)} | {row.rows} | {row.metric} | {row.value:.4g} | {_interval(row.interval)} |" for row in facts.measured]
    return ["\n## Measured\n", "| data | rows | metric | value | interval |\n|---|---|---|---|---|", *lines]


def _interval(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.low:.4g} to {interval.high:.4g} ({interval.level:.0%})"


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")
