"""Source brightness at one position, compiled: Sersic profiles with a gradient, and images.

The scalar twins of `sources.evaluate_sersic` and `sources.evaluate_image`, for samplers that walk over positions on the
CPU. Without numba the same functions run as plain Python: slow, but the same numbers.
"""

import math

import numpy as np

from lensaudit.lensing.sources import FIELDS

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
