"""Near-duplicates are exact: every way gives what the definition gives, in any script."""

import random
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.core.errors import ConfigError
from tunesmith.data.dedup import best_matches, components, near_duplicates
from tunesmith.data.shingle import shingles
from tunesmith.data.text import normalised

SCRIPTS = [
    "loan agreement dated January bank",
    "договор займа банк дата",
    "贷款协议日期银行条款",
    "เงินกู้ธนาคาร",
    "कर्ज समझौता बैंक",
    "قرض اتفاقية بنك",
    "🙂🚀 + = ©",
]


def words(text):
    """The definition of words, written a second time and slowly."""
    alone = (
        "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    )
    found, run = [], ""
    for c in normalised(text) + " ":
        kind = unicodedata.category(c)[0]
        solo = ord(c) >= 0x20000 or (re.match(f"[{alone}]", c) and kind in "LNM") or kind == "S"
        if run and (solo or kind not in "LNM"):
            found.append(run)
            run = ""
        if solo:
            found.append(c)
        elif kind in "LNM":
            run += c
    return found


def shingle_set(text, size=2):
    found = words(text)
    if not found:
        return {(normalised(text),)} if normalised(text) else set()
    return {tuple(found[i : i + size]) for i in range(max(1, len(found) - size + 1))}


def slow_pairs(texts, threshold):
    sets = [shingle_set(text) for text in texts]
    found = {}
    for j, b in enumerate(sets):
        for i in range(j):
            if sets[i] and b:
                value = len(sets[i] & b) / len(sets[i] | b)
                if value >= threshold - 1e-12:
                    found[i, j] = value
    return found


def linked(pairs, texts):
    """Every pair, the copies that were linked to their first expanded."""
    sets = [frozenset(shingle_set(text)) for text in texts]
    first = {}
    for i, s in enumerate(sets):
        first.setdefault(s, i)
    found = {}
    direct = {(i, j): v for i, j, v in zip(*(a.tolist() for a in pairs), strict=True)}
    for j in range(len(texts)):
        for i in range(j):
            a, b = sorted((first[sets[i]], first[sets[j]]))
            if a == b and sets[i]:
                found[i, j] = 1.0
            elif (a, b) in direct:
                found[i, j] = direct[a, b]
    return found


def variants(rng, n):
    texts = []
    for _ in range(n):
        base = rng.choice(SCRIPTS)
        text = list(" ".join(rng.choices(base.split(), k=rng.randint(1, 12))) if rng.random() < 0.7 else base * rng.randint(1, 3))
        texts.append("".join(text))
        if rng.random() < 0.5:
            other = texts[rng.randrange(len(texts))].split(" ")
            other[rng.randrange(len(other))] = rng.choice(["", "Bank.", "X1", "银", "!"])
            texts.append(" ".join(other))
    return texts


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("compiled", [False, True])
def test_pairs_are_those_of_the_definition(threshold, compiled):
    for seed in range(3):
        texts = variants(random.Random(seed), 90)
        found = linked(near_duplicates(texts, threshold, compiled=compiled), texts)
        expected = slow_pairs(texts, threshold)
        assert found.keys() == expected.keys()
        assert all(abs(found[pair] - expected[pair]) < 1e-12 for pair in expected)
        assert len(expected) > 20


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=12), st.integers(1, 4))
def test_both_shinglers_give_the_definitions_sets(texts, size):
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    slow, fast = shingles(texts, size=size, compiled=False), shingles(texts, size=size, compiled=True)
    assert np.array_equal(slow.hashes, fast.hashes)
    assert np.array_equal(slow.starts, fast.starts)
    assert np.diff(slow.starts).tolist() == [len(shingle_set(text, size)) for text in texts]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_best_matches_across_two_sides(compiled):
    texts = variants(random.Random(9), 120)
    new, old = texts[::2], texts[1::2]
    index, value = best_matches(new, old, 0.5, compiled=compiled)
    for i, text in enumerate(new):
        mine = shingle_set(text)
        values = [len(mine & other) / len(mine | other) if mine and other else 0.0 for other in map(shingle_set, old)]
        best = max(values)
        assert value[i] == pytest.approx(best if best >= 0.5 else 0.0)
        assert index[i] == (values.index(best) if best >= 0.5 else -1)


def test_batches_do_not_show(monkeypatch):
    texts = variants(random.Random(3), 60)
    whole = shingles(texts, compiled=False)
    monkeypatch.setattr("tunesmith.data.shingle.BATCH_CHARS", 50)
    assert np.array_equal(shingles(texts, compiled=False).hashes, whole.hashes)
    assert np.array_equal(shingles(texts, compiled=True).starts, whole.starts)


def test_copies_are_linked_to_the_first_only():
    texts = ["the same text again"] * 50 + ["...", "!", "...", "", ""]
    pairs = near_duplicates(texts)
    assert len(pairs.left) == 50
    clusters = components(pairs, len(texts))
    assert clusters.tolist() == [0] * 50 + [50, 51, 50, 53, 54]


def test_components_are_the_lowest_member():
    chain = ["a b c d e f g h i j", "b c d e f g h i j k", "c d e f g h i j k l"]
    clusters = components(near_duplicates([*chain, "quite another"], 0.7), 4)
    assert clusters.tolist() == [0, 0, 0, 3]


def test_thresholds_outside_are_refused():
    for wrong in (0.0, 1.1, -1):
        with pytest.raises(ConfigError, match="Jaccard"):
            near_duplicates(["a", "b"], wrong)
    with pytest.raises(ConfigError, match="1 to 8 words"):
        shingles(["a"], size=9)


def test_nothing_in_nothing_out():
    assert len(near_duplicates([]).left) == 0
    assert components(near_duplicates(["a"]), 1).tolist() == [0]
    index, value = best_matches(["a"], [])
    assert (index.tolist(), value.tolist()) == ([-1], [0.0])


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.5, 0.8])
@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=40), min_size=2, max_size=40), st.integers(1, 3))
def test_rows_of_one_template_are_joined_as_brute_force_does(threshold, numbers, spread):
    """Rows that share nearly everything: the filters must keep every pair; long sets, in which the parities of 128 bits say little, too."""
    texts = [" ".join(f"the sum of part {k} and {n * spread} is" for k, n in enumerate(row)) for row in numbers]
    found = linked(near_duplicates(texts, threshold, compiled=True), texts)
    expected = slow_pairs(texts, threshold)
    assert found.keys() == expected.keys()
    new, old = texts[::2], texts[1::2]
    _, value = best_matches(new, old, threshold, compiled=True)
    for text, best in zip(new, value.tolist(), strict=True):
        mine = shingle_set(text)
        exact = max(len(mine & other) / len(mine | other) for other in map(shingle_set, old))
        assert best == pytest.approx(exact if exact >= threshold - 1e-12 else 0.0)
