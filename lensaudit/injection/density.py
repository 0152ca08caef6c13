"""Densities of the named priors, so that injections drawn from one can be weighed as if drawn from another.

`log_q` of an injection table is the log density of its row under its own proposal, in `VARIABLES`, given the host and
its redshift; `measure_density` is the same of any table under any prior. Weights are exp(measure_density - log_q).

Not covered, because all priors draw them alike given the host: the host itself, z_lens, the mass's axis ratio, angle
and shear, the source's angle, the places of clumps and the PSF's beta. Cuts only take rows away: they change a density
by a constant, which weights that are normalised to their sum do not know. In the grid the density is that inside the
row's cell, before the cuts; `acceptance` says what the cuts and the plan's choice of hosts make of it.
"""

import numpy as np

from lensaudit.artifacts import UserError
from lensaudit.injection.galaxies import measure_galaxy_density
from lensaudit.injection.population import load_prior, parent_density, redshift_density

VARIABLES = ("theta_E", "z_source", "mag_source_r", "g-r", "r-z", "log10 source_R", "source_q", "source_n", "n_clumps",
             "clump_fraction", "source_x", "source_y")  # fmt: skip


def measure_density(table, prior):
    """Return the log density of rows under a prior, in `VARIABLES`, given host and z_lens; -inf outside it.

    Parameters
    ----------
    table : mapping of str to array_like of shape (N,)
        Injection table.
    prior : dict

    Returns
    -------
    ndarray of shape (N,)

    Notes
    -----
    For a prior with a velocity-dispersion function theta_E and z_source have the joint density of multiply imaging
    systems at z_lens; the others are uniform in both.
    """
    d, s = prior["deflector"], prior["source"]
    theta, z_source = (np.asarray(table[k], dtype=np.float64) for k in ("theta_E", "z_source"))
    if d["kind"] == "vdf":
        lens = parent_density(theta, np.asarray(table["z_lens"], dtype=np.float64), z_source, prior)
    else:
        lens = _log_uniform(theta, d["theta_E"]) + _log_uniform(z_source, s["z"])
    return lens + measure_source_density(table, prior)


def measure_source_density(table, prior):
    """Return the part of `measure_density` that the source makes, given theta_E and z_source."""
    s = prior["source"]
    t = {k: np.asarray(table[k], dtype=np.float64)
         for k in ("theta_E", "z_source", "mag_source_g", "mag_source_r", "mag_source_z", "source_R", "source_q",
                   "source_n", "n_clumps", "clump_fraction", "source_x", "source_y")}  # fmt: skip
    g_r, r_z = t["mag_source_g"] - t["mag_source_r"], t["mag_source_r"] - t["mag_source_z"]
    if s["kind"] == "population":
        out = measure_galaxy_density(t, prior)
    else:
        out = _log_uniform(t["mag_source_r"], s["mag_r"]) + _log_normal(g_r, *s["g_r"]) + _log_normal(r_z, *s["r_z"])
        out = out + _log_uniform(t["source_R"], s["radius"]) + np.log(t["source_R"] * np.log(10.0))
    if "axis_ratio_range" in s:
        out = out + _log_uniform(t["source_q"], s["axis_ratio_range"])
    else:
        out = out + _log_rayleigh(1.0 - t["source_q"], s["axis_ratio_scale"])
    clumpy, (first, last) = t["n_clumps"] > 0, s["clumps"]
    share = np.where(clumpy, s["clumpy_fraction"] / (last - first + 1), 1.0 - s["clumpy_fraction"])
    inside = ~clumpy | ((t["n_clumps"] >= first) & (t["n_clumps"] <= last))
    with np.errstate(divide="ignore"):
        out = out + np.log(np.where(inside, share, 0.0))
    out = out + np.where(clumpy, _log_uniform(t["clump_fraction"], s["clump_fraction"]), 0.0)
    low, high = s["position"]
    beta = np.hypot(t["source_x"], t["source_y"]) / np.maximum(t["theta_E"], 1e-12)
    where = np.where((beta >= low) & (beta <= high), 1.0, 0.0) / (np.pi * (high**2 - low**2) * t["theta_E"] ** 2)
    with np.errstate(divide="ignore"):
        return out + _log_uniform(t["source_n"], s["index"]) + np.log(where)


def weigh_prior(table, prior, drawn="collett"):
    """Return weights, of mean 1, that turn a table's draws into draws from another prior, and Kish's n_eff.

    Parameters
    ----------
    table : pandas.DataFrame
        Injection table with log_q.
    prior : dict
    drawn : str or dict
        The prior whose grid the rows are of, for rows of the grid.

    Returns
    -------
    (ndarray of shape (N,), float)
        All zero, and n_eff = 0, where the prior has no support among the draws.

    Raises
    ------
    UserError
        For rows of the completeness grid without log_acceptance, or beside others.

    Notes
    -----
    Rows of the grid become draws of the prior conditional on its passing the same cuts, inside the cells, whose sums of
    weights are as their shares of a direct run. Untied ones have no density under a prior with velocity dispersions.
    log_acceptance has the lens redshifts of `drawn`; those of another such prior follow from the ratio of densities.
    """
    of_grid = "cell" in table and (table["cell"] >= 0).any()
    if of_grid:
        bad = (table["cell"] < 0) | ("log_acceptance" not in table)
        if bad.any():
            row = table.loc[bad, "injection_id"].iloc[0] if "injection_id" in table else int(np.argmax(bad))
            raise UserError(f"injection {row}: rows of the grid are weighed with the log_acceptance that draw_grid "
                            "gives them, and apart from other sets")  # fmt: skip
    log = measure_density(table, prior) - np.asarray(table["log_q"], dtype=np.float64)
    if of_grid:
        log = log + np.asarray(table["log_acceptance"], dtype=np.float64)
        if prior["deflector"]["kind"] == "vdf":
            log = log + _compare_redshifts(table["z_lens"], prior, load_prior(drawn))
            log = np.where(table["untied"], -np.inf, log) if "untied" in table else log
    log = np.where(np.isfinite(log), log, -np.inf)
    if not len(log) or not np.isfinite(log.max()):
        return np.zeros(len(log)), 0.0
    weight = np.exp(log - log.max())
    return weight / weight.mean(), float(weight.sum() ** 2 / (weight**2).sum())


def _compare_redshifts(z_lens, prior, drawn):
    """Return the log ratio of two priors' densities of lens redshifts, 0 if the second has no velocity dispersions."""
    if drawn["deflector"]["kind"] != "vdf":
        return 0.0
    z_lens = np.asarray(z_lens, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(redshift_density(z_lens, prior)) - np.log(redshift_density(z_lens, drawn))


def _log_uniform(value, limits):
    low, high = limits
    with np.errstate(divide="ignore"):
        return np.log(np.where((value >= low) & (value <= high), 1.0, 0.0) / (high - low))


def _log_normal(value, mean, scatter):
    return -0.5 * ((value - mean) / scatter) ** 2 - np.log(scatter * np.sqrt(2.0 * np.pi))


def _log_rayleigh(value, scale, top=0.8):
    """Return the log density of a Rayleigh deviate below `top`."""
    norm = 1.0 - np.exp(-0.5 * (top / scale) ** 2)
    with np.errstate(divide="ignore"):
        inside = np.where((value >= 0.0) & (value <= top + 1e-9), value, 0.0)
        return np.log(inside / scale**2 / norm) - 0.5 * (value / scale) ** 2
