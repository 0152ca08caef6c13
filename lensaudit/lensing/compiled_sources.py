"""Source brightness at one position, compiled: Sersic profiles with a gradient, and images.

The scalar twins of `sources.evaluate_sersic` and `sources.evaluate_image`, for samplers that walk over positions on the
CPU. Without numba the same functions run as plain Python: slow, but the same numbers.
"""

import math

import numpy as np

from lensaudit.lensing.sources import FIELDS, IMAGE_FIELDS

try:
    from numba import njit
except ImportError:  # numba is optional; only the speed depends on it

    def njit(**_):
        """Return a decorator that leaves the function as it is."""
        return lambda function: function


@njit(nogil=True, cache=True, error_model="numpy")
def evaluate_profile(dx, dy, c):
    """Return the surface brightness [flux / arcsec^2] of one Sersic component.

    Parameters
    ----------
    dx, dy : float
        Source-plane position minus the component's centre (``c[0]``, ``c[1]``) [arcsec].
    c : float64 ndarray of shape (11,)
        One row of `pack_components`, in the order of `FIELDS`: x, y, xx, xy, yy, b, inverse_n, central, gx, gy, g.

    Notes
    -----
    I(0) exp(-b r^(1/n)) (1 + g tanh(gx dx + gy dy)), r^2 = xx dx^2 + 2 xy dx dy + yy dy^2; no power for n = 0.5 and 1.
    """
    r2 = (c[2] * dx + 2.0 * c[3] * dy) * dx + c[4] * dy * dy
    inverse_n = c[6]
    if inverse_n == 2.0:
        power = r2
    elif inverse_n == 1.0:
        power = math.sqrt(max(r2, 0.0))  # the form is positive; rounding at the very centre need not be
    else:
        power = max(r2, 0.0) ** (0.5 * inverse_n)
    value = c[7] * math.exp(-c[5] * power)
    if c[10] != 0.0:
        value *= 1.0 + c[10] * math.tanh(c[8] * dx + c[9] * dy)
    return value


@njit(nogil=True, cache=True, error_model="numpy")
def interpolate_image(image, u, v):
    """Return an image's value between its pixels.

    Parameters
    ----------
    image : ndarray of shape (rows, columns)
        Cubic B-spline coefficients, one image of `sources.ImageBank`.
    u, v : float
        Column and row [pixel]; 0 is the centre of the first.

    Returns
    -------
    float
        Flux per pixel; zero outside, as if coefficients of zero stood there.
    """
    rows, columns = image.shape
    if not (u > -2.0 and v > -2.0 and u < columns + 1.0 and v < rows + 1.0):
        return 0.0
    left, top = math.floor(u), math.floor(v)
    f, h = u - left, v - top
    g = 1.0 - f
    w0, w3 = g * g * g / 6.0, f * f * f / 6.0
    w1, w2 = 2.0 / 3.0 - f * f * (1.0 - 0.5 * f), 2.0 / 3.0 - g * g * (1.0 - 0.5 * g)
    j, i = int(left) - 1, int(top) - 1
    inside = j >= 0 and j + 3 < columns
    value = 0.0
    for a in range(4):
        row = i + a
        if row < 0 or row >= rows:
            continue
        distance = abs(h + 1.0 - a)
        if distance < 1.0:
            weight = 2.0 / 3.0 - distance * distance * (1.0 - 0.5 * distance)
        else:
            weight = (2.0 - distance) ** 3 / 6.0
        if inside:
            line = w0 * float(image[row, j]) + w1 * float(image[row, j + 1])
            line += w2 * float(image[row, j + 2]) + w3 * float(image[row, j + 3])
        else:
            line = 0.0
            for b in range(4):
                if 0 <= j + b < columns:
                    line += (w0, w1, w2, w3)[b] * float(image[row, j + b])
        value += weight * line
    return value


@njit(nogil=True, cache=True, error_model="numpy")
def evaluate_stamp(dx, dy, central, placement, coefficients):
    """Return the surface brightness [flux / arcsec^2] of a component that is an image.

    Parameters
    ----------
    dx, dy : float
        Source-plane position minus the component's centre [arcsec].
    central : float
        Field `central` of the component (column 7 of `pack_components`) [arcsec^-2].
    placement : float64 ndarray of shape (5,)
        One row of `pack_placements`: image, ux, uy, u0, v0; image not negative.
    coefficients : ndarray of shape (K, S, S)
        Of `sources.ImageBank`.
    """
    u = placement[3] + placement[1] * dx + placement[2] * dy
    v = placement[4] - placement[2] * dx + placement[1] * dy
    return central * interpolate_image(coefficients[int(placement[0])], u, v)


def pack_components(components):
    """Return components as rows for `evaluate_profile`.

    Parameters
    ----------
    components : dict of Tensor of shape (M,)
        From `sources.make_components`; gx, gy and g may be absent.

    Returns
    -------
    float64 ndarray of shape (M, 11)
        Columns in the order of `FIELDS`.
    """
    packed = np.zeros((len(components["x"]), len(FIELDS)))
    for column, name in enumerate(FIELDS):
        if name in components:
            packed[:, column] = components[name].detach().cpu().numpy()
    return packed


def pack_placements(components):
    """Return where components that are images stand in them, as rows for `evaluate_stamp`.

    Parameters
    ----------
    components : dict of Tensor of shape (M,)
        From `sources.make_components`.

    Returns
    -------
    float64 ndarray of shape (M, 5)
        Columns in the order of `IMAGE_FIELDS`; image is -1 where the component is a Sersic profile.
    """
    packed = np.zeros((len(components["x"]), len(IMAGE_FIELDS)))
    packed[:, 0] = -1.0
    for column, name in enumerate(IMAGE_FIELDS):
        if name in components:
            packed[:, column] = components[name].detach().cpu().numpy()
    return packed
