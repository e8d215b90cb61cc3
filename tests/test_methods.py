"""Every training method through every door: its record, its rows, the main commands, the server's jobs, with an adapter and with full
weights. One tiny model."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest

import tiny
from method_parts import SECTIONS, lines, project
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core import row_kinds
from tunesmith.core.chat import Renderer
from tunesmith.core.epochs import default_epochs
from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Document, Example, Labelled, Message, Preference
from tunesmith.train.items import load_items, mismatch, save_items
from tunesmith.train.methods import JOB_METHODS, METHODS, fitting, taken, token_inputs
from tunesmith.train.plan import Distillation, Facts, MethodName, Plan, Reinforcement
from tunesmith.train.plan import PreferencePlan as Options
from tunesmith.train.resolve import check, resolve

SOURCE = Path(__file__).resolve().parents[1] / "src" / "tunesmith"
FACTS = Facts(parameters=134_500_000, hidden_size=576, layers=30, positions=8192, rows=30, trained_tokens=7000, longest=655)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("base"), context=128)  # too short for the general abilities, which test_eval_findings asks


# --- the records --------------------------------------------------------------------------------------------------------------------------


def names_of(tree: ast.AST) -> set[str]:
    """Names of methods that a comparison or a match compares something called method with."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        about = any(isinstance(part, ast.Attribute | ast.Name) and "method" in ast.unparse(part).rpartition(".")[2] for part in sides)
        words = {part.value for side in sides for part in ast.walk(side) if isinstance(part, ast.Constant) and isinstance(part.value, str)}
        if about:
            found |= words & {*METHODS, *JOB_METHODS}
    return found


@pytest.mark.slow
def test_nobody_asks_which_method_a_plan_has():
    """What is particular to a method is in its record; whoever compares names would have to be changed with every new one."""
    asking = {}
    for path in SOURCE.rglob("*.py"):
        compared = names_of(ast.parse(path.read_text("utf-8")))
        if compared:
            asking[str(path.relative_to(SOURCE))] = compared
    assert asking == {}


def test_every_method_has_a_record_and_every_kind_of_row_a_method():
    assert set(METHODS) == set(get_args(MethodName))
    assert all(METHODS[name].name == name for name in METHODS)
    for kind in (Example, Preference, Labelled, Document):
        assert fitting(kind)


def test_the_page_has_a_test_or_a_reason_in_every_cell():
    page = (SOURCE.parents[1] / "docs" / "training.md").read_text("utf-8")
    table = page.partition("### What goes where")[2].partition("\n## ")[0].partition("\n### ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith(("| `", "| IPO"))]
    assert {row[0].strip("`") for row in rows} >= {*METHODS, "IPO"}
    for row in rows:
        assert len(row) == 6
        *cells, hosted = row[1:]
        assert all("::test_" in cell for cell in cells), row[0]
        method = METHODS.get(row[0].strip("`"))
        assert ("trains_what_it_has" in hosted) == (method is not None and method.job.openai), row[0]


@pytest.mark.parametrize("rows", [4, 20, 30, 33, 34, 600, 8333, 8334, 1_000_000])
def test_plans_and_jobs_count_epochs_alike(rows):
    resolved, reasons = resolve(Plan(), msgspec.structs.replace(FACTS, rows=rows))
    assert resolved.epochs == default_epochs(rows)
    assert "OpenAI cookbook" in next(reason.source for reason in reasons if reason.field == "epochs")


def test_a_book_is_many_examples_of_text():
    book = msgspec.structs.replace(FACTS, rows=1, trained_tokens=2_000_000, longest=2_000_000)
    assert resolve(Plan(method="text"), book)[0].epochs == 3
    assert resolve(Plan(method="text"), book)[0].over_length == "split"


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(method="orpo", preference=Options(loss="ipo")), "preference.loss means nothing to method orpo"),
        (Plan(method="kto", preference=Options(label_smoothing=0.1)), "preference.label_smoothing means nothing to method kto"),
        (Plan(method="dpo", preference=Options(desirable_weight=2.0)), "preference.desirable_weight means nothing to method dpo"),
        (Plan(method="dpo", preference=Options(loss="ipo", label_smoothing=0.1)), "loss ipo and label_smoothing exclude each other"),
        (Plan(method="kto", preference=Options(desirable_weight=-1.0)), "desirable_weight is -1.0"),
        (Plan(method="sft", preference=Options(beta=0.3)), "preference means nothing to method sft"),
        (Plan(method="grpo", over_length="truncate"), "over_length truncate and method grpo exclude each other"),
        (Plan(method="text", over_length="drop"), "over_length drop and method text exclude each other"),
        (Plan(method="dpo", over_length="split"), "over_length split and method dpo exclude each other"),
    ],
)
def test_options_that_mean_nothing_to_a_method_are_refused(plan, said):
    with pytest.raises(ConfigError, match=said):
        check(plan)


def test_methods_that_render_alike_share_their_tokens():
    teacher = Distillation(teacher="x")
    alike = [token_inputs(plan) for plan in (Plan(), Plan(method="distil", distillation=teacher), Plan(over_length="drop"), Plan(epochs=9))]
    assert len(set(alike)) == 1
    others = [Plan(method="dpo"), Plan(method="kto"), Plan(method="text"), Plan(method="grpo"), Plan(over_length="truncate")]
    others.append(Plan(method="grpo", reinforcement=Reinforcement(max_tokens=9)))
    assert len({*alike, *map(token_inputs, others)}) == 7
    assert token_inputs(Plan(method="dpo")) == token_inputs(Plan(method="orpo"))


# --- rows ---------------------------------------------------------------------------------------------------------------------------------

ASKED = (Message(role="user", content="Who signed it?"),)
GOOD, BAD = Message(role="assistant", content="Nobody did"), Message(role="assistant", content="First Bank of Ohio")
CHAT = Example(id="c", messages=(*ASKED, GOOD))
PAIR = Preference(id="p", messages=ASKED, preferred=GOOD, non_preferred=BAD, origin="a:1")
WANTED = Labelled(id="l", messages=ASKED, answer=GOOD, desirable=True)
TEXT = Document(id="d", text="The credit agreement is dated as of June 3.")


@pytest.mark.parametrize(("row", "fits"), [(CHAT, "sft"), (PAIR, "dpo"), (WANTED, "kto"), (TEXT, "text")])
@pytest.mark.parametrize("name", METHODS)
def test_rows_of_another_kind_are_refused_with_the_method_that_fits(name, row, fits):
    kind = type(row)
    if METHODS[name].takes is kind or (name, kind) == ("kto", Preference):
        assert taken(name, [row])[0]
        return
    with pytest.raises(ConfigError, match=f"these rows are {row_kinds.NAMES[kind]}, and method {name} takes") as refused:
        taken(name, [row])
    assert fits in refused.value.allowed
    assert name not in refused.value.allowed.split()


def test_a_pair_is_two_labelled_rows_and_that_is_said():
    rows, said = taken("kto", [PAIR])
    assert [(row.answer, row.desirable, row.origin) for row in rows] == [(GOOD, True, "a:1"), (BAD, False, "a:1")]
    assert "two labelled rows" in said


def test_a_turn_that_is_nothing_but_text_is_a_document_and_a_conversation_is_none():
    (row,), _ = taken("text", [Example(id="x", messages=(Message(role="assistant", content="words"),))])
    assert row.text == "words"
    with pytest.raises(ConfigError, match="method text takes documents"):
        taken("text", [CHAT])


def test_documents_are_rendered_without_the_template(base):
    renderer = Renderer.load(base)
    (item,) = METHODS["text"].render(renderer, [TEXT])
    row = item.rows[0]
    assert row.ids.tolist() == [*renderer.encode(TEXT.text), *renderer.encode("<|end|>")]
    assert row.mask.all()


def test_pairs_and_labelled_rows_train_the_answer_alone(base):
    renderer = Renderer.load(base)
    (pair,), (wanted,) = METHODS["dpo"].render(renderer, [PAIR]), METHODS["kto"].render(renderer, [WANTED])
    assert [renderer.decode(row.ids[row.mask > 0].tolist()) for row in (*pair.rows, *wanted.rows)] == [GOOD.text, BAD.text, GOOD.text]
    assert wanted.label == 1.0


def test_items_come_back_from_their_file(base, tmp_path):
    renderer = Renderer.load(base)
    items = [*METHODS["dpo"].render(renderer, [PAIR]), *METHODS["kto"].render(renderer, [msgspec.structs.replace(WANTED, desirable=False)])]
    save_items(tmp_path / "x.npz", items)
    again = load_items(tmp_path / "x.npz")
    assert [(len(item.rows), item.label) for item in again] == [(2, 1.0), (1, 0.0)]
    for item, other in zip(items, again, strict=True):
        for row, same in zip(item.rows, other.rows, strict=True):
            assert row.example_id == same.example_id
            assert np.array_equal(row.ids, same.ids)
            assert np.array_equal(row.mask, same.mask)
    save_items(tmp_path / "none.npz", [])
    assert load_items(tmp_path / "none.npz") == []


def test_what_does_not_fit_a_prompt_is_an_answer_to_another(base):
    """Both rows of a pair have one prompt: the other answer to it would say nothing of how far the model has moved."""
    renderer = Renderer.load(base)
    other = msgspec.structs.replace(PAIR, id="q", messages=(Message(role="user", content="When?"),), preferred=BAD, non_preferred=GOOD)
    rows, _ = taken("kto", [PAIR, other])
    items = METHODS["kto"].render(renderer, rows)
    said = [renderer.decode(item.mismatched.ids.tolist()) for item in mismatch(items, 1000)]
    assert ["Who" in text for text in said] == [True, True, False, False]
    assert [text.count("Nobody did") for text in said] == [1, 1, 0, 0]  # of the nearest item before with another prompt
    assert max(len(item.mismatched.ids) for item in mismatch(items, 9)) == 9
    assert len(mismatch(items[:1], 9)) == 1


# --- the main commands --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tunesmith(capsys):
    """The command in this process: exit code, its JSON, what it said."""

    def run(*words: object) -> tuple[int, dict, str]:
        code = guarded(app, [*map(str, words), "--json"])
        said = capsys.readouterr()
        found = [line for line in said.out.splitlines() if line.startswith("{")]
        return code, json.loads(found[-1]) if found else {}, said.err

    return run


EVERY = [*METHODS, "ipo", "full", "full-dpo", "pairs-kto"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Where the projects are that several tests look at: a stage that one of them has done is not done again."""
    return tmp_path_factory.mktemp("places")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text", "dpo", "ipo", "orpo", "kto", "pairs-kto", "grpo", "distil", "sdft", "full"])
def test_run(tunesmith, base, places, name):
    """From the rows to the report, which says what the method measures of itself."""
    config = project(places / name, base, name)
    code, planned, said = tunesmith("run", "--dry-run", "--config", config)
    assert code == 0, said
    code, _, said = tunesmith("run", "--config", config, "--gate.superior", "false", "--gate.margin", "1.0")
    assert code in (0, 3), said
    report = json.loads((config.parent / "report" / "report.json").read_text())
    method = METHODS[planned["plan"].get("method", "sft")]
    assert {arm["name"] for arm in report["arms"]} == {"zero-shot", "tuned"}
    assert method.unit in report["training"]["about"]
    figures = {"text": {"perplexity"}, "dpo": {"reward_accuracy", "reward_margin"}, "kto": {"reward_margin"}}
    assert set(report["training"]["figures"]) >= figures.get(name, set())


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_estimate_and_train(tunesmith, base, places, name):
    """The estimate counts the steps that training takes; a few rows are learned by heart, where a method has such a proof."""
    config = project(places / name, base, name)
    code, planned, said = tunesmith("estimate", "--config", config)
    assert code == 0, said
    method = METHODS[planned["plan"].get("method", "sft")]
    assert method.name == SECTIONS.get(name, {}).get("method", name)
    assert ("two labelled rows" in str(planned["notes"])) == (name == "pairs-kto")
    code, result, said = tunesmith("train", "--config", config)
    assert code == 0, said
    assert result["steps"] == planned["steps"] > 0
    assert result["test"]["largest_weight"] > 0
    assert set(result["validation"]) >= ({"reward"} if method.graded else {"loss"})
    assert ("reward_margin" in result["validation"]) == (method.takes in (Preference, Labelled))
    if method.no_proof:
        return
    code, proof, said = tunesmith("train", "--overfit", 4, "--config", config)
    assert code == 0, said
    assert proof["train_loss"] < max(0.1, proof["first_loss"] / 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_who_cannot_learn_is_told(tunesmith, base, places, name):
    code, _, said = tunesmith("train", "--overfit", 4, "--config", project(places / name, base, name), "--train.learning_rate", "1e-9")
    assert code == 1
    assert "data mask" in said


def test_what_draws_its_answers_learns_none_by_heart(tunesmith, base, tmp_path):
    code, _, said = tunesmith("train", "--overfit", 4, "--config", project(tmp_path, base, "grpo"))
    assert code == 2
    assert "--train.method sft" in said


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [("sft", "dpo"), ("dpo", "sft"), ("kto", "text"), ("text", "orpo")])
def test_the_commands_refuse_rows_of_another_kind(tunesmith, base, places, name, method):
    code, _, said = tunesmith("estimate", "--config", project(places / name, base, name), "--train.method", method)
    assert code == 2, said
    assert f"method {method} takes" in said
    assert name in said.partition("allowed")[2]


@pytest.mark.slow
def test_a_long_document_is_split_and_a_long_pair_is_dropped_or_cut_as_a_whole(tunesmith, base, tmp_path):
    config = project(tmp_path / "text", base, "text")
    code, result, said = tunesmith("train", "--config", config, "--train.max_length", 40)
    assert code == 0, said
    assert "dropped" not in result
    ledger = next((config.parent / ".tunesmith" / "stages").glob("*/train.npz")).with_name("ledger.jsonl").read_text()
    assert "split into" in ledger
    assert '"fate":"dropped","rule":"max_length"' not in ledger
    whole = load_items(next((config.parent / ".tunesmith" / "stages").glob("*/train.npz")))
    assert max(len(item.rows[0].ids) for item in whole) <= 40
    for over_length, fate in (("drop", "dropped"), ("truncate", "truncated")):
        folder = tmp_path / over_length
        config = project(folder, base, "pairs-kto")
        rows = lines(Preference)
        rows[3]["rejected"] = "june " * 60
        rows[4]["chosen"] = "ohio " * 60
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ("--train.method", "dpo", "--train.max_length", 60, "--train.over_length", over_length, "--split.test", 0.1)
        code, result, said = tunesmith("train", "--config", config, *words)
        assert code == 0, said
        fates = [
            json.loads(line)
            for line in (next(folder.glob(".tunesmith/stages/*/train.npz")).parent / "ledger.jsonl").read_text().splitlines()
        ]
        touched = [line for line in fates if line.get("rule") == "max_length"]
        assert {line["fate"] for line in touched} <= {fate}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text", "dpo", "kto"])
def test_the_best_weights_are_kept_by_validation_loss(tunesmith, base, places, name):
    config = project(places / name, base, name)
    words = ("--train.patience", 1, "--train.epochs", 30, "--train.learning_rate", 0.3)
    code, result, said = tunesmith("train", "--config", config, *words)
    assert code == 0, said
    assert result["early_stopped"]
    assert result["validation"]["loss"] == pytest.approx(result["valid_loss"])
