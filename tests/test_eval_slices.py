"""Slices, failures, confusion, wins and losses: where and why, on planted truth."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from test_eval_run import Ruled
from tunesmith.core.errors import ConfigError
from tunesmith.core.text_vectors import TextIndex
from tunesmith.core.types import Answer, Example, Message, Sampling, example_id
from tunesmith.evaluate.failures import changed, collect_next, confusion, failure_groups
from tunesmith.evaluate.metrics import metric
from tunesmith.evaluate.run import Evaluation, evaluate
from tunesmith.evaluate.slices import by_cluster, by_label, by_length, by_meta, slices

TOPICS = {"bank": "loan credit interest lender bank", "cat": "whiskers milk purring mouse cat", "sea": "wave tide ship harbour sea"}


def rows(n: int = 180) -> list[Example]:
    draw = random.Random(0)
    made = []
    for i in range(n):
        topic = list(TOPICS)[i % 3]
        said = " ".join(draw.sample(TOPICS[topic].split(), 3)) + f" number {i}"
        messages = (Message(role="user", content=said), Message(role="assistant", content=topic))
        made.append(Example(id=example_id(messages), messages=messages, label=topic, meta={"topic": topic, "rare": str(i // 177)}))
    return made


def topic_of(text: str) -> str:
    return max(TOPICS, key=lambda t: len(set(TOPICS[t].split()) & set(text.split())))


def run(examples: Sequence[Example], rule: Callable[[str], str], out: Path) -> Evaluation:
    model = Ruled(lambda text: Answer(text=rule(text)), digest=out.name)
    return evaluate(model, examples, [metric("accuracy")], sampling=Sampling(), out=out)


def weak_at_sea(text: str) -> str:
    return "cat" if topic_of(text) == "sea" else topic_of(text)


ROWS = rows()


def test_the_planted_slice_comes_first_and_is_the_only_sure_one(tmp_path: Path) -> None:
    a, b = run(ROWS, topic_of, tmp_path / "a"), run(ROWS, weak_at_sea, tmp_path / "b")
    slicers = {"topic": by_meta("topic"), "length": by_length, "rare": by_meta("rare"), "label": by_label}
    table = slices(ROWS, [metric("accuracy")], slicers, b, a)
    assert {(s.dimension, s.name) for s in table[:2]} == {("topic", "sea"), ("label", "sea")}
    assert (table[0].a, table[0].b, table[0].n) == (1.0, 0.0, 60)
    assert table[0].p_adjusted is not None
    assert table[0].p_adjusted < 1e-6
    assert all(s.p_adjusted is None or s.p_adjusted < 1 or s.dimension in ("topic", "label") for s in table)
    tiny = next(s for s in table if s.dimension == "rare" and s.name == "1")
    assert (tiny.n, tiny.difference, tiny.p_adjusted) == (3, None, None)
    alone = slices(ROWS, [metric("accuracy")], {"topic": by_meta("topic")}, b)
    assert (alone[0].name, alone[0].b, alone[0].a) == ("sea", 0.0, None)
    assert alone[0].interval is not None
    with pytest.raises(ConfigError, match="other rows"):
        slices(ROWS[:50], [metric("accuracy")], slicers, b, a)


@pytest.mark.slow
def test_no_difference_is_rarely_called_one(tmp_path: Path) -> None:
    draw = random.Random(3)
    called = 0
    for i in range(40):
        noise = [{row.prompt[-1].text: draw.random() < 0.8 for row in ROWS} for _ in range(2)]
        a, b = (
            run(ROWS, lambda t, right=right: topic_of(t) if right[t] else "none", tmp_path / f"{i}{k}") for k, right in enumerate(noise)
        )
        table = slices(ROWS, [metric("accuracy")], {"topic": by_meta("topic"), "length": by_length}, b, a)
        called += any(s.p_adjusted is not None and s.p_adjusted < 0.05 for s in table)
    assert called <= 6  # 5 % of 40 are 2; more than 6 has a chance below 1 %


def test_clusters_find_the_topics_and_name_them() -> None:
    names = by_cluster(3)(ROWS)
    for topic, told in TOPICS.items():
        own = {name for name, row in zip(names, ROWS, strict=True) if row.label == topic}
        assert len(own) == 1
        assert set(next(iter(own)).split()) & set(told.split())


def test_failures_are_grouped_named_and_shown_with_what_taught_them(tmp_path: Path) -> None:
    b = run(ROWS, weak_at_sea, tmp_path / "b")
    train = [row for row in rows(300)[180:] if row.label != "sea"]
    groups = failure_groups(ROWS, b.scores("accuracy"), train=train, k=2)
    assert sum(len(g.example_ids) for g in groups) == 60
    assert sum(g.share for g in groups) == pytest.approx(1)
    assert set(groups[0].name.split()) & set(TOPICS["sea"].split())
    assert groups[0].support is not None
    assert groups[0].support < 0.3
    assert len(groups[0].nearest[0]) == 3
    assert sum(weight for _, weight in collect_next(groups)) == pytest.approx(1)
    assert failure_groups(ROWS, run(ROWS, topic_of, tmp_path / "a").scores("accuracy")) == []
    assert collect_next([]) == []


@pytest.mark.slow
def test_wins_and_losses(tmp_path: Path) -> None:
    a, b = run(ROWS, lambda t: "bank", tmp_path / "a"), run(ROWS, weak_at_sea, tmp_path / "b")
    found = changed(ROWS, a, b, "accuracy")
    assert [one.gain for one in found] == [1.0] * 60
    assert {(one.a, one.b, one.reference) for one in found} == {("bank", "cat", "cat")}
    assert [one.gain for one in changed(ROWS, b, a, "accuracy")] == [-1.0] * 60


def test_confusion_and_per_class(tmp_path: Path) -> None:
    found = confusion(run(ROWS, weak_at_sea, tmp_path / "b").scores("accuracy"))
    assert found.labels == ("bank", "cat", "sea")
    assert found.table == ((60, 0, 0), (0, 60, 0), (0, 60, 0))
    cat, sea = found.classes[1], found.classes[2]
    assert cat.precision is not None
    assert (cat.precision.estimate, cat.f1) == (0.5, pytest.approx(2 / 3))
    assert (sea.precision, sea.wanted, sea.said, sea.f1) == (None, 60, 0, 0)


def test_tfidf_bears_empty_and_unknown_texts() -> None:
    index = TextIndex(["a b", "", "c"])
    assert index.rank("c d")[0] == 2
    assert index.similar(["zzz"]).sum() == 0
    assert len(set(index.clusters(5))) <= 3
    assert list(TextIndex(["", ""]).clusters(2)) == [0, 0]


def test_slices_of_a_pooled_metric(tmp_path: Path) -> None:
    told = [row.prompt[-1].text for row in ROWS]
    wanted = [f"[{row.label} - TOPIC]" for row in ROWS]
    entity_rows = [
        Example(id=example_id(m), messages=m, label=row.label)
        for row, text, reply in zip(ROWS, told, wanted, strict=True)
        for m in [(Message(role="user", content=text), Message(role="assistant", content=reply))]
    ]
    f1 = metric("entity_f1")
    models = [Ruled(lambda t, rule=rule: Answer(text=f"[{rule(t)} - TOPIC]"), digest=rule.__name__) for rule in (topic_of, weak_at_sea)]
    a, b = (evaluate(model, entity_rows, [f1], sampling=Sampling(), out=tmp_path / model.digest) for model in models)
    table = slices(entity_rows, [f1], {"label": by_label}, b, a)
    assert (table[0].name, table[0].a, table[0].b) == ("sea", 1.0, 0.0)
    assert table[0].difference is not None
    assert table[0].difference.high < 0
    alone = slices(entity_rows, [f1], {"label": by_label}, b)
    assert alone[0].interval is not None
    assert alone[0].interval.high < 0.2


def test_a_few_odd_texts_do_not_take_all_the_groups():
    """Rows far from everything are what seeding by the farthest row picks first: every group then holds one of them, and all others are one."""
    rng = np.random.default_rng(0)
    topics = [[f"topic{t}word{i}" for i in range(40)] for t in range(4)]
    texts = [" ".join(rng.choice(topics[i % 4], 12)) for i in range(200)] + [f"odd{i} one{i} alone{i}" for i in range(6)]
    label = TextIndex(texts).clusters(8)
    mixed = [len({i % 4 for i in np.flatnonzero(label[:200] == c)}) > 1 for c in np.unique(label[:200])]
    assert not any(mixed)
