"""Per-unit gradients, clipped and summed.

:class:`ClippedSum` is the result: the sum over units of ``g_u · min(1, C / ‖g_u‖)``. The
ways to compute it (``mode``) differ in speed and memory only:

=============  ==================================================================
bookkeeping    one forward and one backward pass; per layer each unit's gradient or
               its ghost norm, whichever costs less
opacus-hooks   per-sample gradients from hooks; any layer Opacus knows or can vmap
functorch      per-sample gradients of every layer through ``torch.func``
auto           book-keeping; opacus-hooks where it does not know a layer, or fails
               the start-up test against single records
=============  ==================================================================
"""

from privet.privacy.mechanism.clipping.engine import MODES, ClippedSum, GradientEngine
from privet.privacy.mechanism.clipping.methods import RawGradients

__all__ = ["MODES", "ClippedSum", "GradientEngine", "RawGradients"]
