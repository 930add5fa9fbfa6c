"""Per-unit gradients, clipped and summed, by Opacus.

:class:`ClippedSum` is the result: the sum over units of ``g_u · min(1, C / ‖g_u‖)``. The
ways to compute it (``mode``) differ in speed only:

=============  ==================================================================
opacus-hooks   per-sample gradients from hooks; any layer Opacus knows or can vmap
functorch      per-sample gradients of every layer through ``torch.func``
opacus-ghost   norms without per-sample gradients, then a second backward pass;
               unit ``record`` and layers with a norm sampler only
auto           ghost where the only trained layer is a linear head, else hooks
=============  ==================================================================
"""

from privet.privacy.clipping.engine import ClippedSum, GradientEngine, RawGradients

__all__ = ["ClippedSum", "GradientEngine", "RawGradients"]
