"""Deflections compiled for the CPU: one packed lens, one position, numbers in and numbers out.

The same formulae as `lensing.mass`, which holds the conventions, in scalar code that a sampler's inner loop takes in.
A packed lens is a row of `mass.pack_lens`. numba is needed here and in `lensing.images`; `mass` runs without it.
"""

import hashlib
from math import atan, cos, exp, log, sin, sqrt
from pathlib import Path

import numpy as np
from numba import njit

from lensaudit.lensing.compiled_math import FAST, REACH, take_arctan, take_exp, take_log

# Places in a packed row; the order is that of mass.PACK, which a test holds to it.
THETA_E, Q, PHI, GAMMA1, GAMMA2, SLOPE, A3, PHI3, A4, PHI4, SUB_THETA_E, SUB_X, SUB_Y, SUB_R_CUT = range(14)
_ROUND = 1.0 - 1e-8  # above this axis ratio the elliptical formula is 0/0; the error of stopping here is below 1e-8
_CENTRE = 1e-12  # radii [arcsec] below this count as the centre, where the deflection is zero

# numba stores what it compiled under the source of the function's own file; what that calls in others must count too.
_FILES = [p for name in ("compiled*.py", "images.py", "quadrature.py") for p in Path(__file__).parent.glob(name)]
_SOURCES = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(_FILES))).hexdigest()


def compile_scalar(function, fastmath=False):
    """Compile a function, stored on disk until any compiled source of this room changes. A decorator."""
    dispatcher = njit(nogil=True, cache=True, error_model="numpy", fastmath=fastmath)(function)
    if hasattr(dispatcher, "_cache"):  # not when numba is told to compile nothing
        plain = dispatcher._cache._index_key
        dispatcher._cache._index_key = lambda signature, codegen: (*plain(signature, codegen), _SOURCES)
    return dispatcher


def compile_loops(function):
    """Compile a function whose inner loops are to become vector instructions. A decorator as `compile_scalar`."""
    return compile_scalar(function, FAST)


@compile_scalar
def count_terms(q):
    """Return how many terms the power law's angular series needs for 1e-9 at axis ratio `q`; see `mass.count_terms`."""
    ratio = (1.0 - q) / (1.0 + q)
    if ratio < 1e-9:
        return 0.0
    return min(max(np.ceil(log(1e-9 * sqrt(q)) / log(ratio)) - 1.0, 1.0), 2000.0)


@compile_scalar
def prepare_lens(p):
    """Return what does not depend on the position, as a tuple for `deflect_prepared` and `differentiate_prepared`.

    Parameters
    ----------
    p : ndarray of shape (14,)
        One row of `mass.pack_lens`.

    Returns
    -------
    tuple of float
        Opaque. In a loop over positions, prepare once outside of it.
    """
    q, t = p[Q], p[SLOPE] - 1.0
    if t == 1.0:
        q = min(q, _ROUND)
        f = sqrt((1.0 - q) * (1.0 + q))
        scale, terms = p[THETA_E] * sqrt(q) / f, 0.0
    else:
        f = (1.0 - q) / (1.0 + q)
        scale, terms = 2.0 * p[THETA_E] * sqrt(q) / (1.0 + q), count_terms(q)
    return (cos(p[PHI]), sin(p[PHI]), q, f, scale, p[GAMMA1], p[GAMMA2], t, terms, p[THETA_E] * sqrt(q),
            p[A3] * cos(3.0 * p[PHI3]), p[A3] * sin(3.0 * p[PHI3]), p[A4] * cos(4.0 * p[PHI4]),
            p[A4] * sin(4.0 * p[PHI4]), p[SUB_THETA_E], p[SUB_X], p[SUB_Y], p[SUB_R_CUT])  # fmt: skip


@compile_scalar
def deflect_prepared(x, y, c):
    """Return the total deflection (ax, ay) [arcsec] at one position of a lens prepared by `prepare_lens`."""
    cosine, sine, q, f, scale, gamma1, gamma2, t, terms, b, a3c, a3s, a4c, a4s, sub, sub_x, sub_y, r_cut = c
    u, v = x * cosine + y * sine, y * cosine - x * sine
    radius = max(sqrt(q * q * u * u + v * v), _CENTRE)
    if t == 1.0:
        # atanh as a logarithm: half the time, and what it loses near q = 1 is below 1e-11.
        s, d = scale * atan(f * u / radius), 0.5 * scale * log((radius + f * v) / (radius - f * v))
    else:
        # Omega_n = -f (2n - (2 - t)) / (2n + (2 - t)) e^(2 i phi) Omega_(n-1), summed.
        er, ei = q * u / radius, v / radius
        wr, wi = -f * (er * er - ei * ei), -2.0 * f * er * ei
        s, d = er, ei
        for n in range(1, int(terms) + 1):
            weight = (2.0 * n - 2.0 + t) / (2.0 * n + 2.0 - t)
            er, ei = weight * (er * wr - ei * wi), weight * (er * wi + ei * wr)
            s += er
            d += ei
        power = scale * exp((t - 1.0) * log(b / radius)) if b > 0.0 else 0.0
        s, d = s * power, d * power
    ax = s * cosine - d * sine + gamma1 * x + gamma2 * y
    ay = s * sine + d * cosine + gamma2 * x - gamma1 * y
    if a3c != 0.0 or a3s != 0.0 or a4c != 0.0 or a4s != 0.0:
        mx, my = deflect_multipoles(x, y, a3c, a3s, a4c, a4s)
        ax, ay = ax + mx, ay + my
    if sub != 0.0:
        dx, dy = x - sub_x, y - sub_y
        r = max(sqrt(dx * dx + dy * dy), _CENTRE)
        outer = sqrt(r * r + r_cut * r_cut)
        alpha = sub * 2.0 * r_cut / (r + r_cut + outer) / r
        ax, ay = ax + alpha * dx, ay + alpha * dy
    return ax, ay


@compile_scalar
def deflect_multipoles(x, y, a3c, a3s, a4c, a4s):
    """Return the deflection of both multipoles; ``amc``, ``ams``: a_m times the cosine and sine of m phi_m."""
    r = max(sqrt(x * x + y * y), _CENTRE)
    c, s = x / r, y / r
    c3, s3 = c * (4.0 * c * c - 3.0), s * (3.0 - 4.0 * s * s)
    c4, s4 = 1.0 - 8.0 * c * c * s * s, 4.0 * c * s * (c * c - s * s)
    along = -(c3 * a3c + s3 * a3s) / 8.0 - (c4 * a4c + s4 * a4s) / 15.0
    across = 3.0 / 8.0 * (s3 * a3c - c3 * a3s) + 4.0 / 15.0 * (s4 * a4c - c4 * a4s)
    return c * along - s * across, s * along + c * across


@compile_scalar
def differentiate_prepared(x, y, c):
    """Return the deflection's derivatives (d ax/dx, d ay/dy, d ax/dy) at one position of a prepared lens.

    Notes
    -----
    Power law: kappa = (2 - t)/2 (b/R)^t and, with alpha its deflection as a complex number,
    gamma = -kappa e^(2 i theta) + (1 - t) e^(i theta) alpha / r (Tessore & Metcalf 2015, eqs. 2 and 17, corrigendum).
    Multipoles: 2 kappa = a_m cos(m (theta - phi_m)) / r, all of it tangential.
    """
    cosine, sine, q, f, scale, gamma1, gamma2, t, terms, b, a3c, a3s, a4c, a4s, sub, sub_x, sub_y, r_cut = c
    r = max(sqrt(x * x + y * y), _CENTRE)
    cx, sx = x / r, y / r
    c2, s2 = cx * cx - sx * sx, 2.0 * cx * sx
    u, v = x * cosine + y * sine, y * cosine - x * sine
    radius = max(sqrt(q * q * u * u + v * v), _CENTRE)
    if t == 1.0:
        kappa = 0.5 * b / radius
        g1, g2 = -kappa * c2, -kappa * s2
    else:
        kappa = 0.5 * (2.0 - t) * exp(t * log(b / radius)) if b > 0.0 else 0.0
        plain = (cosine, sine, q, f, scale, 0.0, 0.0, t, terms, b, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
        ax, ay = deflect_prepared(x, y, plain)
        g1 = (1.0 - t) * (ax * cx - ay * sx) / r - kappa * c2
        g2 = (1.0 - t) * (ay * cx + ax * sx) / r - kappa * s2
    if a3c != 0.0 or a3s != 0.0 or a4c != 0.0 or a4s != 0.0:
        c3, s3 = cx * (4.0 * cx * cx - 3.0), sx * (3.0 - 4.0 * sx * sx)
        half = 0.5 * (c3 * a3c + s3 * a3s + (c2 * c2 - s2 * s2) * a4c + 2.0 * c2 * s2 * a4s) / r
        kappa, g1, g2 = kappa + half, g1 - half * c2, g2 - half * s2
    if sub != 0.0:
        dx, dy = x - sub_x, y - sub_y
        d = max(sqrt(dx * dx + dy * dy), _CENTRE)
        outer = sqrt(d * d + r_cut * r_cut)
        own = 0.5 * sub * (1.0 / d - 1.0 / outer)
        # Radially symmetric: the shear is mean convergence minus convergence, across the direction to the centre.
        shear = sub * 2.0 * r_cut / (d + r_cut + outer) / d - own
        kappa += own
        g1, g2 = g1 - shear * (dx * dx - dy * dy) / (d * d), g2 - shear * 2.0 * dx * dy / (d * d)
    return kappa + g1 + gamma1, kappa - g1 - gamma1, g2 + gamma2


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


@compile_scalar
def deflect_positions(x, y, p):
    """Return the total deflection (ax, ay) of one packed lens at many positions, arrays of shape (K,)."""
    c, ax, ay = prepare_lens(p), np.empty(x.size), np.empty(x.size)
    for i in range(x.size):
        ax[i], ay[i] = deflect_prepared(x[i], y[i], c)
    return ax, ay


@compile_scalar
def magnify_positions(x, y, p):
    """Return the signed point magnification 1 / det(d beta / d theta) of one packed lens at many positions.

    Parameters
    ----------
    x, y : ndarray of shape (K,)
        Image-plane positions [arcsec].
    p : ndarray of shape (14,)

    Returns
    -------
    ndarray of shape (K,)
        Negative for saddle points.
    """
    c, mu = prepare_lens(p), np.empty(x.size)
    for i in range(x.size):
        fxx, fyy, fxy = differentiate_prepared(x[i], y[i], c)
        mu[i] = 1.0 / ((1.0 - fxx) * (1.0 - fyy) - fxy * fxy)
    return mu


@compile_loops
def trace_rays(x, y, n, c, bx, by):
    """Trace many positions back to the source plane, in vector instructions where the lens is isothermal.

    Parameters
    ----------
    x, y : ndarray of shape (>= n,)
        Image-plane positions [arcsec].
    n : int
        How many of them.
    c : tuple
        Of `prepare_lens`.
    bx, by : ndarray of shape (>= n,)
        Filled with the positions in the source plane [arcsec], to 1e-9 of theta_E those of `deflect_prepared`.

    Notes
    -----
    With psi^2 = q^2 u^2 + v^2 and r^2 = u^2 + v^2 half-angle formulae give arctan(f u / psi) = 2 arctan(f u /
    (psi + r)) and arctanh(f v / psi) = 2 arctanh(f v / (psi + q r)); both squares stay below (1 - q) / (1 + q), and f
    drops out of what is divided by, so round lenses need no case of their own.
    """
    is_plain = c[7] == 1.0 and c[10] == 0.0 and c[11] == 0.0 and c[12] == 0.0 and c[13] == 0.0 and c[14] == 0.0
    if not is_plain or (1.0 - c[2]) / (1.0 + c[2]) > REACH:
        for i in range(n):
            ax, ay = deflect_prepared(x[i], y[i], c)
            bx[i], by[i] = x[i] - ax, y[i] - ay
        return
    cosine, sine, q, b, gamma1, gamma2 = c[0], c[1], c[2], 2.0 * c[9], c[5], c[6]
    square = (1.0 - q) * (1.0 + q)
    for i in range(n):
        u, v = x[i] * cosine + y[i] * sine, y[i] * cosine - x[i] * sine
        r2 = u * u + v * v + _CENTRE * _CENTRE
        r, psi = sqrt(r2), sqrt(r2 - square * u * u)
        first, second = psi + r, psi + q * r
        inverse = 1.0 / (first * second)
        u, v = u * second * inverse, v * first * inverse
        s, d = b * u * take_arctan(square * u * u), b * v * take_arctan(-square * v * v)
        bx[i] = x[i] - (s * cosine - d * sine + gamma1 * x[i] + gamma2 * y[i])
        by[i] = y[i] - (s * sine + d * cosine + gamma2 * x[i] - gamma1 * y[i])


@compile_loops
def bound_stretches(x, y, n, p, out):
    """Fill `out` with a bound on how much longer short steps at positions (x, y) become in the source plane.

    Parameters
    ----------
    x, y, out : ndarray of shape (>= n,)
    n : int
    p : ndarray of shape (14,)
        One row of `mass.pack_lens`.
    """
    cosine, sine, q, slope = cos(p[PHI]), sin(p[PHI]), p[Q], p[SLOPE]
    shear, theta, tilt = sqrt(p[GAMMA1] ** 2 + p[GAMMA2] ** 2), p[THETA_E], abs(p[SLOPE] - 2.0)
    poles = 8.0 * abs(p[A3]) + 15.0 * abs(p[A4])
    for i in range(n):
        u, v = x[i] * cosine + y[i] * sine, y[i] * cosine - x[i] * sine
        radius = max(sqrt(q * u * u + v * v / q), 0.03)
        power = theta / radius
        if slope != 2.0:
            power = take_exp((slope - 1.0) * take_log(power))
        out[i] = max(1.0, abs(1.0 - power)) + tilt * power + shear + poles / radius
    if p[SUB_THETA_E] > 0.0:
        for i in range(n):
            dx, dy = x[i] - p[SUB_X], y[i] - p[SUB_Y]
            out[i] += p[SUB_THETA_E] / max(sqrt(dx * dx + dy * dy), 0.05)
