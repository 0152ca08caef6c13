"""What held-out bricks say of the smooth model: log-scores, calibration, predictive checks; the raw cells beside it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.polynomial.hermite_e import hermegauss
from scipy.optimize import brentq
from scipy.special import expit, ndtr, ndtri

from lensaudit import rng as streams
from lensaudit import stats
from lensaudit.artifacts import UserError
from lensaudit.audit.completeness import COLUMN_OF, assign_cells, make_edges
from lensaudit.audit.recovery import BOUNDS, N_FOLDS
from lensaudit.audit.smooth import SMOOTH_AXES, fit_design, fit_smooth, make_basis


@dataclass(frozen=True)
class HeldOut:
    """Predictions for rows whose brick took no part in the fit.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per injection inside the grid: fold, cell, flag, host_index, brickname, the axes of the grid, and P by
        the models "smooth", "cells" (Jeffreys-smoothed fraction of the cell) and "constant".
    draws : ndarray of shape (n_draws, N), float32
        Posterior draws of "smooth".
    """

    table: pd.DataFrame
    draws: np.ndarray


def cross_validate(table, flag, grid, seed, model=None, axes=SMOOTH_AXES, n_draws=200):
    """Predict every injection by models fitted without its brick.

    Parameters
    ----------
    table : pandas.DataFrame
        Injections: the axes' columns, psfsize_r, depth_r, host_index, brickname.
    flag : array_like of bool, shape (N,)
    grid : dict of axis name -> centres
        Cells as in `completeness.assign_cells`; rows outside it are left out.
    seed : int
    model : SmoothModel, optional
        Fitted to the same rows; where the fits of the folds begin. The basis is that of all rows, whose flags it does
        not know.
    axes : sequence of str
    n_draws : int

    Returns
    -------
    HeldOut

    Raises
    ------
    UserError
        See `make_basis`; also when the bricks do not fill two folds.
    """
    cell = assign_cells(table, grid)
    inside = table[cell >= 0]
    cell, y = cell[cell >= 0], np.asarray(flag, dtype=float)[cell >= 0]
    fold = assign_folds(inside["brickname"], seed)
    if len(np.unique(fold)) < 2:
        raise UserError("the bricks of the injections do not fill two folds; column brickname has too few")
    basis = model.basis if model is not None else make_basis(inside, axes)
    design, hosts = basis.transform(inside), inside["host_index"].to_numpy()
    held = inside[[*dict.fromkeys([*COLUMN_OF.values(), "host_index", "brickname"])]].reset_index(drop=True)
    held = held.assign(fold=fold, cell=cell, flag=y.astype(bool), smooth=np.nan, cells=np.nan, constant=np.nan)
    draws = np.empty((n_draws, len(held)), dtype=np.float32)
    for number in np.unique(fold):
        rows, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        fit = fit_design(basis, design[rest], y[rest], hosts[rest], model)
        # The same normals in every fold: the errors of folds that share most of their rows are nearly the same.
        theta = fit.draw_coefficients(n_draws, streams.make_stream(seed, "audit/smooth/draws"))
        draws[:, rows] = expit(theta @ design[rows].T)
        n = np.bincount(cell[rest], minlength=cell.max() + 1)[cell[rows]]
        k = np.bincount(cell[rest], weights=y[rest], minlength=cell.max() + 1)[cell[rows]]
        mean = y[rest].mean()
        held.loc[rows, "smooth"] = expit(design[rows] @ fit.theta)
        held.loc[rows, "cells"] = np.where(n > 0, (k + 0.5) / (n + 1.0), mean)
        held.loc[rows, "constant"] = mean
    return HeldOut(held, draws)


def assign_folds(bricks, seed):
    """Return the fold (0 .. N_FOLDS - 1) of each row's brick, shape (N,)."""
    names, code = np.unique(np.asarray(bricks).astype(str), return_inverse=True)
    return (streams.hash_order(seed, "audit/smooth/fold", names) * N_FOLDS).astype(int)[code]


def score_models(held, seed, n_bootstrap=1000):
    """Compare the held-out log-scores of the smooth model, the raw cells and a constant.

    Parameters
    ----------
    held : HeldOut
    seed : int
    n_bootstrap : int

    Returns
    -------
    pandas.DataFrame
        model, n, log_score (mean log-likelihood per row), gain (log-score of the smooth model less this one) with its
        95 % host-clustered interval, gain_lower and gain_upper.
    """
    own = held.table
    score = {name: score_rows(own["flag"], own[name]) for name in ("smooth", "cells", "constant")}
    rows = []
    for name, value in score.items():
        gain = score["smooth"] - value
        draws = stats.cluster_bootstrap(gain, own["host_index"], n_bootstrap,
                                        streams.make_stream(seed, "audit/smooth/scores", name))  # fmt: skip
        lower, upper = stats.summarise_draws(draws)
        rows.append({"model": name, "n": len(own), "log_score": value.mean(), "gain": gain.mean(),
                     "gain_lower": lower, "gain_upper": upper})  # fmt: skip
    return pd.DataFrame(rows)


def score_rows(flag, p):
    """Return the log-likelihood of each flag, shape (N,), at probabilities kept inside `recovery.BOUNDS`."""
    p = np.clip(np.asarray(p, dtype=float), *BOUNDS)
    return np.where(np.asarray(flag, dtype=bool), np.log(p), np.log1p(-p))


def tabulate_calibration(held, seed, n_bins=10, n_bootstrap=1000):
    """Compare predicted and observed fractions of held-out rows in bins of equal number.

    Parameters
    ----------
    held : HeldOut
    seed : int
    n_bins : int
    n_bootstrap : int

    Returns
    -------
    pandas.DataFrame
        n, n_hosts, predicted (mean), observed, observed_lower, observed_upper (95 %; hosts drawn with replacement).
        Where hosts tell nothing, since all flags of the bin agree, the bounds are Jeffreys' with the number of hosts.
    """
    own = held.table.sort_values("smooth", kind="stable").reset_index(drop=True)
    rows = []
    for number, index in enumerate(np.array_split(np.arange(len(own)), n_bins)):
        part = own.iloc[index]
        n_hosts, observed = part["host_index"].nunique(), part["flag"].mean()
        draws = stats.cluster_bootstrap(part["flag"], part["host_index"], n_bootstrap,
                                        streams.make_stream(seed, "audit/smooth/calibration", number))  # fmt: skip
        lower, upper = stats.summarise_draws(draws)
        if observed in (0.0, 1.0):
            lower, upper = stats.jeffreys_interval(observed * n_hosts, n_hosts)
        rows.append({"n": len(part), "n_hosts": n_hosts, "predicted": part["smooth"].mean(), "observed": observed,
                     "observed_lower": lower, "observed_upper": upper})  # fmt: skip
    return pd.DataFrame(rows)


def check_predictive(held, grid, seed):
    """Posterior predictive checks on held-out rows, with replicated flags as correlated inside hosts and bricks.

    Parameters
    ----------
    held : HeldOut
    grid : dict of axis name -> centres
    seed : int

    Returns
    -------
    pandas.DataFrame
        check, observed, its mean and 95 % range over replicates (expected, lower, upper) and p, the share of replicates
        at least as large. "cells outside": cells whose recovered count lies outside the 95 % band of the replicates.
        "chi-squared" of the cells of each fold, and of the bins along each axis of the grid in each fold.

    Notes
    -----
    Each replicate takes one posterior draw and thresholds normal deviates shared in part by the rows of a host and of
    a brick. Their correlations give the pair correlations of the flags about the means of their cells, not about the
    model, so that a misfit is not taken for noise. The discrepancies refer to the held-out mean prediction, and are
    taken by fold: over all folds together held-out residuals nearly cancel, as those of the fit itself do.
    """
    own, generator = held.table, streams.make_stream(seed, "audit/smooth/replicates")
    p = own["smooth"].to_numpy()
    host = stats.encode_groups(own["brickname"].astype(str) + "/" + own["host_index"].astype(str))
    brick = stats.encode_groups(own["brickname"])
    latent = match_correlations(own["flag"], own["cell"], host, brick, p)
    copies = np.stack([_replicate(draw, host, brick, latent, generator) for draw in held.draws])

    def count(values, label):
        return np.bincount(label, weights=values)

    label = stats.encode_groups(own["cell"])
    found, counts = count(own["flag"], label), np.stack([count(copy, label) for copy in copies])
    lower, upper = np.quantile(counts, [0.025, 0.975], axis=0)
    rows = [_describe("cells outside", np.sum((found < lower) | (found > upper)),
                      np.sum((counts < lower) | (counts > upper), axis=1))]  # fmt: skip
    bins = {"cells": own["cell"]}
    bins |= {axis: np.digitize(own[COLUMN_OF[axis]], make_edges(centres)) for axis, centres in grid.items()}
    for name, number in bins.items():
        label = stats.encode_groups(np.asarray(number) * N_FOLDS + own["fold"])
        expected, variance = count(p, label), np.maximum(count(p * (1.0 - p), label), 1e-9)
        values = [np.sum((count(flags, label) - expected) ** 2 / variance) for flags in (own["flag"], *copies)]
        rows.append(_describe(f"chi-squared, {name}", values[0], np.array(values[1:])))
    return pd.DataFrame(rows).assign(n_cells=len(found), latent_host=latent[0], latent_brick=latent[1])


def _describe(name, observed, replicates):
    lower, upper = stats.summarise_draws(replicates)
    return {"check": name, "observed": float(observed), "expected": replicates.mean(), "lower": lower, "upper": upper,
            "p": float((1 + np.sum(replicates >= observed)) / (1 + len(replicates)))}  # fmt: skip


def _replicate(p, host, brick, latent, generator):
    """Return flags with probabilities `p`, shape (N,), from deviates correlated inside hosts and bricks."""
    within, between = latent
    shared = np.sqrt(between) * generator.standard_normal(brick.max() + 1)[brick]
    shared += np.sqrt(within - between) * generator.standard_normal(host.max() + 1)[host]
    return shared + np.sqrt(1.0 - within) * generator.standard_normal(len(p)) < ndtri(np.clip(p, 1e-9, 1 - 1e-9))


def match_correlations(flag, cell, host, brick, p):
    """Return the correlations of normal deviates inside hosts and bricks that give the pair correlations of flags.

    Parameters
    ----------
    flag, cell, host, brick, p : array_like of shape (N,)
        Flags are compared with the mean of their cell; `p` is the probability that a deviate is thresholded at.

    Returns
    -------
    within, between : float
        0.99 >= within >= between >= 0.
    """
    flag = np.asarray(flag, dtype=float)
    mean = pd.Series(flag).groupby(np.asarray(cell)).transform("mean").to_numpy()
    node, weight = hermegauss(15)
    limit, codes = ndtri(np.clip(p, 1e-9, 1 - 1e-9)), (np.asarray(host), np.asarray(brick))

    def sum_pairs(values, level):  # products over the pairs of one host, or of one brick and two hosts
        totals = [np.bincount(codes[i], weights=values) for i in range(level + 1)]
        return np.sum(totals[level] ** 2) - (np.sum(totals[0] ** 2) if level else np.sum(values**2))

    def model(r, level):
        shifts = [ndtr((limit - np.sqrt(r) * z) / np.sqrt(1.0 - r)) - p for z in node]
        return np.dot(weight, [sum_pairs(v, level) for v in shifts]) / weight.sum()

    found = []
    for level in (0, 1):
        bottom = sum_pairs(np.sqrt(mean * (1.0 - mean)), level)
        rho = sum_pairs(flag - mean, level) / bottom if bottom > 1e-9 * len(flag) else 0.0
        scale = sum_pairs(np.sqrt(p * (1.0 - p)), level)
        if rho <= 0:
            found.append(0.0)
        elif model(0.99, level) <= rho * scale:
            found.append(0.99)
        else:
            found.append(brentq(lambda r, i=level, goal=rho * scale: model(r, i) - goal, 0.0, 0.99, xtol=1e-3))
    return max(found), found[1]


def tabulate_cells(model, table, cells, grid, seed, n_draws=200):
    """Put the smooth model beside the raw cells, averaged over each cell's own injections.

    Parameters
    ----------
    model : SmoothModel
    table : pandas.DataFrame
        The injections behind `cells`.
    cells : pandas.DataFrame
        From `completeness.count_cells`, of one threshold: all cells, row-major.
    grid : dict of axis name -> centres
    seed : int
    n_draws : int

    Returns
    -------
    pandas.DataFrame
        `cells` with smooth, smooth_lower_68, smooth_upper_68, smooth_lower_95, smooth_upper_95; NaN in cells without
        an injection, where the model would extrapolate.
    """
    cell = assign_cells(table, grid)
    order = np.argsort(cell, kind="stable")
    order = order[cell[order] >= 0]
    numbers, first = np.unique(cell[order], return_index=True)
    theta = np.vstack([model.theta, model.draw_coefficients(n_draws, streams.make_stream(seed, "audit/smooth/cells"))])
    mean = np.full((n_draws + 1, len(cells)), np.nan)
    for number, rows in zip(numbers, np.split(order, first[1:]), strict=True):
        mean[:, number] = expit(theta @ model.basis.transform(table.iloc[rows]).T).mean(axis=1)
    out = cells.reset_index(drop=True).assign(smooth=mean[0])
    for level, name in ((0.68, "68"), (0.95, "95")):
        tail = 0.5 * (1.0 - level)
        out[f"smooth_lower_{name}"], out[f"smooth_upper_{name}"] = np.quantile(mean[1:], [tail, 1.0 - tail], axis=0)
    return out


def audit_smooth(table, cells, grid, thresholds, config, axes=SMOOTH_AXES):
    """Fit the smooth model at each threshold and judge it on held-out bricks.

    Parameters
    ----------
    table : pandas.DataFrame
        Scored grid injections: logit, the axes' columns, psfsize_r, depth_r, host_index, brickname.
    cells : pandas.DataFrame
        From `completeness.count_cells` with the same grid and thresholds.
    grid : dict of axis name -> centres
    thresholds : dict of name -> float
        On the logit.
    config : lensaudit.config.Config
    axes : sequence of str

    Returns
    -------
    dict of str -> pandas.DataFrame
        "cells" (`tabulate_cells`), "scores" (`score_models`), "calibration" (`tabulate_calibration`), "checks"
        (`check_predictive`) and "blocks" (`SmoothModel.describe`), each with a column threshold_name.
    """
    inside = table[assign_cells(table, grid) >= 0]
    parts = {name: [] for name in ("cells", "scores", "calibration", "checks", "blocks")}
    for name, threshold in thresholds.items():
        flag = inside["logit"].to_numpy() > threshold
        model = fit_smooth(inside, flag, axes)
        held = cross_validate(inside, flag, grid, config.seed, model, axes)
        own = cells[cells["threshold_name"] == name]
        found = (tabulate_cells(model, inside, own, grid, config.seed), score_models(held, config.seed),
                 tabulate_calibration(held, config.seed), check_predictive(held, grid, config.seed),
                 model.describe())  # fmt: skip
        for key, part in zip(parts, found, strict=True):
            parts[key].append(part.assign(threshold_name=name))
    return {key: pd.concat(value, ignore_index=True) for key, value in parts.items()}


def write_audit(stage, audit):
    """Write the tables of `audit_smooth` as ``smooth_<name>.parquet``."""
    for name, table in audit.items():
        stage.write_table(f"smooth_{name}.parquet", table)
