"""Attention for GPUs against the one for CPUs, on a CPU: the same tree, the same numbers and gradients; one pass for each branch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from test_layers import trees, visible
from train_parts import make_rows
from tunesmith.nets.spans import Span
from tunesmith.nets.tree_attention import tree_attention
from tunesmith.nets.varlen_attention import Branch, branches, segment_attention
from tunesmith.train.packing import MAX_SPAN, pack


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(trees(), st.integers(0, 100))
def test_it_is_the_tree_attention_with_its_gradients(tree, seed):
    spans, parents = tree
    generator = torch.Generator().manual_seed(seed)
    tokens = len(visible(spans, parents))
    q, k, v, slope = (torch.randn(heads, tokens, 8, generator=generator) for heads in (6, 2, 2, 6))
    found = []
    for attention in (segment_attention, tree_attention):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attention(*leaves, spans, 0.3)
        out.backward(slope.transpose(0, 1))
        found.append([out, *(leaf.grad for leaf in leaves)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@given(trees())
def test_branches_see_what_their_tokens_may_see(tree):
    spans, parents = tree
    mask = visible(spans, parents)
    for branch in branches(spans):
        seen = [*(i for a, b in branch.before for i in range(a, b)), *range(branch.start, branch.end)]
        assert mask[branch.end - 1].nonzero().flatten().tolist() == seen


def test_rows_that_share_nothing_are_a_branch_each_however_long():
    rows = make_rows(3, prefix=2 * MAX_SPAN)
    one = pack(rows, share=False)
    assert len(one.spans) >= 6
    assert [branch.before for branch in branches(one.spans)] == [(), (), ()]
    shared = sorted(branches(pack(rows).spans))
    assert len(shared) == 4
    assert shared[0] == Branch(0, 2 * MAX_SPAN, ())
    assert all(branch.before == ((0, 2 * MAX_SPAN),) for branch in shared[1:])


def test_a_last_child_is_not_taken_for_a_chain():
    spans = (Span(0, 4, 8), Span(4, 6, 6), Span(6, 8, 8))
    assert sorted(branches(spans)) == [Branch(0, 4, ()), Branch(4, 6, ((0, 4),)), Branch(6, 8, ((0, 4),))]
