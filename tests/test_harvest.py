"""From what was said of answers to proposed rows: what may be trained on, what may not, and where each row comes from."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.types import Example, Feedback, Interaction, Message, example_id
from tunesmith.data.version import freeze
from tunesmith.monitor.harvest import harvest
from tunesmith.store.feedback import FeedbackLog
from tunesmith.store.interactions import InteractionLog
from tunesmith.store.store import Store


def asked(i, **more):
    fields = {
        "id": f"c{i}", "created": 1e9 + i, "alias": "bot", "variant": "canary", "messages": (Message(role="user", content=f"what is number {i} in words?"),),
        "answer": f"it is {i}", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1, "first_token_s": 0.1, "total_s": 0.2,
        "deployment": 3, "propensity": 0.1, "strategy": "split", "model_digest": "d1", "conversation": f"talk-{i}", "project": "default",
    }  # fmt: skip
    return Interaction(**fields | more)


def said(i, kind, value, *, by="ann", n=0, **more):
    return Feedback(id=f"f{i}-{kind}-{by}-{n}", interaction=f"c{i}", created=2e9 + n, kind=kind, value=value, by=by, received=2e9, **more)


@pytest.mark.parametrize(
    ("words", "judge", "becomes"),
    [
        ([("thumbs", 1.0)], None, None),
        ([("score", 0.9)], None, None),
        ([("thumbs", 1.0), ("outcome", 1.0)], None, "agreed"),
        ([("thumbs", 1.0), ("outcome", "Resolved")], None, "agreed"),
        ([("thumbs", 1.0), ("outcome", "refunded")], None, "question"),
        ([("thumbs", 1.0), ("outcome", "blue")], None, None),
        ([("thumbs", 1.0)], 0.9, "agreed"),
        ([("thumbs", 1.0)], 0.3, None),
        ([("thumbs", 1.0), ("outcome", 1.0)], 0.2, None),
        ([("outcome", 1.0)], None, None),
        ([("thumbs", 0.0)], None, "question"),
        ([("thumbs", 0.0), ("thumbs", 1.0)], None, None),  # the same person thought again, and thumbs alone train nothing
        ([("correction", "seven")], None, "correction"),
        ([("thumbs", 0.0), ("correction", "seven")], 0.9, "correction"),
        ([("score", 7.0)], None, None),
    ],
)  # fmt: skip
def test_thumbs_alone_train_nothing(words, judge, becomes):
    feedback = [said(1, kind, value, n=n) for n, (kind, value) in enumerate(words)]
    made = harvest(feedback, {"c1": asked(1)}, {} if judge is None else {"c1": judge})
    assert [each.kind for each in made.proposed] == ([becomes] if becomes else [])
    assert bool(made.left) == (becomes is None)


def test_words_of_models_and_of_people_who_disagree_are_no_answers():
    made = harvest([said(1, "correction", "seven", by="model"), said(2, "correction", "two"), said(2, "correction", "zwei", by="bob"), said(3, "thumbs", 1.0)], {"c1": asked(1), "c2": asked(2)}, {})  # fmt: skip
    assert [(each.kind, each.row.origin) for each in made.proposed] == [("question", "interaction:c2")]
    assert sorted(made.left.values()) == [1, 1]


def test_a_row_keeps_who_answered_how_it_came_to_that_and_who_said_what():
    (proposed,) = harvest([said(1, "correction", "seven", source="langsmith", comment="as words")], {"c1": asked(1)}, {}).proposed
    assert [turn.text for turn in proposed.row.messages] == ["what is number 1 in words?", "seven"]
    meta = proposed.row.meta
    assert (meta["variant"], meta["deployment"], meta["propensity"], meta["strategy"], meta["model_digest"]) == (
        "canary",
        3,
        0.1,
        "split",
        "d1",
    )
    assert (meta["provenance"], meta["answer"], meta["harvested"]) == ("interaction:c1", "it is 1", "correction")
    assert meta["said"] == [
        {"id": "f1-correction-ann-0", "kind": "correction", "value": None, "by": "ann", "source": "langsmith", "comment": "as words"}
    ]
    elsewhere = said(9, "correction", "nine", messages=(Message(role="user", content="number 9?"),), answer="9", alias="gpt")
    (proposed,) = harvest([elsewhere], {}, {}).proposed
    assert (proposed.row.messages[-1].text, proposed.row.meta["alias"]) == ("nine", "gpt")


@pytest.mark.slow
def test_harvest_cleans_leaves_out_what_is_sealed_and_goes_on_to_review(tmp_path, capsys):
    (tmp_path / "tunesmith.yaml").write_text(
        "name: shop\nsources: [{path: rows.jsonl}]\nbase: smollm2-135m\nsplit: {semantic: {action: 'off'}}\n"
    )
    (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n')
    store = Store.open(tmp_path / ".tunesmith")
    log = InteractionLog(store)
    requests = [asked(i) for i in range(8)] + [asked(8, messages=asked(1).messages, id="c8")]
    asyncio.run(_write(log, requests))
    log.close()
    sealed = (*asked(0).messages, Message(role="assistant", content="nought"))
    test = Example(id=example_id(sealed), messages=sealed, origin="rows.jsonl:1")
    other = msgspec.structs.replace(
        test, id="x" * 24, messages=(Message(role="user", content="else entirely"), sealed[1]), origin="rows.jsonl:2"
    )
    freeze(store.layout.datasets, {"train": [other], "validation": [], "test": [test]}, {"step": "split"}, note="split")
    for word in [said(i, "correction", f"number word {i}") for i in range(4)] + [said(8, "correction", "number word 1"), said(5, "thumbs", 0.0), said(6, "thumbs", 1.0)]:  # fmt: skip
        FeedbackLog(store).put(word)
    store.close()
    config = ["--config", str(tmp_path / "tunesmith.yaml")]
    assert guarded(app, ["feedback", "harvest", "--dry-run", "--json", *config]) == 0, capsys.readouterr()
    assert len(json.loads(capsys.readouterr().out.strip().splitlines()[-1])["proposed"]) == 6
    assert guarded(app, ["feedback", "harvest", "--json", *config]) == 0, capsys.readouterr()
    done = json.loads(capsys.readouterr().out)
    assert done["kinds"] == {"correction": 4, "question": 1}
    assert done["lost"] == {"exact_duplicate": 1}
    assert done["left"] == {"thumbs or a score alone: no outcome and no corrected judge agrees": 1, "it asks what a sealed row asks": 1}
    assert guarded(app, ["data", "show", done["rows"], "--json", *config]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["rows"]) == 3
    assert guarded(app, ["data", "review", done["questions"], "--json", "--as", "ann", *config]) == 0
    assert "number 5" in capsys.readouterr().out
    retrain = ["feedback", "retrain", "--rows", done["rows"], *config]
    assert guarded(app, [*retrain, "--json"]) == 0
    look = json.loads(capsys.readouterr().out)
    assert (look["due"], look["proposed"]) == (False, 3)
    assert guarded(app, [*retrain, "--start"]) == 3, "what is not due is not trained"
    assert guarded(app, [*retrain, "--retrain.when.rows", "3"]) == 0
    assert f"tunesmith feedback retrain --rows {done['rows']} --start" in capsys.readouterr().out


async def _write(log, rows):
    await asyncio.gather(*map(log.write, rows))
