"""Mode (ii) maps: which better hosts fill which seeing x depth columns, and their stamps brought there.

Mode (i) injects into hosts in their own conditions, mode (ii) into hosts degraded by `degrade`. Their maps stay apart:
the first asks about galaxies as they were observed, the second holds the galaxies alike and changes the conditions
only, also where the survey has few hosts or none.
"""

import numpy as np
import pandas as pd

from lensaudit import photometry, rng
from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS
from lensaudit.injection.cells import assign_bins, bin_edges
from lensaudit.injection.degrade import degrade_hosts, degrade_stamps, find_degradable, make_conditions

BETA = 3.5  # Moffat index of host and target; kernels of other, equal indices are nearly the same
COLUMN_STEP = 10_000_000  # sets the host_index of degraded hosts apart by column


def plan_columns(hosts, grid, columns, n_hosts, seed):
    """Choose hosts better in seeing and depth for columns of the grid, and where in the column each is brought.

    Parameters
    ----------
    hosts : pandas.DataFrame
        From `hosts.make_hosts`.
    grid : lensaudit.config.CompletenessConfig
    columns : sequence of (seeing, depth)
        Centres of the columns to fill [arcsec, mag].
    n_hosts : int
        Deflector hosts per column, or as many as there are.
    seed : int

    Returns
    -------
    (pandas.DataFrame, pandas.DataFrame)
        Host table of the targets, in the order of columns, for `degrade_columns`, `priors.draw_grid` and
        `campaign.run_injections`: parent_index is the host it was made of, on which reuse is counted. And per column
        seeing, depth, n_own (deflector hosts of mode (i)), n_better (that can be brought there), n_used, reason.
        host_index is the parent's plus a multiple of `COLUMN_STEP`, so that noise follows host and column alone.

    Raises
    ------
    UserError
        When a column is not one of the grid, or no column has a host that can be brought there.

    Notes
    -----
    A host's r seeing and depth in a column are uniform inside it, from a stream of host and column. Its other bands
    keep their ratio of seeing and difference of depth to r. All bands must become worse in seeing and in
    white-equivalent noise per pixel, as `degrade` asks; at equal depth a wider PSF has less noise, so a host must be
    the deeper the sharper it is.
    """
    edges = {name: bin_edges(getattr(grid, name)) for name in ("seeing", "depth")}
    at = assign_bins(hosts["psfsize_r"], grid.seeing), assign_bins(hosts["depth_r"], grid.depth)
    usable, tables, rows = hosts["in_deflector"].to_numpy(dtype=bool), [], []
    for seeing, depth in columns:
        place = [int(np.argmin(np.abs(np.asarray(c) - v))) for c, v in ((grid.seeing, seeing), (grid.depth, depth))]
        if not (np.isclose(grid.seeing[place[0]], seeing) and np.isclose(grid.depth[place[1]], depth)):
            raise UserError(f"column seeing {seeing:g}, depth {depth:g} is not one of the grid; take its centres")
        column = place[0] * len(grid.depth) + place[1]
        u = rng.draw_uniforms(seed, f"injection/mode_two/{column}", hosts["host_index"].to_numpy(), 3)
        target = [edges[n][i] + (edges[n][i + 1] - edges[n][i]) * u[:, k]
                  for k, (n, i) in enumerate(zip(edges, place, strict=True))]  # fmt: skip
        psfsize, bands = _shift_bands(hosts, *target)
        better = np.flatnonzero(usable & find_degradable(*_pair_conditions(hosts, psfsize, bands)))
        chosen = np.sort(better[np.argsort(u[better, 2], kind="stable")[:n_hosts]])
        own = usable & (at[0] == place[0]) & (at[1] == place[1])
        rows.append({"seeing": seeing, "depth": depth, "n_own": int(own.sum()), "n_better": len(better),
                     "n_used": len(chosen), "reason": "" if len(chosen) else "no better host"})  # fmt: skip
        made = degrade_hosts(hosts.iloc[chosen], psfsize[chosen], bands[chosen])
        tables.append(made.assign(host_index=made["parent_index"] + (column + 1) * COLUMN_STEP))
    if not sum(len(table) for table in tables):
        raise UserError("no host can be brought to any of these columns; take hosts of better seeing and depth")
    return pd.concat(tables, ignore_index=True), pd.DataFrame(rows)


def degrade_columns(made, hosts, boxes, seed):
    """Bring the boxes of the chosen hosts to their targets.

    Parameters
    ----------
    made : pandas.DataFrame
        From `plan_columns`.
    hosts : pandas.DataFrame
        The table it was made of.
    boxes : ndarray of shape (n_hosts, 3, S, S) [nMgy]
        Row by row with `hosts`.
    seed : int

    Returns
    -------
    ndarray of shape (len(made), 3, S, S), float32 [nMgy]
    """
    position = pd.Series(np.arange(len(hosts)), index=hosts["host_index"].to_numpy())
    rows = position.loc[made["parent_index"].to_numpy()].to_numpy()
    own = _list_conditions(hosts.iloc[rows])
    return degrade_stamps(boxes[rows], own, _list_conditions(made), made["host_index"].to_numpy(), seed)


def _shift_bands(hosts, seeing, depth):
    """Return psfsize and depth of all bands, shape (N, bands), when r is brought to seeing and depth."""
    factor, step = seeing / hosts["psfsize_r"].to_numpy(), depth - hosts["depth_r"].to_numpy()
    psfsize = np.stack([hosts[f"psfsize_{band}"] * factor for band in BANDS], axis=1)
    own = np.stack([photometry.ivar_to_depth(hosts[f"psfdepth_{band}"].to_numpy()) for band in BANDS], axis=1)
    return psfsize, own + step[:, None]


def _list_conditions(table):
    columns = [np.stack([table[f"{name}_{band}"] for band in BANDS], axis=1) for name in ("psfsize", "psfdepth")]
    return make_conditions(*columns, np.full(len(table), BETA))


def _pair_conditions(hosts, psfsize, depth):
    return _list_conditions(hosts), make_conditions(psfsize, photometry.depth_to_ivar(depth), np.full(len(hosts), BETA))
