"""What is watched: drift of questions and answers against a fixed reference, the quality of sampled answers, judges that change; and what
the tests and charts beneath promise."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random

import msgspec
import numpy as np
import pytest

from tunesmith.api.app import create_app, running
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.errors import ConfigError, DataError
from tunesmith.core.feedback import FeedbackBody
from tunesmith.core.stats.charts import Cusum
from tunesmith.core.stats.martingale import ReferenceMartingale
from tunesmith.core.stats.two_sample import mmd_test, names_test, numbers_test
from tunesmith.core.types import Interaction, Message
from tunesmith.models.echo import EchoModel
from tunesmith.monitor.drift import DriftReference, form, script
from tunesmith.monitor.quality import ScoredAnswer, quality_chart
from tunesmith.monitor.settings import Monitor
from tunesmith.store.feedback import FeedbackLog
from tunesmith.store.interactions import InteractionLog
from tunesmith.store.quality import QualityScores
from tunesmith.store.store import Store

DAY = 86_400.0
SHOP = (
    "order",
    "parcel",
    "refund",
    "invoice",
    "size",
    "colour",
    "delivery",
    "return",
    "voucher",
    "shoe",
    "jacket",
    "late",
    "broken",
    "price",
)
SEA = ("tide", "harbour", "anchor", "keel", "mast", "sail", "rudder", "buoy", "reef", "gull")


def question(rng, topic=SHOP):
    return f"{rng.choice(('where', 'how', 'why'))} is the {' '.join(rng.choices(topic, k=6))}?"


# --- the statistics beneath --------------------------------------------------------------------------------------------------------------


def test_permutation_tests_agree_with_all_permutations():
    """On three and four values every assignment can be counted; what is drawn must be near that share."""
    a, b = np.array([0.1, 0.5, 0.9]), np.array([1.4, 1.9, 2.2, 0.7])
    both = np.concatenate([a, b])
    distances = np.subtract.outer(both, both) ** 2
    kernel = np.exp(-distances / np.median(distances[np.triu_indices(7, 1)]))
    ranks = both.argsort().argsort().astype(float)
    # Among seven values the largest and the smallest 2, 5 and 10 % are one, 25 % are two.
    tails = [ranks >= 6, ranks >= 5, ranks <= 0, ranks <= 1]
    standard = [(f - f.mean()) / f.std() for f in (ranks, np.abs(ranks - ranks.mean()), *(tail.astype(float) for tail in tails))]

    def mmd(window):
        signs = np.where(np.isin(range(7), window), 1 / 4, -1 / 3)
        return signs @ kernel @ signs

    def shift(window):
        return max(abs(f[list(window)].sum()) for f in standard)

    for statistic, p in ((mmd, mmd_test(a[:, None], b[:, None])), (shift, numbers_test(a, b))):
        every = [statistic(window) for window in itertools.combinations(range(7), 4)]
        exact = np.mean([value >= statistic((3, 4, 5, 6)) - 1e-9 for value in every])
        assert abs(p - exact) < 0.09, (statistic, p, exact)  # 25 draws at least as large, so a fifth of p for one standard error
    assert names_test(["a"] * 30 + ["b"] * 10, ["a"] * 15 + ["b"] * 5) == 1.0
    assert names_test(["a"] * 40, ["b"] * 40) < 0.001
    with pytest.raises(DataError, match="at least 2"):
        numbers_test([1.0], [1.0, 2.0])


@pytest.mark.slow
def test_a_bet_on_more_than_the_bound_gains_nothing_on_average():
    """The mean stake after two windows, over every count that can come, where events are as frequent as their bounds allow."""
    n, seen = 3, [3, 40]
    bounds = ReferenceMartingale(seen, 100).bounds
    assert all(k / 100 < bound < k / 100 + 0.2 for k, bound in zip(seen, bounds, strict=True))
    chance = [[math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)] for p in bounds]
    mean = 0.0
    for first in itertools.product(range(n + 1), repeat=2):
        for second in itertools.product(range(n + 1), repeat=2):
            martingale = ReferenceMartingale(seen, 100)
            martingale.add(first, n)
            martingale.add(second, n)
            mean += math.exp(martingale.log_evidence) * math.prod(
                chance[i][a] * chance[i][b] for i, (a, b) in enumerate(zip(first, second, strict=True))
            )
    assert mean == pytest.approx(1.0, abs=1e-9)


@pytest.mark.slow
def test_quiet_charts_keep_quiet_as_often_as_they_say_and_a_fall_is_seen():
    rng = np.random.default_rng(3)
    for reference, draw in (
        ((rng.random(800) < 0.85).astype(float), lambda p: (rng.random(600) < p).astype(float)),
        (rng.beta(17, 3, 800), lambda p: rng.beta(20 * p, 20 * (1 - p), 600)),
    ):
        chart = Cusum(reference, shift=0.1, horizon=600, false_share=0.05)
        alarms = {}
        for p in (0.85, 0.75):
            alarms[p] = 0
            for _ in range(60):
                chart.height = 0.0
                alarms[p] += max(chart.add(draw(p))) >= chart.limit
        assert alarms[0.85] <= 9, "60 charts at 5 %: 10 or more come less than once in 1,000 times"
        assert alarms[0.75] >= 57
    with pytest.raises(DataError):
        chart.add([math.nan])


# --- drift -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_moved_is_named_and_a_small_lasting_change_is_found_over_windows():
    rng = random.Random(5)
    reference = DriftReference([question(rng) for _ in range(500)])
    for _ in range(3):
        quiet = reference.look([question(rng) for _ in range(100)])
        assert (quiet.alarm, quiet.lasting) == (False, False)
    looks = [reference.look([question(rng, SEA if i < 10 else SHOP) for i in range(100)]) for _ in range(6)]
    assert looks[-1].lasting, [look.evidence for look in looks]
    assert any("least alike" in name or "unknown" in name for name in looks[-1].events)
    far = reference.look([question(rng, SEA) if i < 50 else f"{question(rng)}\n\n- one\n- two" for i in range(100)])
    assert far.alarm
    assert {"embeddings", "vocabulary", "format"} <= {part.name for part in far.properties if part.p_adjusted <= 0.005}
    assert all(row < 50 for row in far.rows), "the rows least like the reference are those of the other topic"
    with pytest.raises(DataError, match="100 or more"):
        DriftReference(["a"] * 99)


@pytest.mark.parametrize(
    ("text", "shape"),
    [('{"a": 1}', "json"), ("```\nx\n```", "code"), ("- a\n- b", "list"), ("|a|b|\n|1|2|", "table"), ("a\n\nb", "paragraphs"), ("why?", "question"), ("{x", "code"), ("", "line")],
)  # fmt: skip
def test_forms_and_scripts_of_texts(text, shape):
    assert form(text) == shape
    assert [script(words) for words in ("hello", "Привет", "你好", "12")] == ["LATIN", "CYRILLIC", "CJK", "none"]


# --- quality -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_judge_that_changes_is_a_break_and_no_alarm():
    rng = np.random.default_rng(1)
    scores = [
        ScoredAnswer(interaction=f"{day}-{i}", created=day * DAY + i, instrument="lenient" if day < 8 else "strict", value=float(rng.random() < (0.87 if day < 8 else 0.77)),
                     label=float(rng.random() < 0.85) if i % 10 == 0 else None)
        for day in range(16) for i in range(50)
    ]  # fmt: skip
    golden = {"lenient": [1.0] * 435 + [0.0] * 65, "strict": [1.0] * 385 + [0.0] * 115}
    chart = quality_chart(scores, golden)
    assert chart.breaks == ("lenient → strict: the same golden answers went from 0.870 to 0.770",)
    assert [segment.alarm for segment in chart.segments] == [None, None]
    assert [segment.labels for segment in chart.segments] == [40, 40], "each rate is corrected by the labels of its own time"
    fallen = quality_chart(scores, {**golden, "strict": [1.0] * 435 + [0.0] * 65})
    assert fallen.segments[1].alarm is not None, "with the old judge's golden scores the new judge is an alarm"
    without = quality_chart(scores, {})
    assert [(segment.limit, segment.alarm) for segment in without.segments] == [(None, None)] * 2


# --- the commands ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A project whose log has 400 chats of one topic, then 100 with another topic among them and refusals."""
    folder = tmp_path_factory.mktemp("watched")
    yaml = """name: shop
sources: [{path: rows.jsonl}]
base: smollm2-135m
deploy: {alias: bot}
monitor: {window: 100, baseline: 200, vectors: words, sample: 50, metrics: {refusal: {}, helpful: {judge: echo, criterion: 'Does it help?'}}}
"""
    (folder / "tunesmith.yaml").write_text(yaml)
    store, rng = Store.open(folder / ".tunesmith"), random.Random(2)
    log = InteractionLog(store)
    rows = [chat(i, question(rng), f"Look under {rng.choice(SHOP)}. [[{rng.choice((4, 5))}]]") for i in range(400)]
    rows += [chat(i, question(rng, SEA if i % 2 else SHOP), "I'm sorry, but I can't help with that. [[1]]") for i in range(400, 500)]

    async def write():
        await asyncio.gather(*map(log.write, rows))

    asyncio.run(write())
    log.close()
    for row in rows[200:240]:
        FeedbackLog(store).put(FeedbackBody(interaction=row.id, thumbs="up").feedback(1e9, source="api", project="default"))
    store.close()
    return folder


def chat(i, asked, answer):
    return Interaction(
        id=f"chatcmpl-{i:04d}", created=i // 25 * DAY + i, alias="bot", variant="v", messages=(Message(role="user", content=asked),), answer=answer,
        finish_reason="stop", prompt_tokens=1, completion_tokens=1, first_token_s=0.1, total_s=0.2,
    )  # fmt: skip


def asked(folder, *words, code, capsys):
    assert guarded(app, ["monitor", *words, "--config", str(folder / "tunesmith.yaml"), "--json"]) == code, capsys.readouterr()
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.slow
def test_drift_of_an_alias_is_told_with_its_rows(place, capsys):
    told = asked(place, "drift", code=3, capsys=capsys)
    looks = {(look["stream"], look["since"] > 15 * DAY): look for look in told["looks"]}
    assert not looks["questions", False]["drift"].get("alarm")
    last = looks["questions", True]
    assert last["drift"]["alarm"]
    assert all(int(id[-4:]) >= 400 and int(id[-4:]) % 2 for id in last["requests"])
    assert told["waiting"] == 0
    lines = [
        json.dumps({"messages": [{"role": "user", "content": question(random.Random(i), SEA)}, {"role": "assistant", "content": "a"}]})
        for i in range(120)
    ]
    (place / "sea.jsonl").write_text("\n".join(lines))
    against = asked(place, "drift", "bot", "--against", str(place / "sea.jsonl"), code=3, capsys=capsys)
    assert all(look["drift"]["alarm"] for look in against["looks"] if look["stream"] == "questions")
    error = asked(place, "drift", "nobody", code=1, capsys=capsys)
    assert "'nobody' has 0 answered chats" in error["error"]["message"]


@pytest.mark.slow
def test_quality_of_an_alias_is_charted_scored_once_and_broken_by_another_judge(place, capsys):
    told = asked(place, "quality", code=3, capsys=capsys)
    assert told["fresh"] == 2 * 500
    refused = told["charts"]["refusal"]["segments"]
    assert len(refused) == 1
    assert refused[0]["alarm"] > 15 * DAY
    assert refused[0]["golden"] == 0.0
    helpful = told["charts"]["helpful"]["segments"][0]
    assert helpful["alarm"] > 15 * DAY
    assert helpful["labels"] == 40
    assert asked(place, "quality", "--look", code=3, capsys=capsys)["fresh"] == 0
    other = asked(place, "quality", '--monitor.metrics={"helpful": {"judge": "echo", "criterion": "Is it kind?"}}', code=3, capsys=capsys)
    assert other["fresh"] == 200, "another criterion is another instrument: the golden answers are scored anew"
    assert guarded(app, ["monitor", "quality", "--look", "--config", str(place / "tunesmith.yaml")]) == 3
    assert "FELL on" in capsys.readouterr().out


class Moody(EchoModel):
    """A judge of another server, whose mind changes and whose name does not."""

    mood = 5

    def answer(self, prompts, sampling, on_answer=None):
        return [msgspec.structs.replace(answer, text=f"[[{self.mood}]]") for answer in super().answer(prompts, sampling, on_answer)]


@pytest.mark.slow
def test_a_judge_that_changes_without_a_word_is_found_by_the_golden_answers(place, capsys):
    judge = Moody("moody")
    with running(create_app({"moody": judge})) as url:
        words = ["--monitor.metrics", json.dumps({"kind": {"judge": f"{url}#moody", "criterion": "Is it kind?"}}), "--monitor.sample", "2"]
        first = asked(place, "quality", *words, code=0, capsys=capsys)
        again = asked(place, "quality", *words, "--monitor.golden_days", "0", code=0, capsys=capsys)
        assert (again["fresh"], again["charts"]) == (20, first["charts"]), "the golden answers were scored anew, and nothing has changed"
        judge.mood = 2
        assert asked(place, "quality", *words, "--monitor.golden_days", "0", code=0, capsys=capsys)["fresh"] == 20
    store = Store.open(place / ".tunesmith")
    kept = QualityScores(store).of("bot", "kind")
    store.close()
    golden = {score.instrument.partition("#")[2]: score.value for score in kept if score.golden}
    assert golden == {"": 1.0, "3": 0.25}


@pytest.mark.parametrize("wrong", [{"window": 5}, {"alpha": 1.0}, {"shift": 0.0}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Monitor(**wrong)
