"""The rule of ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``, by the equations of their cells.

In one layer and direction the pre-activations of all gates are, for t = 1 … T,

    s_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh,

so that one backprop g_t = ∂Σℓ/∂s_t serves both weights:

    G_u(W_ih) = Σ_t g_t x_tᵀ   G_u(W_hh) = Σ_t g_t h_{t-1}ᵀ   G_u(b_ih) = G_u(b_hh) = Σ_t g_t

An LSTM's steps are written out forwards and backwards, so that autograd keeps nothing for each of
them. With i, f, o the gates after their sigmoid, g after its tanh, and c_t = f ⊙ c_{t-1} + i ⊙ g,
h_t = o ⊙ tanh c_t, the backprops are, for t = T … 1,

    ∂c_t += ∂h_t ⊙ o ⊙ (1 - tanh² c_t)   ∂c_{t-1} = ∂c_t ⊙ f   ∂h_{t-1} = W_hhᵀ g_t
    g_t = (∂c_t ⊙ g ⊙ i(1-i), ∂c_t ⊙ c_{t-1} ⊙ f(1-f), ∂c_t ⊙ i ⊙ (1-g²), ∂h_t ⊙ tanh c_t ⊙ o(1-o)).

A GRU multiplies one part of W_hh h_{t-1} + b_hh by its reset gate, so that this term has backprops
of its own. The steps run in Python; each makes the numbers of torch's own layer (``nn.LSTM``,
Hochreiter and Schmidhuber 1997; ``nn.GRU``, Cho et al. 2014).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from privet.privacy.mechanism.clipping.parameter_gradients import ParameterGradients
from privet.privacy.mechanism.clipping.per_unit_gradients import PerUnitGradients
from privet.privacy.mechanism.clipping.rules import Rule, Unsupported, by_record

_KINDS = (nn.LSTM, nn.GRU, nn.RNN)


class _Recorded(torch.autograd.Function):
    """The identity on pre-activations [B, T, n], whose backprops are recorded."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, rule: RecurrentRule, names: tuple[str, str], a: Any) -> Tensor:
        ctx.rule, ctx.names, ctx.activations = rule, names, a
        return s.view_as(s)

    @staticmethod
    def backward(ctx: Any, backprops: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.rule.on_backward(ctx.names, ctx.activations, backprops)
        return backprops, None, None, None


class _LstmLayer(torch.autograd.Function):
    """One layer of an LSTM in one direction; see the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, c: Tensor, weights: Any, rule: RecurrentRule, suffix: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        w_ih, w_hh, b_ih, b_hh = weights
        gates = functional.linear(x, w_ih, b_ih)
        if b_hh is not None:
            gates += b_hh
        size = h.shape[1]
        hiddens = x.new_empty(*x.shape[:2], size)
        cells, tanhs = torch.empty_like(hiddens), torch.empty_like(hiddens)
        before = torch.empty_like(hiddens), torch.empty_like(hiddens)
        for t in _order(x.shape[1], suffix):
            before[0][:, t], before[1][:, t] = h, c
            s = gates[:, t]
            s.addmm_(h, w_hh.t())
            i, f, g, o = s.chunk(4, -1)
            s[:, : 2 * size].sigmoid_()
            g.tanh_()
            o.sigmoid_()
            c = torch.addcmul(f * c, i, g)
            cells[:, t] = c
            tanhs[:, t] = c.tanh()
            h = o * tanhs[:, t]
            hiddens[:, t] = h
        ctx.rule, ctx.suffix = rule, suffix
        ctx.save_for_backward(x, gates, tanhs, *before, w_ih, w_hh)
        return hiddens, h, c

    @staticmethod
    def backward(ctx: Any, to_all: Tensor, to_h: Tensor, to_c: Tensor) -> tuple[Any, ...]:
        x, gates, tanhs, hiddens, cells, w_ih, w_hh = ctx.saved_tensors
        backprops = torch.empty_like(gates)
        by_h, by_c = to_h, to_c
        for t in reversed(_order(x.shape[1], ctx.suffix)):
            i, f, g, o = gates[:, t].chunk(4, -1)
            tanh = tanhs[:, t]
            by_h = by_h + to_all[:, t]
            by_c = torch.addcmul(by_c, by_h * o, 1 - tanh * tanh)
            to_i, to_f, to_g, to_o = backprops[:, t].chunk(4, -1)
            torch.mul(by_c * g, i - i * i, out=to_i)
            torch.mul(by_c * cells[:, t], f - f * f, out=to_f)
            torch.mul(by_c * i, 1 - g * g, out=to_g)
            torch.mul(by_h * tanh, o - o * o, out=to_o)
            by_c = by_c * f
            by_h = backprops[:, t] @ w_hh
        ctx.rule.on_backward(("ih", ctx.suffix), x, backprops)
        ctx.rule.on_backward(("hh", ctx.suffix), hiddens, backprops)
        back = backprops @ w_ih if ctx.needs_input_grad[0] else None
        return back, by_h, by_c, None, None, None


def _order(length: int, suffix: str) -> range:
    """Return the steps of a layer in the order of its direction."""
    return range(length)[::-1] if suffix.endswith("_reverse") else range(length)


class RecurrentRule(Rule):
    """A recurrent layer of any depth, one or two directions; see the module's docstring."""

    def __init__(
        self, module: nn.Module, per_unit: PerUnitGradients, own: dict[str, ParameterGradients]
    ) -> None:
        if not isinstance(module, _KINDS) or module.proj_size:
            raise Unsupported(f"{type(module).__name__} is not a recurrent layer that is known")
        super().__init__(module, per_unit, {})
        self._own = own

    def __call__(self, *given: Any, **named: Any) -> Any:
        """As the layer's own forward."""
        for name, one in self._own.items():
            self._require_same(name, one)
        return self._run(*given, **named)

    def _run(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """Return the outputs and the last states, as the layer does.

        Args:
            input: [T, B, n], or [B, T, n] if the layer is ``batch_first``.
            hx: first states [layers · directions, B, h]; a pair of them for an LSTM.
        """
        m: Any = self.module
        if isinstance(input, PackedSequence) or input.dim() != 3:
            raise Unsupported("a recurrent layer reads a packed sequence, or a single record")
        if self.axes is not None and self.axis_of(input) != (not m.batch_first):
            raise Unsupported("a recurrent layer reads records in another dimension than it says")
        x = input if m.batch_first else input.transpose(0, 1)
        directions = 2 if m.bidirectional else 1
        is_lstm = isinstance(m, nn.LSTM)
        given = hx if is_lstm or hx is None else (hx,)
        lasts = []
        for layer in range(m.num_layers):
            outputs = []
            for direction in range(directions):
                place = layer * directions + direction
                states = self._first_states(x, given, place)
                made, last = self._layer(x, states, f"l{layer}" + "_reverse" * direction)
                outputs.append(made)
                lasts.append(last)
            x = torch.cat(outputs, -1) if directions > 1 else outputs[0]
            if layer + 1 < m.num_layers and m.dropout:
                x = functional.dropout(x, m.dropout, m.training)
        final = tuple(torch.stack(parts) for parts in zip(*lasts, strict=True))
        return x if m.batch_first else x.transpose(0, 1), final if is_lstm else final[0]

    def _first_states(self, x: Tensor, given: Any, place: int) -> tuple[Tensor, ...]:
        m: Any = self.module
        if given is not None:
            return tuple(part[place] for part in given)
        zeros = x.new_zeros(len(x), m.hidden_size)
        return (zeros, zeros) if isinstance(m, nn.LSTM) else (zeros,)

    def _layer(
        self, x: Tensor, states: tuple[Tensor, ...], suffix: str
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the outputs [B, T, h] of one layer in one direction, and its last states."""
        m: Any = self.module
        w_ih, w_hh = (getattr(m, f"weight_{part}_{suffix}") for part in ("ih", "hh"))
        b_ih, b_hh = (getattr(m, f"bias_{part}_{suffix}", None) for part in ("ih", "hh"))
        w_ih, w_hh = w_ih.detach(), w_hh.detach()
        b_ih, b_hh = (b if b is None else b.detach() for b in (b_ih, b_hh))
        if isinstance(m, nn.LSTM):
            weights = w_ih, w_hh, b_ih, b_hh
            if not x.requires_grad:  # else nothing would ask for the weights' gradients
                x = x.detach().requires_grad_()
            apply: Any = _LstmLayer.apply
            made, *last = apply(x, *states, weights, self, suffix)
            return made, tuple(last)
        order = _order(x.shape[1], suffix)
        before: list[Tensor] = []
        record: Any = _Recorded.apply
        from_input = functional.linear(x, w_ih, b_ih)
        if not from_input.requires_grad:
            from_input = from_input.requires_grad_()
        from_input = record(from_input, self, ("ih", suffix), x.detach())
        # The previous states are not known yet; the list is full when the backward pass reads it.
        later = self, ("hh", suffix), (before, order)
        moved = None
        if isinstance(m, nn.GRU):  # zeros that are added to the term of the state get its backprops
            moved = record(torch.zeros_like(from_input).requires_grad_(), *later)
        else:
            from_input = record(from_input, *later)
        outputs: list[Tensor] = [x] * len(order)
        for t in order:
            hidden = states[0]
            before.append(hidden.detach())
            from_state = functional.linear(hidden, w_hh, b_hh)
            if moved is not None:
                from_state = from_state + moved[:, t]
            states = self._cell(from_input[:, t], from_state, states)
            outputs[t] = states[0]
        return torch.stack(outputs, 1), states

    def _cell(
        self, from_input: Tensor, from_state: Tensor, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Return the next state of a GRU or RNN from the two terms of s_t [B, gates · h]."""
        m: Any = self.module
        if isinstance(m, nn.GRU):
            r, z, n = from_input.chunk(3, -1)
            r_state, z_state, n_state = from_state.chunk(3, -1)
            update = (z + z_state).sigmoid()
            new = (n + (r + r_state).sigmoid() * n_state).tanh()
            return (new + update * (states[0] - new),)
        s = from_input + from_state
        return (s.tanh() if m.nonlinearity == "tanh" else s.relu(),)

    def record(self, names: tuple[str, str], activations: Any, backprops: Tensor) -> None:
        """Add G_u of one weight and its bias.

        Args:
            names: ``ih`` or ``hh``, and the suffix of the layer's parameters.
            activations: x [B, T, n]; or h_{t-1} [B, h] of all steps, with their order.
            backprops: of the pre-activations, [B, T, gates · h].
        """
        part, suffix = names
        records, group = self.per_unit.records, self.per_unit.group_by_unit
        weight, bias = (self._own.get(f"{kind}_{part}_{suffix}") for kind in ("weight", "bias"))
        if isinstance(activations, tuple):
            states, order = activations
            by_time: list[Tensor] = [states[0]] * len(order)
            for t, state in zip(order, states, strict=True):
                by_time[t] = state
            activations = torch.stack(by_time, 1)
        g = group(by_record(backprops, records))
        if weight is not None:
            weight.add_linear(group(by_record(activations, records)), g)
        if bias is not None:
            bias.add_row_sum(g)
