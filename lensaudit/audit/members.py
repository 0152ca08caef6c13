"""How much completeness depends on which detector was trained: scatter between seeds or members of one recipe.

It stands beside the counting and threshold errors and is no part of their bounds: a map is of one frozen detector.
Every detector scores the same injections at its own thresholds, so that hosts and arcs are common and only the
detectors differ.
"""

import numpy as np
import pandas as pd
from scipy import stats as sps

from lensaudit import stats
from lensaudit.artifacts import UserError
from lensaudit.audit.completeness import AXES, assign_cells
from lensaudit.audit.sufficiency import check_thresholds


def measure_seeds(tables, thresholds, cells, grid):
    """Measure the scatter of completeness between detectors, per cell.

    Parameters
    ----------
    tables : dict of detector -> pandas.DataFrame
        Scored grid injections, the same ones for two detectors or more, in any order.
    thresholds : dict of detector -> dict of name -> float
        Each detector's own; names that all have are compared.
    cells : pandas.DataFrame
        From `completeness.count_cells` for one of them; says which cells are sufficient.
    grid : dict of axis name -> centres

    Returns
    -------
    pandas.DataFrame
        One row per threshold and cell: threshold_name, axes, n, ``completeness_`` + each detector, completeness (their
        mean), sigma_seed (their standard deviation), sigma_counting (what it would be were the detectors alike on
        average but not arc by arc), sigma_excess (sigma_seed with that taken off in quadrature, 0 where it is less),
        n_detectors, dof, sufficient; reason, that of the cell, or a threshold outside a detector's scores.

    Raises
    ------
    UserError
        For fewer than two detectors, other injections, or no threshold in common.

    Notes
    -----
    Flags f_im of injection i and detector m, mean C_m; residuals d_im = f_im - f_i. - C_m + C. sigma_counting^2 =
    G/(G-1) sum over hosts of sum_m (sum_i d_im)^2 / (n^2 (M-1)): the two-way analysis of variance without repeats
    (detectors random), its interaction resampled by host. The same hosts in every cell make cells correlated.
    """
    table, flags, outside = _flag_injections(tables, thresholds)
    number, n_cells = assign_cells(table, grid), int(np.prod([len(grid[axis]) for axis in AXES]))
    use, parts = number >= 0, []
    cell, host = number[use], stats.encode_groups(table["host_index"])[use]
    n = np.bincount(cell, minlength=n_cells)
    for name, flag in flags.items():
        own = cells[cells["threshold_name"] == name].reset_index(drop=True)
        if len(own) != n_cells or not np.array_equal(own["n"], n):
            raise UserError(f"cells at {name} are not those of these injections on this grid; count them again")
        found = np.stack([np.bincount(cell, weights=row, minlength=n_cells) for row in flag[:, use]])
        mean = np.divide(found, n, out=np.full(found.shape, np.nan), where=n > 0)
        between, noise = _split_variance(flag[:, use], mean, cell, host, np.where(n > 0, 1.0 / np.maximum(n, 1), 0.0))
        reason = own["reason"].where((own["reason"] != "") | (outside[name] == ""), outside[name])
        part = own[["threshold_name", *AXES, "n"]].assign(
            **{f"completeness_{detector}": row for detector, row in zip(tables, mean, strict=True)},
            completeness=mean.mean(axis=0), sigma_seed=np.sqrt(between), sigma_counting=np.sqrt(noise),
            sigma_excess=np.sqrt(np.maximum(between - noise, 0.0)), n_detectors=len(tables), dof=len(tables) - 1,
            reason=reason, sufficient=reason == "",
        )  # fmt: skip
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def pool_seeds(seeds, level=0.68):
    """Pool `measure_seeds` over the sufficient cells, and say how little so few detectors tell.

    Returns
    -------
    pandas.DataFrame
        Per threshold: n_cells; sigma_seed and sigma_excess, the root mean squares over cells (negative excess variances
        enter the mean as they are); sigma_average, the standard deviation between the detectors' flat averages; dof =
        detectors - 1, not more however many cells, as cells share their detectors; factor_lower and factor_upper, what
        a sigma of so many degrees of freedom must be multiplied with for its interval; note, in words. Without a
        sufficient cell the numbers are NaN.
    """
    rows = []
    for name, part in seeds.groupby("threshold_name", sort=False):
        own, dof = part[part["sufficient"]], int(part["dof"].iloc[0])
        each = own[[c for c in own if c.startswith("completeness_")]].mean()
        excess = (own["sigma_seed"] ** 2 - own["sigma_counting"] ** 2).mean()
        lower, upper = np.sqrt(dof / sps.chi2.ppf([0.5 + 0.5 * level, 0.5 - 0.5 * level], dof))
        note = (f"{dof + 1} detectors, {dof} degree{'s' if dof > 1 else ''} of freedom: "
                f"{100 * level:.0f} % interval {lower:.2g} to {upper:.2g} times sigma")  # fmt: skip
        rows.append({"threshold_name": name, "n_cells": len(own), "completeness": each.mean(),
                     "sigma_seed": np.sqrt((own["sigma_seed"] ** 2).mean()),
                     "sigma_excess": np.sqrt(np.maximum(excess, 0.0)),
                     "sigma_average": each.std(ddof=1), "dof": dof, "factor_lower": lower, "factor_upper": upper,
                     "note": note if len(own) else "no cell is sufficient"})  # fmt: skip
    return pd.DataFrame(rows)


def _flag_injections(tables, thresholds):
    """Return one table, name -> flags (detectors, N) joined by the injections' id, and name -> why it tells nothing."""
    if len(tables) < 2:
        raise UserError(f"{len(tables)} detector(s) given; the scatter between detectors needs two or more")
    first, *others = (own.sort_values("injection_id", ignore_index=True) for own in tables.values())
    for detector, own in zip(list(tables)[1:], others, strict=True):
        if not np.array_equal(own["injection_id"], first["injection_id"]):
            raise UserError(f"{detector}: scored other injections than {next(iter(tables))}; score the same grid")
    common = [name for name in thresholds[next(iter(tables))] if all(name in thresholds[key] for key in tables)]
    if not common:
        raise UserError(f"no operating point is common to {', '.join(tables)}")
    flags, outside = {name: [] for name in common}, dict.fromkeys(common, "")
    for detector, own in zip(tables, (first, *others), strict=True):
        checked = check_thresholds(own, {name: thresholds[detector][name] for name in common})
        for name, (threshold, reason) in checked.items():
            outside[name] = outside[name] or (f"{detector}: {reason}" if reason else "")
            flags[name].append(own["logit"].to_numpy() > threshold)
    return first, {name: np.array(rows, dtype=float) for name, rows in flags.items()}, outside


def _split_variance(flag, mean, cell, host, weight):
    """Return the variance between detectors of each cell, and what counting alone would give it."""
    n_detectors, n_cells = mean.shape
    between = np.var(mean, axis=0, ddof=1)
    centred = flag - flag.mean(axis=0) - (mean - mean.mean(axis=0))[:, cell]
    code = stats.encode_groups(cell * (host.max(initial=0) + 1) + host)
    of_group = np.zeros(code.max(initial=-1) + 1, dtype=np.int64)
    of_group[code] = cell
    squares = sum(np.bincount(code, weights=row) ** 2 for row in centred)
    groups = np.bincount(of_group, minlength=n_cells)
    factor = np.divide(groups, groups - 1, out=np.full(n_cells, np.nan), where=groups > 1)
    total = np.bincount(of_group, weights=squares, minlength=n_cells)
    return between, factor * weight**2 * total / (n_detectors - 1)
