"""The chance of the grid's proposals to pass the cuts, so that its rows can be weighed as draws of a prior.

The grid sets theta_E and host and takes the first proposal that passes. Its rows are dense where few proposals pass, by
one over that chance, and where the plan asks for a host more often than a prior would. `log_acceptance` undoes both:

    weight = exp(density of the prior - log_q + log_acceptance)

is that of the prior conditional on the same cuts, inside the cell and from cell to cell.
"""

import numpy as np
import pandas as pd

from lensaudit.injection.hosts import MAX_DEVIATION, REDSHIFT_SCATTER, HostMatcher
from lensaudit.injection.population import parent_density, redshift_density, theta_to_sigma

CONDITIONS = ("psfsize_r", "depth_r", "z_phot", "sigma_v", "q_light", "mw_transmission_r")
MIN_LEAF = 100  # ids behind every value of the regression


def add_acceptance(table, tried, hosts, prior, n_tries):
    """Add log_acceptance to the rows of the grid.

    Parameters
    ----------
    table : pandas.DataFrame
        Accepted rows of the grid, with z_lens, z_source, theta_E and n_trials (proposals up to the accepted one).
    tried : pandas.DataFrame
        One row per id planned, in any order: injection_id, theta_E, row (in the host table), expected (rows that the
        plan expects of this host in the cell, NaN for what carries no weight), found (bool).
    hosts : pandas.DataFrame
    prior : dict
        That the grid was drawn from.
    n_tries : int
        Proposals after which an id is given up.

    Returns
    -------
    pandas.DataFrame
        log_acceptance: -inf where a row has no weight (untied hosts, replacements of ids given up, hosts too far from
        the row's velocity dispersion for `HostMatcher`).

    Notes
    -----
    The chance to pass is a regression of the numbers of trials on theta_E and the host's conditions (Poisson loss on
    successes per trial, weighted by trials: for a geometric law the maximum likelihood, ids given up being trials
    without success). With 8,000 ids and chances that differ 40-fold it scatters by 15 per cent and drifts by 6. The
    trials of an id do not depend on what its accepted proposal looks like, so that errors of the regression do not
    depend on it either. Rows of a host count as many times as a prior's own matching takes the host (`HostMatcher`;
    deployment_weight for a prior without velocity dispersions) over the plan's expectation.
    """
    if not len(table):
        return table.assign(log_acceptance=np.zeros(0))
    trials = tried["injection_id"].map(table.set_index("injection_id")["n_trials"]).fillna(n_tries)
    tried = tried.assign(n_trials=trials)
    chance = pd.Series(_fit_chance(tried, hosts), index=tried["injection_id"].to_numpy())
    rows = tried.set_index("injection_id").loc[table["injection_id"]]
    p = chance.loc[table["injection_id"]].to_numpy()
    survived = -np.expm1(n_tries * np.log1p(-np.minimum(p, 1.0 - 1e-9)))
    row = rows["row"].to_numpy()
    host = hosts["deployment_weight"].to_numpy()[row]
    if prior["deflector"]["kind"] == "vdf":
        host = _match_chance(table, row, hosts, prior)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(p / survived) + np.log(host / rows["expected"].to_numpy())
    return table.assign(log_acceptance=np.where(np.isfinite(log), log, -np.inf))


def _match_chance(table, row, hosts, prior):
    """Return the density of (theta_E, z_source, host) when deflectors of the prior choose hosts.

    By an integral over the deflector's redshift, divided by the density of theta_E and z_source at the host's own.
    """
    matcher, out = HostMatcher(hosts), np.zeros(len(table))
    theta, z, z_source = (table[k].to_numpy() for k in ("theta_E", "z_lens", "z_source"))
    own = parent_density(theta, z, z_source, prior)
    known = np.isfinite(own)  # elsewhere the prior never has the row
    own = np.where(known, own, 0.0)
    for node in np.arange(-MAX_DEVIATION, MAX_DEVIATION + 0.25, 0.5):
        z_lens = z + node * REDSHIFT_SCATTER * (1.0 + z)
        speed = theta_to_sigma(theta, z_lens, z_source, prior)
        density = np.exp(parent_density(theta, z_lens, z_source, prior) - own) * redshift_density(z_lens, prior)
        chance = matcher.measure_chance(row, speed, np.maximum(z_lens, 0.0))
        out += 0.5 * REDSHIFT_SCATTER * (1.0 + z) * np.where(density > 0.0, density * chance, 0.0)
    return np.where(known, out, 0.0)


def _fit_chance(tried, hosts):
    """Return the chance to pass of each id's proposals."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    own = hosts.iloc[tried["row"].to_numpy()]
    x = np.column_stack([tried["theta_E"].to_numpy(), *(own[c].to_numpy(dtype=np.float64) for c in CONDITIONS)])
    n, found = tried["n_trials"].to_numpy(dtype=np.float64), tried["found"].to_numpy(dtype=np.float64)
    if len(tried) < 2 * MIN_LEAF or not found.any():
        return np.full(len(tried), max(found.sum(), 0.5) / n.sum())
    model = HistGradientBoostingRegressor(loss="poisson", max_iter=100, max_leaf_nodes=6, min_samples_leaf=MIN_LEAF,
                                          early_stopping=False, random_state=0)  # fmt: skip
    return np.clip(model.fit(x, found / n, sample_weight=n).predict(x), 1e-6, 1.0)
