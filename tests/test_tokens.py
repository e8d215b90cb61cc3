"""Fast counting gives the ids of `tokenizers` and the texts of the template, whatever the text; prices are those of the list."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import templates
from tunesmith.core.chat import Renderer
from tunesmith.core.errors import NotFound, UsageError
from tunesmith.core.tokens import HARD, Tokens, openai_encoding, rendered, spread
from tunesmith.core.types import Example, Function, Message, ToolCall
from tunesmith.flow.datasets.tokens import price_of, prices, training_cost

FAMILIES = tuple(templates.SOURCES)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
words = st.sampled_from(["hello there", " padded ", "", "</think> what", "[INST] x", "äöü 日本", "a\nb", "⟨0⟩ and ⟨1⟩", "plain words"])


@pytest.fixture(scope="session", params=FAMILIES)
def folder(request, tmp_path_factory):
    return templates.save(tmp_path_factory.mktemp(request.param), request.param)


def conversation(said: list[str], system: str | None = None) -> Example:
    turns = [Message(role="system", content=system)] if system is not None else []
    turns += [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(said)]
    return Example(id="x", messages=tuple(turns))


@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(texts, max_size=40))  # many texts in few examples: reading the tokenizer takes longer than both
def test_ids_are_those_of_the_plain_tokenizer(folder, several):
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    wanted = [plain.encode(text, add_special_tokens=False).ids for text in [*several, *HARD]]
    found = Tokens.load(folder, several).encode([*several, *HARD])
    assert [found.ids[a:b].tolist() for a, b in zip(found.starts, found.starts[1:], strict=False)] == wanted
    assert Tokens.load(folder).counts([*several, *HARD]).tolist() == [len(ids) for ids in wanted]


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.lists(words, min_size=2, max_size=4).filter(lambda said: len(said) % 2 == 0), min_size=6, max_size=14))
def test_rendering_by_shape_is_the_template_itself(folder, several):
    template = Renderer.load(folder).template
    rows = [conversation(said) for said in several]
    assert rendered(template, rows) == [template.render(row.messages, row.tools) for row in rows]


def test_system_prompts_tools_and_tool_calls_too(folder):
    template = Renderer.load(folder).template
    call = ToolCall(id="c", function=Function(name="look", arguments='{"a": 1}'))
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    with_tools = Example(
        id="t", messages=(Message(role="user", content="q"), Message(role="assistant", content="so", tool_calls=(call,))), tools=(tool,)
    )
    rows = [*(conversation(["a b", f"{i}"], "be brief") for i in range(9)), *(conversation([f"{i}", "x"]) for i in range(9)), with_tools]
    assert rendered(template, rows) == [template.render(row.messages, row.tools) for row in rows]


def test_nothing_is_nothing(folder):
    tokens = Tokens.load(folder)
    assert tokens.counts([]).tolist() == []
    assert len(tokens.encode([]).ids) == 0
    assert rendered(Renderer.load(folder).template, []) == []


def test_a_tokenizer_that_is_no_byte_level_bpe_is_right_or_left_to_the_slow_engine(tmp_path):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {"[UNK]": 0, "hello": 1, "world": 2, "[CLS]": 3}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    tokens = Tokens.load(tmp_path, ["Hello world"])
    assert tokens.encode(["Hello WORLD again"]).ids.tolist() == [1, 2, 0]
    assert (tokens.engine == "fastokens") == (tokens.why == "")


def test_a_padding_tokenizer_counts_only_real_tokens(folder, tmp_path):
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    tree["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    text = ["the assistant answers the user and the system says that tools are called"]
    assert Tokens.load(tmp_path).counts(text).tolist() == Tokens.load(folder).counts(text).tolist()


def test_a_folder_without_a_tokenizer_is_said(tmp_path):
    with pytest.raises(NotFound, match=r"tokenizer\.json"):
        Tokens.load(tmp_path)


def test_the_sample_is_taken_from_all_of_the_texts():
    many = [str(i) for i in range(10_000)]
    found = spread(many)
    assert 200 <= len(found) <= 300
    assert int(found[-1]) > 9_900


@pytest.mark.parametrize(
    ("model", "encoding"),
    [("gpt-4.1-mini", "o200k_base"), ("ft:gpt-4o-mini-2024-07-18:me::1", "o200k_base"), ("gpt-4", "cl100k_base"), ("gpt-3.5-turbo", "cl100k_base"),
     ("smollm2-135m", None), ("openchat", None), ("o1-lab/model", None)],
)  # fmt: skip
def test_which_encoding_an_openai_model_has(model, encoding):
    assert openai_encoding(model) == encoding


@pytest.mark.slow
def test_openai_tokens_are_counted_offline():
    pytest.importorskip("bpe_openai")
    from tunesmith.core.tokens import OpenAITokens

    counter = OpenAITokens("gpt-4.1-mini")
    assert counter.counts(["hello world", "", "<|endoftext|>"]).tolist() == [2, 0, 7]
    assert counter.rows([conversation(["hello world", "hello world"])]).tolist() == [2 * (2 + 1 + 3) + 3]
    assert counter.rows([]).tolist() == []
    with pytest.raises(UsageError, match="no encoding"):
        OpenAITokens("llama")


def test_prices_are_dated_and_training_is_billed_by_epoch_and_limit():
    assert prices().as_of
    price = price_of("ft:gpt-4.1-mini-2025-04-14:me::1")
    assert price is not None
    assert price.training == prices().models["gpt-4.1-mini"].training
    assert price_of("smollm2-135m") is None
    cost = training_cost(np.array([1_000, 100_000]).tolist(), "gpt-4.1-mini", epochs=2)
    assert cost is not None
    assert cost["tokens"] == 2 * (1_000 + 65_536)
    assert cost["usd"] == pytest.approx(cost["tokens"] * price.training / 1e6)
