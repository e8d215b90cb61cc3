"""A decoder layer's MLP and attention with hand-written gradients; knows nothing about losses, rows, optimisers or which model it is.

A module of transformers keeps its name, its children and its own forward: it is given a forward that computes the same from the children's
weights, adapters included, and falls back to its own where a child is more than a frozen linear layer with a plain adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tunesmith.nets.linear import LinearGroup, Part, leaves, linears, part_of
from tunesmith.nets.spans import Span
from tunesmith.nets.tree_attention import ATTENTION, attend


class _GatedMLP(torch.autograd.Function):
    """down(silu(gate x) · up x) (SwiGLU, arXiv 2002.05202); keeps x and the two wide products, nothing between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: Sequence[Part], *_: Tensor) -> Tensor:
        ctx.wide, ctx.down = LinearGroup(parts[:2], x.dtype), LinearGroup(parts[2:], x.dtype)
        (gate, up), narrow = ctx.wide.forward(x)
        (y,), tight = ctx.down.forward(F.silu(gate).mul_(up))
        ctx.save_for_backward(x, gate, up, *narrow, *tight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, *kept = ctx.saved_tensors
        narrow, tight = kept[: len(ctx.wide.adapters)], kept[len(ctx.wide.adapters) :]
        slope, inner = ctx.down.to_input([grad], True)
        active = F.silu(gate)
        grad_up = slope * active
        middle = active.mul_(up)
        grad_gate = torch.ops.aten.silu_backward(slope.mul_(up), gate)
        down = ctx.down.to_adapters(middle, tight, inner, [grad])
        grad_x, inner = ctx.wide.to_input([grad_gate, grad_up], ctx.needs_input_grad[0])
        return grad_x, None, *ctx.wide.to_adapters(x, narrow, inner, [grad_gate, grad_up]), *down


class _Rotary(torch.autograd.Function):
    """Rotary positions (arXiv 2104.09864, halves rotated) : x [T, heads · D] → [K, T · group, D], a group's heads as rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, groups: int) -> Tensor:
        tokens, width = cos.shape
        half = width // 2
        signed = torch.cat((-sin[:, :half], sin[:, half:]), 1)[:, None]
        heads = x.view(tokens, -1, width)
        turned = torch.cat((heads[..., half:], heads[..., :half]), -1)
        out = (heads * cos[:, None]).addcmul_(turned, signed)
        ctx.save_for_backward(cos, signed)
        return out.view(tokens, groups, -1, width).transpose(0, 1).reshape(groups, -1, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, signed = ctx.saved_tensors
        tokens, width = cos.shape
        half = width // 2
        heads = grad.view(len(grad), tokens, -1, width).transpose(0, 1).reshape(tokens, -1, width)
        turned = heads * signed
        out = (heads * cos[:, None]).add_(torch.cat((turned[..., half:], turned[..., :half]), -1))
        return out.reshape(tokens, -1), None, None, None


def _parts(x: Tensor, *layers: nn.Module) -> list[Part] | None:
    """The layers as parts; None when one of them is more than that or drops inputs."""
    parts = [part for layer in layers if (part := part_of(layer, x)) is not None and not part.drops]
    return parts if len(parts) == len(layers) else None


class GatedMLP(nn.Module):
    """Laid over a module of transformers with gate_proj, up_proj, down_proj and SiLU."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        parts = _parts(x, self.gate_proj, self.up_proj, self.down_proj)
        if parts is None:
            return self.plain(x)
        return _GatedMLP.apply(x.reshape(-1, x.shape[-1]), parts, *leaves(parts)).view(x.shape)

    def plain(self, x: Tensor) -> Tensor:
        """The module's own forward."""
        out: Tensor = super().forward(x)
        return out

    def agrees(self) -> bool:
        """Whether both forwards give the same on random rows."""
        x = _probe(5, self.gate_proj)
        return _close(self(x), self.plain(x))


class PackedAttention(nn.Module):
    """Laid over a module of transformers with q_proj, k_proj, v_proj, o_proj and rotary positions; for packs on a CPU."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    config: Any
    head_dim: int
    scaling: float

    def forward(self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], *args: Any, **options: Any) -> Any:
        parts = _parts(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        if (
            parts is None
            or args
            or hidden_states.device.type != "cpu"
            or options.get("past_key_values") is not None
            or self.config._attn_implementation != ATTENTION
        ):
            return self.plain(hidden_states, position_embeddings, *args, **options)
        q, k, v = linears(hidden_states[0], parts)
        cos, sin = (part[0].to(q.dtype) for part in position_embeddings)
        groups = k.shape[1] // self.head_dim
        q, k = _Rotary.apply(q, cos, sin, groups), _Rotary.apply(k, cos, sin, groups)
        v = v.view(len(v), groups, -1).transpose(0, 1)
        out = attend(q, k, v, options["spans"], self.scaling)
        return self.o_proj(out.reshape(1, len(out), -1)), None

    def plain(self, *args: Any, **options: Any) -> Any:
        """The module's own forward."""
        return super().forward(*args, **options)

    def agrees(self) -> bool:
        """Whether both forwards give the same on a random pack, and nothing caps, sinks or windows the attention."""
        if any(getattr(self.config, name, None) for name in ("attn_logit_softcapping", "sliding_window")) or hasattr(self, "sinks"):
            return False
        x = _probe(5, self.q_proj)[None]
        angle = torch.linspace(0.1, 3.0, 5 * (self.head_dim // 2)).view(5, -1).to(x.device)
        turns = tuple(torch.cat((part, part), 1).to(x.dtype)[None] for part in (angle.cos(), angle.sin()))
        pack = {"attention_mask": None, "spans": (Span(0, 3, 3), Span(3, 5, 5)), "longest": 3, "places": torch.tensor([0, 1, 2, 0, 1])}
        return _close(self(x, turns, **pack)[0], self.plain(x, turns, **pack)[0])


def _probe(rows: int, layer: Any) -> Tensor:
    base = getattr(layer, "base_layer", layer)  # one in 4 bits has no parameters
    weight = base.weight
    return torch.randn(rows, base.in_features, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)


def _close(x: Tensor, y: Tensor) -> bool:
    return float((x - y).float().norm()) <= (2e-2 if x.dtype == torch.bfloat16 else 1e-5) * float(y.float().norm())


_MLP = ("gate_proj", "up_proj", "down_proj", "act_fn")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling", "config")
_KINDS: tuple[tuple[type[nn.Module], Sequence[str]], ...] = ((GatedMLP, _MLP), (PackedAttention, _ATTENTION))


def fuse_blocks(model: nn.Module, *, attention: bool = True) -> list[tuple[nn.Module, type[nn.Module]]]:
    """Lay the fused forwards over every MLP (and `attention`) whose own forward provably is the same; returns those modules and
    their classes.

    Every module is tried on random input: layers of one class may differ (some without rotary positions, say).
    """
    kinds: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}
    fused = []
    with torch.no_grad():
        for module in model.modules():
            own = type(module)
            kind = _fused_kind(module, kinds, _KINDS if attention else _KINDS[:1])
            if kind is not None:
                module.__class__ = kind
                fused.append((module, own))
    return fused


def unfuse_blocks(fused: Iterable[tuple[nn.Module, type[nn.Module]]]) -> None:
    """Give the modules their own forwards back."""
    for module, own in fused:
        module.__class__ = own


def _fused_kind(
    module: nn.Module,
    kinds: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]],
    tried: Sequence[tuple[type[nn.Module], Sequence[str]]],
) -> type[nn.Module] | None:
    """A subclass of the module's class with one of the forwards above, or None where none agrees with its own."""
    own = type(module)
    for ours, names in tried:
        if all(hasattr(module, name) for name in names):
            kind = kinds.setdefault((ours, own), type(f"Fused{own.__name__}", (ours, own), {}))
            module.__class__ = kind
            try:
                agrees = bool(module.agrees())  # type: ignore[operator]
            except (RuntimeError, TypeError, ValueError, KeyError, AttributeError, IndexError):  # it wants what the trial does not give
                agrees = False
            finally:
                module.__class__ = own
            return kind if agrees else None
    return None
