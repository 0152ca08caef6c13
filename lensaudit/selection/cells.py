"""Probabilities in cells of some of the axes: where a point lies, what is known there, and draws from it."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from lensaudit import rng as streams
from lensaudit.artifacts import UserError
from lensaudit.audit.completeness import AXES, make_edges

LEVELS = (0.68, 0.95)
N_DRAWS = 4000
TWO_SIDED = 1.959964  # standard deviations of a normal variable to either end of its 95 % interval


@dataclass
class Cells:
    """Cells with a probability each, known as a Beta distribution or exactly.

    Parameters
    ----------
    axes : dict of axis -> ndarray
        Centres, of any of theta_E [arcsec], seeing [arcsec], depth [mag].
    table : pandas.DataFrame
        Row-major over the axes: p, alpha and beta of its Beta distribution (NaN where p is exact), sufficient, reason;
        where the error of the operating point is known, threshold_down and threshold_up, how far its 95 % interval
        moves p.
    key : str
        Names the random stream: cells of one key draw the same numbers wherever they enter.
    """

    axes: dict
    table: pd.DataFrame
    key: str
    edges: dict = field(init=False)

    def __post_init__(self):
        self.edges = {axis: make_edges(centres) for axis, centres in self.axes.items()}
        size = int(np.prod([len(c) for c in self.axes.values()]))
        if len(self.table) != size:
            raise UserError(f"{self.key}: {len(self.table)} cells; the axes say {size}")
        texts = self.table["reason"].astype(str).replace("", "not sufficient")
        texts = texts.where(~self.table["sufficient"].astype(bool), "").to_numpy()
        outside = [f"{axis} outside {e[0]:g} to {e[-1]:g}" for axis, e in self.edges.items()]
        self.reasons = list(dict.fromkeys(["", "not a number", *outside, *texts]))
        place = {text: i for i, text in enumerate(self.reasons)}
        self.reason_of = np.array([place[text] for text in texts], dtype=np.int16)

    def locate(self, values):
        """Return the cell of each point and why it is not supported.

        Parameters
        ----------
        values : dict of axis -> ndarray of shape (N,)

        Returns
        -------
        number : ndarray of int, shape (N,)
            Row of the table; 0 outside the axes.
        reason : ndarray of int16, shape (N,)
            Index into `reasons`; 0 inside the support.
        """
        n = len(values[AXES[0]])
        number, outside = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int16)
        for position, (axis, edges) in enumerate(self.edges.items()):
            index = np.searchsorted(edges, values[axis], side="right") - 1
            index[values[axis] == edges[-1]] = len(edges) - 2
            bad = (index < 0) | (index > len(edges) - 2)
            number = number * (len(edges) - 1) + np.where(bad, 0, index)
            outside[bad & (outside == 0)] = position + 2
        unknown = ~np.isfinite(sum(values[axis] for axis in AXES))
        outside[unknown] = 1
        return number, np.where(outside > 0, outside, self.reason_of[number])

    def draw(self, numbers, n=N_DRAWS, seed=0, threshold_error=False):
        """Return `n` draws of the probability of each cell of `numbers`, ndarray of shape (n, len(numbers)).

        A cell's draws do not depend on which others are drawn; cells without a number give NaN. With `threshold_error`
        all cells move together, since a higher threshold finds less everywhere: by one normal deviate per draw, of
        another width up than down. Draws may then leave 0 to 1, so that their means stay what they are.
        """
        out = np.empty((n, len(numbers)))
        p, alpha, beta = (self.table[c].to_numpy(dtype=float) for c in ("p", "alpha", "beta"))
        for column, number in enumerate(numbers):
            if np.isfinite(alpha[number]):
                generator = streams.make_stream(seed, f"selection/{self.key}", int(number))
                out[:, column] = generator.beta(alpha[number], beta[number], n)
            else:
                out[:, column] = p[number]
        if threshold_error and "threshold_up" in self.table:
            moved = streams.make_stream(seed, f"selection/threshold/{self.key}").standard_normal((n, 1)) / TWO_SIDED
            down, up = (self.table[c].to_numpy()[numbers] for c in ("threshold_down", "threshold_up"))
            out += moved * np.where(moved < 0, down, up)
        return out


def broadcast_points(theta_E, seeing, depth, others=()):
    """Return the three coordinates as flat arrays of one length.

    Raises
    ------
    UserError
        For a coordinate that is None, names in `others`, and values that are not numbers or do not broadcast.
    """
    wrong = [f"{name} is unknown" for name in others]
    wrong += [f"{axis} is missing" for axis, v in zip(AXES, (theta_E, seeing, depth), strict=True) if v is None]
    if wrong:
        raise UserError(f"query: {', '.join(wrong)}; the axes of a selection function are {', '.join(AXES)}")
    try:
        values = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in (theta_E, seeing, depth)))
    except (TypeError, ValueError) as error:
        raise UserError(f"query: theta_E, seeing, depth must be numbers that broadcast ({error})") from None
    return dict(zip(AXES, (np.atleast_1d(v).ravel() for v in values), strict=True))


def measure_moves(cells):
    """Return how far the threshold's 95 % interval moves p down and up, from bounds without and with its error.

    Parameters
    ----------
    cells : pandas.DataFrame
        p, lower_95, upper_95, lower_total, upper_total, sigma_threshold; the first four hold each other's quadrature,
        as `error_terms.add_threshold_error` makes it.

    Returns
    -------
    down, up : ndarray
        0 where nothing is known. A lower bound at 0 is cut: there the standard deviation tells, as far as to 0.
    """
    p = cells["p"].to_numpy(dtype=float)
    down, up = (np.sqrt(np.maximum((cells[f"{side}_total"] - p) ** 2 - (cells[f"{side}_95"] - p) ** 2, 0.0)).to_numpy()
                for side in ("lower", "upper"))  # fmt: skip
    wide = np.maximum(down, TWO_SIDED * cells["sigma_threshold"].to_numpy(dtype=float))
    down = np.where(cells["lower_total"].to_numpy() > 0, down, np.minimum(wide, p))
    return np.nan_to_num(down), np.nan_to_num(up)


def check_level(level):
    """Refuse a level of an interval that is not kept."""
    if level not in LEVELS:
        raise UserError(f"level {level!r} is not stored; use 0.68 or 0.95")
    return f"{100 * level:.0f}"
