"""The glossary: symbols, and the few numerical decisions that have one place.

======================  =======  =============================================================
name in code            symbol   meaning
======================  =======  =============================================================
``images``              x_d      training images (D, c, h, w), intensities in [0, 1]
``x``, ``x_hat``        x̄, x̂     clean image(s) and their estimate, (b, c, h, w)
``y``                   y        measurements (b, ...), the shape of ``physics.A(x)``
``sigma``               σ        standard deviation of the noise, in units of ``y``
``physics``             A        forward operator
``pre_inverse``         B        linear map applied to ``y`` before the estimator
``log_weights``         ℓ        unnormalised log posterior of an atom, in nats
``log_partition``       L        logsumexp of the log-weights, in nats
``weights``             w        exp(ℓ - L), they sum to one
``squared_distances``   r²       whitened squared residual of an atom
======================  =======  =============================================================
"""

__all__ = ["LOG_WEIGHT_FLOOR", "RANK_RTOL", "SUBSPACE_ATOL"]

RANK_RTOL = 1e-10
"""Singular values at most this fraction of the largest count as zero. Factorisations are made in float64,
where the singular values of operators met in practice lie well above it and rounding well below (S2.4)."""

SUBSPACE_ATOL = 1e-7
"""Two subspaces are the same when no entry of their projectors differs by more than this, or, where projectors are too
large to be written out, when no random vector is projected apart by more than this fraction of its length (S2.4)."""

LOG_WEIGHT_FLOOR = -60.0
"""Log-weights are clamped to at least this much (nats) relative to the largest before ``exp``.

Keeps every product of a weight with a value a normal number in float32 (subnormal operands are about 100 times
slower), and moves the mean of K atoms by at most K e⁻⁶⁰ (max - min): 9e-19 for K = 10⁸ (S12.2).
Below it, the shares of merged parts and the atoms of wide values count as zero, within the same bound."""
