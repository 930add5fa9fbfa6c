"""Per-unit gradients, clipped and summed: the one algorithm here that is not in every library.

**The problem.** A batch holds the records of U units (a unit is a record, or a person with several
records). With ℓ_r the loss of record r and θ the trained parameters, the gradient of unit u is

    G_u = Σ_{r of u} ∂ℓ_r/∂θ,

and what noise is added to is the sum of clipped gradients, :class:`ClippedSum`:

    S = Σ_u c_u G_u,   c_u = min(1, C / ‖G_u‖).

Autograd sums over the batch and gives Σ_u G_u only. The norm ‖G_u‖ is over *all* parameters, so
that no c_u is known before the backward pass has ended.

**The idea.** A linear layer s = a Wᵀ reads *activations* a and is given *backprops* g = ∂Σℓ/∂s in
the backward pass. With T rows (tokens) for each unit, a_u is [T, p], g_u is [T, n] and

    G_u = g_uᵀ a_u                                    per-sample gradient, [n, p]
    ‖G_u‖² = Σ_{s,t} (a_u a_uᵀ)_{st} (g_u g_uᵀ)_{st}  ghost norm, from two [T, T] Gram matrices
    Σ_u c_u G_u = Σ_u (c_u g_u)ᵀ a_u                  the weighted sum, one product over all rows

The second line (Goodfellow 2015 for T = 1; Li et al. 2022) needs no per-sample gradient. The third
is *book-keeping* (Bu et al. 2023): a and g are kept from the one backward pass, so that the second
one of ghost clipping, over the losses Σ c_r ℓ_r, is not needed. By layer either the per-sample
gradient is *instantiated* or its ghost norm is taken, whichever costs less: mixed ghost clipping
(Bu et al. 2022). Since no layer needs autograd's own Σ_u G_u, its product is left out of the
backward pass (ghost differentiation, Bu et al. 2023).

::

    record_axes.py            which dimension of each layer's input is of records
    layers.py, *_rules.py     forward as the layer's own; backward hands over a and g
        │ record(a, g)
    parameter_gradients.py    a parameter: G_u in kept memory, or (a, g) for the ghost norm
        │ squared norms [U]
    per_unit_gradients.py     all parameters: ‖G_u‖² ── c_u ── Σ_u c_u G_u
        │
    bookkeeping.py            one micro-batch after the other; the total
    engine.py                 units, micro-batches, the choice of a mode

:func:`.methods.squared_row_norms` says why norms are computed in double precision, and
:mod:`.ghost_norms` what is done where rows cancel.

**The modes** differ in speed and memory only:

=============  ==================================================================
bookkeeping    as above: one forward and one backward pass; modules without a rule
               by ``vmap`` of that module alone
opacus-hooks   per-sample gradients from hooks; any layer Opacus knows or can vmap
functorch      the same, with every layer through ``torch.func``
vmap           ``vmap(grad)`` of the whole model
one-by-one     a pass for each unit: the definition, at its cost
auto           the first of bookkeeping, vmap and one-by-one that passes the
               start-up test against single records
=============  ==================================================================

Sources: Goodfellow 2015, "Efficient Per-Example Gradient Computations" (arXiv 1510.01799). Li,
Tramèr, Liang and Hashimoto 2022, "Large Language Models Can Be Strong Differentially Private
Learners" (arXiv 2110.05679). Bu, Mao and Xu 2022, "Scalable and Efficient Training of Large
Convolutional Neural Networks with Differential Privacy" (arXiv 2205.10683). Bu, Wang, Zha and
Karypis 2023, "Differentially Private Optimization on Large Model at Small Cost" (arXiv 2210.00038).
Bu, Wang, Zha and Karypis 2022, "Automatic Clipping" (arXiv 2206.07136): the rule ``automatic``.
"""

from privet.privacy.mechanism.clipping.engine import MODES, ClippedSum, GradientEngine
from privet.privacy.mechanism.clipping.methods import RawGradients

__all__ = ["MODES", "ClippedSum", "GradientEngine", "RawGradients"]
