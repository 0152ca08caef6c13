"""The cells of the completeness grid: who is in which, and which host takes which arc."""

import numpy as np
import pandas as pd

from lensaudit import rng
from lensaudit.artifacts import UserError
from lensaudit.injection.hosts import SIGMA_SCATTER
from lensaudit.injection.population import load_prior, sigma_to_theta, source_density

FIRST_ID = 1_000_000_000  # injection ids of the grid start apart from other sets, so that no two share noise
BRIEF_ID = 3_000_000_000  # those of a prior's own grid


def plan_grid(hosts, grid, seed, prior, max_per_host, missing=None, used=None, attempt=0):
    """Assign theta_E and a host to every injection of the grid.

    Parameters
    ----------
    hosts, grid, seed, prior
        See `priors.draw_grid`.
    max_per_host : int
    missing : dict of int to int, optional
        Injections wanted per cell, when some of a first plan came to nothing; the grid's number in every cell by
        default.
    used : dict of int to ndarray, optional
        Rows of the host table that a cell may not use any more.
    attempt : int
        Number of the plan; sets its ids and stream apart.

    Returns
    -------
    pandas.DataFrame
        injection_id, cell, theta_E, row (in the host table), untied, log_q (log density in theta_E, inside the bin),
        expected (rows that this host may expect in the cell; NaN for untied ones and in later attempts).
    """
    prior = load_prior(prior)
    seeing, depth = assign_bins(hosts["psfsize_r"], grid.seeing), assign_bins(hosts["depth_r"], grid.depth)
    tied = prior["deflector"]["kind"] == "vdf"
    usable = (hosts["in_deflector"] if tied else hosts["in_deployment"]).to_numpy() & (seeing >= 0) & (depth >= 0)
    step, parts = bin_edges(grid.theta_E), []
    for column in range(len(grid.seeing) * len(grid.depth)):
        i_seeing, i_depth = divmod(column, len(grid.depth))
        rows = np.flatnonzero(usable & (seeing == i_seeing) & (depth == i_depth))
        if not len(rows):
            continue
        for i_theta in range(len(grid.theta_E)):
            cell = (i_theta * len(grid.seeing) + i_seeing) * len(grid.depth) + i_depth
            n = grid.n_per_cell if missing is None else missing.get(cell, 0)
            free = rows if used is None else np.setdiff1d(rows, used.get(cell, []))
            if n == 0 or not len(free):
                continue
            ids = FIRST_ID + cell * 100_000 + attempt * 10_000 + np.arange(n)
            stream = rng.make_stream(seed, f"injection/plan/{attempt}", cell)
            strata = (np.arange(n) + stream.random(n)) / n
            theta = step[i_theta] + (step[i_theta + 1] - step[i_theta]) * stream.permutation(strata)
            chosen, untied, expected = _choose_hosts(hosts.iloc[free], grid.theta_E[i_theta], n, max_per_host, stream,
                                                     prior, tied)  # fmt: skip
            expected = np.where((untied & tied) | (attempt > 0), np.nan, expected[chosen])
            width = step[i_theta + 1] - step[i_theta]
            parts.append(pd.DataFrame({"injection_id": ids, "cell": cell, "theta_E": theta, "row": free[chosen],
                                       "untied": untied, "log_q": -np.log(width), "expected": expected}))  # fmt: skip
    if not parts:
        return pd.DataFrame({"injection_id": np.zeros(0, int), "cell": 0, "theta_E": 0.0, "row": 0, "untied": False})
    return pd.concat(parts, ignore_index=True)


def plan_brief(hosts, n_per_cell, seed, prior):
    """Assign Einstein radius, source magnitude and size, and a host, to every injection of a prior's own grid.

    Parameters
    ----------
    hosts : pandas.DataFrame
    n_per_cell : int
    seed : int
    prior : dict
        With ``grid``: theta_E [arcsec], dmag [mag], radius [arcsec].

    Returns
    -------
    pandas.DataFrame
        injection_id, cell = (i_theta * n_dmag + i_dmag) * n_radius + i_radius, theta_E, mag_source_r, source_R, row,
        untied, log_q (0: all are set).

    Notes
    -----
    The source's r magnitude is the host's, extinction corrected, plus dmag. Hosts in proportion to deflector_weight,
    whatever their velocity dispersion: every row is untied.
    """
    g = prior["grid"]
    theta, dmag, radius = (v.ravel() for v in np.meshgrid(g["theta_E"], g["dmag"], g["radius"], indexing="ij"))
    cell = np.repeat(np.arange(len(theta)), n_per_cell)
    ids = BRIEF_ID + np.arange(len(cell))
    weight = np.cumsum(hosts["deflector_weight"].to_numpy())
    if not len(hosts) or weight[-1] <= 0:
        raise UserError("host table: no host is in_deflector; widen the test split")
    # In even strata within each cell.
    u = np.tile(np.arange(n_per_cell), len(theta)) + rng.draw_uniforms(seed, "injection/brief", ids, 1)[:, 0]
    row = np.minimum(np.searchsorted(weight, u / n_per_cell * weight[-1], side="right"), len(hosts) - 1)
    own = hosts.iloc[row]
    mag = own["mag_r"].to_numpy() + 2.5 * np.log10(own["mw_transmission_r"].to_numpy()) + dmag[cell]
    return pd.DataFrame({"injection_id": ids, "cell": cell, "theta_E": theta[cell], "mag_source_r": mag,
                         "source_R": radius[cell], "row": row, "untied": True, "log_q": 0.0})  # fmt: skip


def bin_edges(centres):
    """Return the edges of evenly spaced bins, half a step outside the outer centres."""
    centres = np.asarray(centres, dtype=np.float64)
    half = 0.5 * (centres[1] - centres[0]) if len(centres) > 1 else 0.5
    return np.append(centres - half, centres[-1] + half)


def assign_bins(values, centres):
    """Return the bin of each value, -1 outside the outer half-steps (never snapped)."""
    edges = bin_edges(centres)
    index = np.searchsorted(edges, np.asarray(values, dtype=np.float64), side="right") - 1
    return np.where((index >= 0) & (index < len(centres)), index, -1)


def source_kernel(theta_E, z_lens, log_sigma, prior):
    """Return p(sigma needed | host) x source number over z_source, shape (N, Nz), and the redshifts."""
    z_source, density = source_density(prior)
    unit = sigma_to_theta(1.0, np.asarray(z_lens)[:, None], z_source[None, :], prior)
    with np.errstate(divide="ignore"):
        needed = 0.5 * np.log10(np.asarray(theta_E)[:, None] / np.maximum(unit, 1e-30))
    chi = (needed - np.asarray(log_sigma)[:, None]) / SIGMA_SCATTER
    return np.where(unit > 0, -0.5 * chi**2, -np.inf), z_source, density


def tabulate_sources(theta_E, z_lens, log_sigma, prior):
    """Return the cumulative chance of z_source, in bins of 0.05 from the prior's lowest, of shape (N, Nz).

    Parameters
    ----------
    theta_E, z_lens, log_sigma : ndarray of shape (N,)
        Einstein radius [arcsec], lens redshift, log10 of the host's velocity dispersion [km/s].
    prior : dict

    Notes
    -----
    Number of sources times the chance of the velocity dispersion that they ask of the host.
    """
    log_kernel, _, density = source_kernel(theta_E, z_lens, log_sigma, prior)
    weight = np.exp(log_kernel - log_kernel.max(axis=1, keepdims=True)) * density
    cumulative = np.cumsum(weight, axis=1)
    return cumulative / cumulative[:, -1:]


def _choose_hosts(rows, theta_E, n, max_per_host, stream, prior, tied):
    """Choose `n` hosts of one column for one theta_E; returns positions, which are untied, and each host's expected
    number of rows that are not (all, for a prior that ties none)."""
    base = rows["deflector_weight" if tied else "deployment_weight"].to_numpy()
    if not tied:
        counts = _share(base, n, max_per_host, stream.random())
        chosen = stream.permutation(np.repeat(np.arange(len(rows)), counts))
        return chosen, np.ones(n, dtype=bool), _expect(base, n, max_per_host)
    theta = np.full(len(rows), theta_E)
    log_kernel, _, density = source_kernel(theta, rows["z_phot"], np.log10(rows["sigma_v"]), prior)
    plausible = log_kernel.max(axis=1) > -4.5
    weight = np.where(plausible, base * (np.exp(log_kernel) * density).sum(axis=1), 0.0)
    n_tied = min(n, max_per_host * int(plausible.sum()))
    # Others by mass: the most massive first.
    order = np.argsort(np.where(plausible, np.inf, -log_kernel.max(axis=1)), kind="stable")
    others = order[: min(int((~plausible).sum()), -(-(n - n_tied) // max_per_host))]
    counts = _share(weight, n_tied, max_per_host, stream.random()) if n_tied else np.zeros(len(rows), dtype=int)
    expected = _expect(weight, n_tied, max_per_host) if n_tied else np.zeros(len(rows))
    n_untied = min(n - n_tied, max_per_host * len(others))
    spare = np.zeros(len(rows), dtype=int)
    if n_untied:
        spare[others] = _share(np.ones(len(others)), n_untied, max_per_host, stream.random())
    left = n - n_tied - n_untied
    if left > 0:  # hosts do not allow the limit
        wanted = np.where(plausible, np.maximum(weight, 1e-12), 0.0) if n_tied else np.ones(len(rows))
        more = _share(wanted, left, left, stream.random())
        expected = expected + _expect(wanted, left, left) if n_tied else expected
        counts, spare = (counts + more, spare) if n_tied else (counts, spare + more)
    chosen = np.concatenate([np.repeat(np.arange(len(rows)), counts), np.repeat(np.arange(len(rows)), spare)])
    untied = np.arange(n) >= counts.sum()
    shuffle = stream.permutation(n)
    return chosen[shuffle], untied[shuffle], expected


def _expect(weight, n, limit):
    """Return how often each item is expected: in proportion to weight, none above the limit, `n` in all."""
    weight = np.asarray(weight, dtype=np.float64)
    limit = max(limit, -(-n // max(int((weight > 0).sum()), 1)))
    expected = np.zeros(len(weight))
    free = weight > 0
    for _ in range(len(weight) + 1):
        rest = n - expected[~free].sum()
        expected[free] = rest * weight[free] / weight[free].sum()
        over = free & (expected > limit)
        if not over.any():
            break
        expected[over] = limit
        free &= ~over
        if not free.any():
            break
    return expected


def _share(weight, n, limit, u):
    """Return how often each item is taken, as `_expect` says on average."""
    edges = np.round(np.cumsum(_expect(weight, n, limit)), 9)
    return np.diff(np.searchsorted(u + np.arange(n), edges * (1 + 1e-12), side="left"), prepend=0)
