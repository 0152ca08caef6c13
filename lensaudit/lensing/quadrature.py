"""The rule by which light is integrated: half-pixel cells, their divisions, Gauss-Legendre nodes, cubic B-splines."""

import numpy as np

from lensaudit.constants import PIXEL_SCALE

CELL = 0.5 * PIXEL_SCALE  # arcsec
DEPTH = 7  # most divisions of a cell; its panels are then a milliarcsecond wide
SMOOTH = 1.5  # 1/n above which a Sersic profile counts as smooth at its centre
# Two and three nodes per axis: places in panels from the panel's centre, and weights.
NODES = np.array([[-np.sqrt(1 / 12), np.sqrt(1 / 12), 0.0], [-np.sqrt(0.15), 0.0, np.sqrt(0.15)]])
WEIGHTS = np.array([[1 / 2, 1 / 2, 0.0], [5 / 18, 8 / 18, 5 / 18]])


def weigh_spline(t):
    """Return the cubic B-spline weights of a cell's own sample and two on each side, shape (..., 5).

    Parameters
    ----------
    t : ndarray
        Place in the cell, from its centre in cells, -1/2 to 1/2.
    """
    distance = np.abs(np.asarray(t)[..., None] - np.arange(-2, 3))
    inner = 2.0 / 3.0 - distance**2 * (1.0 - 0.5 * distance)
    return np.where(distance < 1.0, inner, np.clip(2.0 - distance, 0.0, None) ** 3 / 6.0)


def tabulate_splines():
    """Return `weigh_spline` of all nodes, shape (2^(DEPTH + 1) - 1, 2, 3, 5).

    Panel k of the 2^level along a cell's axis stands at row 2^level - 1 + k; then two or three nodes, and which.
    """
    centres = np.concatenate([(np.arange(2**level) + 0.5) / 2**level - 0.5 for level in range(DEPTH + 1)])
    width = np.concatenate([np.full(2**level, 0.5**level) for level in range(DEPTH + 1)])
    return weigh_spline(centres[:, None, None] + width[:, None, None] * NODES)
