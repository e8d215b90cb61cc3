"""Streams of words and draws of tokens: properties that hold for every text and every distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny

torch = pytest.importorskip("torch")

from tunesmith.core.chat import Renderer  # noqa: E402
from tunesmith.models.detokenize import Words  # noqa: E402
from tunesmith.nets.sampling import draw, uniform  # noqa: E402


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    tiny.tokenizer(folder)
    return Renderer.load(folder)


def streamed(renderer, ids, stop=()):
    words = Words(renderer.decode, stop)
    pieces = []
    for number in ids:
        pieces.append(words.push(number))
        if words.stopped:
            return pieces, words
    pieces.append(words.end())
    return pieces, words


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("abc .é你🙂\n"), max_size=60))
def test_streamed_words_add_up_to_the_whole_text(renderer, text):
    ids = renderer.encode(text)
    pieces, words = streamed(renderer, ids)
    assert "".join(pieces) == words.text == renderer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.sampled_from("abc d"), max_size=40), stop=st.lists(st.text(st.sampled_from("abc "), min_size=1, max_size=4), max_size=3)
)
def test_nothing_of_a_stop_string_is_ever_shown(renderer, text, stop):
    pieces, words = streamed(renderer, renderer.encode(text), stop)
    found = [text.index(word) for word in stop if word in text]
    assert words.stopped == bool(found)
    assert "".join(pieces) == words.text
    if found:
        assert text.startswith(words.text)
        assert not any(word in words.text for word in stop)
    else:
        assert words.text == text


@pytest.mark.slow
@given(logits=st.lists(st.floats(-8, 8), min_size=2, max_size=30), top_p=st.floats(0.01, 1), number=st.floats(0, 0.999999))
def test_a_draw_is_in_the_nucleus(logits, top_p, number):
    chosen = draw(torch.tensor(logits), 0.7, top_p, number)
    p = np.exp((np.array(logits, dtype=np.float32) - max(logits)).astype(np.float64) / 0.7)
    p /= p.sum()
    before = p[p > p[chosen] * (1 + 1e-6)].sum()
    assert before < top_p + 1e-6


@pytest.mark.slow
def test_draws_follow_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0])
    counts = np.bincount([draw(logits, 1.0, 1.0, uniform(5, step)) for step in range(6000)], minlength=3)
    expected = 6000 * torch.softmax(logits, -1).numpy()
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # χ² with 2 degrees of freedom, 0.1 %
