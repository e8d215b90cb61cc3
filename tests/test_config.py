"""tunesmith.yaml → records: every mistake names its file, line, key and the nearest known key."""

from __future__ import annotations

from typing import Literal

import pytest

from tunesmith.core.config import convert, load, parse_overrides, percent, schema
from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Record
from tunesmith.core.yaml_edit import with_value


class Inner(Record, frozen=True):
    learning_rate: float = 1e-4
    epochs: int = 3
    keep: Literal["last", "best"] = "last"


class Outer(Record, frozen=True):
    name: str
    train: Inner = Inner()
    many: tuple[Inner, ...] = ()


def write(tmp_path, text):
    path = tmp_path / "tunesmith.yaml"
    path.write_text(text)
    return path


def test_a_file_becomes_a_record_with_overrides_applied(tmp_path):
    path = write(tmp_path, "name: a\ntrain:\n  epochs: 2\n")
    assert load(path, Outer, ["--train.epochs", "5", "--train.learning-rate=0.1"]) == Outer(
        name="a", train=Inner(learning_rate=0.1, epochs=5)
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\ntrain:\n  learning_rat: 1\n", [":3: train.learning_rat", "unknown key", "did you mean 'learning_rate'", "epochs"]),
        ("name: a\nmany:\n  - epochs: 1\n  - epoch: 2\n", [":4: many.1.epoch", "did you mean 'epochs'"]),
        ("name: a\ntrain:\n  epochs: two\n", [":3: train.epochs", "Expected `int`, got `str`", "a whole number"]),
        ("name: a\ntrain: {keep: bst}\n", [":2: train.keep", "allowed: best, last", "did you mean 'best'"]),
        ("name: a\nepochs: 1\n", [":2: epochs", "did you mean 'train.epochs'"]),
        ("name: a\nkep: last\n", [":2: kep", "did you mean 'train.keep'"]),
        ("nme: a\nmany: [{epoch: 1}, {rate: 2}]\n", ["3 unknown keys", ":1: nme: did", ":2: many.0.epoch: did", ":2: many.1.rate: "]),
        ("train: {}\n", ["required field `name`"]),
        ("name: a\nname: b\n", [":2", "stands twice"]),
        ("name: [\n", [":2", "not valid YAML"]),
        ("- a\n", ["not a mapping"]),
        ("", ["required field `name`"]),
    ],
)
def test_each_mistake_names_its_place_and_its_remedy(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text), Outer)
    for words in said:
        assert words in str(caught.value)


class Adapter(Record, frozen=True):
    r: int = 8


class Tuning(Record, frozen=True):
    epochs: int = 1
    adapter: Adapter = Adapter()


def test_a_key_elsewhere_is_only_proposed_when_it_is_very_near():
    with pytest.raises(ConfigError, match=r"lr: unknown key 'lr'\s+allowed: epochs, adapter$"):
        convert({"lr": 1e-4}, Tuning)


def test_a_missing_file_says_how_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match="tunesmith init"):
        load(tmp_path / "no.yaml", Outer)


@pytest.mark.parametrize("words", [["epochs", "2"], ["--epochs"], ["--name.deep", "1"]])
def test_overrides_that_cannot_be_are_refused(tmp_path, words):
    with pytest.raises(ConfigError):
        load(write(tmp_path, "name: a\n"), Outer, words)


def test_a_mistake_on_the_command_line_is_not_blamed_on_the_file(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, "name: a\ntrain:\n  epochs: 1\n"), Outer, ["--train.epochs", "two"])
    assert str(caught.value).startswith("--train.epochs: Expected")
    with pytest.raises(ConfigError, match=r"^--tran\.epochs: unknown key 'tran'"):
        load(write(tmp_path, "name: a\n"), Outer, ["--tran.epochs", "2"])


class Square(Record, frozen=True, tag="square"):
    side: float


class Circle(Record, frozen=True, tag="circle"):
    radius: float


class Drawing(Record, frozen=True):
    shapes: tuple[Square | Circle, ...]
    colours: dict[str, Inner] = {}


def test_records_that_tell_their_kind_are_read_and_their_unknown_keys_found():
    tree = {"shapes": [{"type": "square", "side": 1.0}], "colours": {"any name": {"epochs": 1}}}
    assert convert(tree, Drawing).shapes == (Square(side=1.0),)
    with pytest.raises(ConfigError, match=r"colours\.any name\.epoch: unknown key"):
        convert({**tree, "colours": {"any name": {"epoch": 1}}}, Drawing)
    with pytest.raises(ConfigError, match=r"shapes\.0\.sides: unknown key"):
        convert({"shapes": [{"type": "square", "side": 1.0, "sides": 2}]}, Drawing)


class Shares(Record, frozen=True):
    either: float | str = 0.0
    maybe: float | Literal["auto"] | None = None


def test_a_percentage_is_the_number_that_it_means(tmp_path):
    path = write(tmp_path, "name: 100%\ntrain: {learning_rate: 0.9%}\nmany: [{learning_rate: .5%}]\n")
    found = load(path, Outer)
    assert (found.name, found.train.learning_rate, found.many[0].learning_rate) == ("100%", 0.009, 0.005)
    found = load(path, Outer, ["--train.learning_rate", "5%", "--name", "7%"])
    assert (found.name, found.train.learning_rate) == ("7%", 0.05)
    for wrong in ("5 %", "-5%", "%"):
        with pytest.raises(ConfigError, match="allowed: a number"):
            load(path, Outer, ["--train.learning_rate", f'"{wrong}"'])
    assert convert({"either": "5%", "maybe": "5%"}, Shares) == Shares(either="5%", maybe=0.05), "text where text is allowed"
    assert all(percent(f"{tenths / 10:g}%") == tenths / 1000 for tenths in range(1001))


def test_override_values_are_yaml():
    assert parse_overrides(["--a.b", "[1, 2]", "--c=true"]) == [(("a", "b"), [1, 2]), (("c",), True)]


def test_the_schema_refuses_unknown_keys_too():
    assert schema(Outer)["$defs"]["Inner"]["additionalProperties"] is False


def test_scalars_are_those_of_yaml_1_2(tmp_path):
    path = write(tmp_path, "name: no\ntrain: {learning_rate: 1e-4}\n")
    assert load(path, Outer) == Outer(name="no", train=Inner(learning_rate=1e-4))
    assert parse_overrides(["--x", "2E-5", "--y", "off", "--z", "12", "--w", ".5"]) == [
        (("x",), 2e-5),
        (("y",), "off"),
        (("z",), 12),
        (("w",), 0.5),
    ]


def test_several_wrong_values_are_told_at_once(tmp_path):
    from tunesmith.flow.project import load_project

    file = tmp_path / "tunesmith.yaml"
    file.write_text(
        "name: x\nsources: [{path: rows.jsonl}]\nbase: b\ntrain:\n  epochs: [1]\n  seed: 1.5\n  method: stf\nsplit:\n  test: wide\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_project(file, ["--gate.margin", "-1", "--serve.port=high"])
    said = str(caught.value)
    assert "values are wrong" in said
    for place in (":5: train.epochs", ":6: train.seed", ":7: train.method", ":9: split.test", "--gate.margin", "--serve.port"):
        assert place in said
    assert "did you mean 'sft'" in said
    with pytest.raises(ConfigError, match=r":5: train.epochs: Expected"):
        load_project(file, ["--train.seed", "1", "--train.method", "sft", "--split.test", "0.2"])


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("a: &x {p: 1}\nb: *x\n", ("b", "p")),
        ("a: &x {p: 1}\nb: *x\n", ("a", "p")),
        ("a: &x 1\nb: *x\n", ("b",)),
        ("a: {p: 1, p: 2}\n", ("a", "p")),
    ],
)
def test_a_value_that_an_anchor_shares_is_not_changed_for_another(text, key):
    with pytest.raises(ConfigError, match="cannot be changed alone"):
        with_value(text, key, 5)


def test_a_value_is_changed_where_it_stands_and_nothing_else():
    text = "x: &b\n  p: 1 # one\ny:\n  <<: *b\n  q: 2\n# end\n"
    assert with_value(text, ("y", "q"), 3) == text.replace("q: 2", "q: 3")
    assert with_value(text, ("y", "p"), 3) == text.replace("  q: 2\n", "  q: 2\n  p: 3\n")
