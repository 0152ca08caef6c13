"""What the threshold's own error does to a completeness, beside counting."""

import numpy as np

from lensaudit import stats
from lensaudit.artifacts import UserError


def take_draws(draws, name):
    """Return the drawn thresholds of one operating point.

    Raises
    ------
    UserError
        When there are none, or one is not finite.
    """
    if name not in draws:
        raise UserError(f"no drawn thresholds for {name}; those given are for {', '.join(draws)}")
    values = np.asarray(draws[name], dtype=float)
    if not len(values) or not np.isfinite(values).all():
        raise UserError(f"drawn thresholds of {name} are missing or not finite; draw them with set_thresholds")
    return values


def count_draws(number, logit, draws, n_cells):
    """Count what each cell recovers at every drawn threshold, from one pass over the scores.

    Parameters
    ----------
    number : ndarray of int, shape (N,)
        Cell of each injection, 0 .. n_cells - 1.
    logit : ndarray of shape (N,)
    draws : ndarray of shape (B,)
        Thresholds; an injection is recovered when its logit is larger.
    n_cells : int

    Returns
    -------
    ndarray of int, shape (B, n_cells)
        In the order of `draws`, so that cells of one draw go together.
    """
    levels, place = np.unique(draws, return_inverse=True)
    passed = np.searchsorted(levels, logit, side="left")
    count = np.bincount(number * (len(levels) + 1) + passed, minlength=n_cells * (len(levels) + 1))
    above = np.cumsum(count.reshape(n_cells, -1)[:, ::-1], axis=1)[:, ::-1]
    return above[:, 1:].T[place.ravel()]


def add_threshold_error(part, values, bounds):
    """Add the threshold's component to a table of completeness, and the bounds that hold both.

    Parameters
    ----------
    part : pandas.DataFrame
        With completeness and the counting bounds.
    values : ndarray of shape (B, len(part))
        Completeness at every drawn threshold; NaN where there is none.
    bounds : dict of level -> suffix
        Of the counting bounds: ``lower`` + suffix, ``upper`` + suffix.

    Returns
    -------
    pandas.DataFrame
        With sigma_threshold, the standard deviation over the draws, and ``lower_total``, ``upper_total`` at 95 %
        (``lower_68_total``, ``upper_68_total`` at 68 %).

    Notes
    -----
    On each side the counting half-width and the distance to the draws' quantile are added in quadrature: negatives that
    set the threshold and injections are independent. A fixed threshold adds nothing.
    """
    known = np.isfinite(values).any(axis=0) & (len(values) > 0)
    centre, drawn = part["completeness"].to_numpy(dtype=float)[known], values[:, known]
    out = part.assign(sigma_threshold=np.nan)
    out.loc[known, "sigma_threshold"] = np.nanstd(drawn, axis=0)
    for level, suffix in bounds.items():
        name = "_total" if level == 0.95 else f"_{100 * level:.0f}_total"
        for side, edge in zip(("lower", "upper"), stats.summarise_draws(drawn, level), strict=True):
            sign = -1.0 if side == "lower" else 1.0
            half = np.hypot(sign * (part.loc[known, f"{side}{suffix}"] - centre), np.maximum(sign * (edge - centre), 0))
            # Without injections there is no threshold component, and the counting bounds stay.
            out[f"{side}{name}"] = part[f"{side}{suffix}"]
            out.loc[known, f"{side}{name}"] = np.clip(centre + sign * half, 0.0, 1.0)
    return out
