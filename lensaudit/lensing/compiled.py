"""Deflections compiled for the CPU: one packed lens, one position, numbers in and numbers out.

The same formulae as `lensing.mass`, which holds the conventions, in scalar code that a sampler's inner loop takes in.
A packed lens is a row of `mass.pack_lens`. numba is needed here and nowhere else; `mass` runs without it.
"""

from math import atan, atanh, cos, sin, sqrt

from numba import njit

# Places in a packed row; the order is that of mass.PACK, which a test holds to it.
THETA_E, Q, PHI, GAMMA1, GAMMA2, SLOPE, A3, PHI3, A4, PHI4, SUB_THETA_E, SUB_X, SUB_Y, SUB_R_CUT = range(14)
_ROUND = 1.0 - 1e-8  # above this axis ratio the elliptical formula is 0/0; the error of stopping here is below 1e-8

compile_scalar = njit(nogil=True, cache=True, error_model="numpy")


@compile_scalar
def prepare_lens(p):
    """Return what does not depend on the position, as a tuple for `deflect_prepared`.

    Parameters
    ----------
    p : ndarray of shape (14,)
        One row of `mass.pack_lens`.

    Returns
    -------
    tuple of float
        Opaque. In a loop over positions, prepare once outside of it.
    """
    q = min(p[Q], _ROUND)
    f = sqrt((1.0 - q) * (1.0 + q))
    return (cos(p[PHI]), sin(p[PHI]), q, f, p[THETA_E] * sqrt(q) / f, p[GAMMA1], p[GAMMA2])


@compile_scalar
def deflect_prepared(x, y, c):
    """Return the total deflection (ax, ay) [arcsec] at one position of a lens prepared by `prepare_lens`."""
    cosine, sine, q, f, scale, gamma1, gamma2 = c
    u, v = x * cosine + y * sine, y * cosine - x * sine
    psi = max(sqrt(q * q * u * u + v * v), 1e-12)
    a, b = scale * atan(f * u / psi), scale * atanh(f * v / psi)
    ax = a * cosine - b * sine + gamma1 * x + gamma2 * y
    ay = a * sine + b * cosine + gamma2 * x - gamma1 * y
    return ax, ay


@compile_scalar
def deflect(x, y, p):
    """Return the total deflection of one packed lens at one position.

    Parameters
    ----------
    x, y : float
        Image-plane position [arcsec].
    p : ndarray of shape (14,)
        One row of `mass.pack_lens`.

    Returns
    -------
    (float, float)
        Deflection [arcsec]; the source-plane position is (x - ax, y - ay).
    """
    return deflect_prepared(x, y, prepare_lens(p))
