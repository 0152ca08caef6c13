"""Completeness beside the map: along further axes by name, and in columns filled by degraded hosts (mode ii).

Mode (i), the map, injects into hosts in their own conditions. Mode (ii) brings better hosts to the conditions of a
column that mode (i) has too few hosts for. Its cells are counted alike and never join those of mode (i): the survey may
hardly have such conditions, and its hosts are galaxies of other fields.
"""

import contextlib
import dataclasses

import pandas as pd

from lensaudit.artifacts import UserError
from lensaudit.audit.campaign import run_injections
from lensaudit.audit.completeness import count_cells, make_grid, tabulate_bins
from lensaudit.injection.mode_two import degrade_columns, plan_columns
from lensaudit.injection.priors import draw_grid

# SPEC 8.1's further axes: r mag of the unlensed source, mean r surface brightness of the lensed arc behind the PSF
# [mag/arcsec^2], Tractor type, exposures in z. Edges, or classes.
FURTHER_AXES = {
    "mag_source_r": (21.0, 23.5, 24.5, 25.0, 25.5, 26.0, 26.5, 28.5),
    "arc_surface_brightness": (21.0, 24.5, 25.0, 25.5, 26.0, 26.5, 27.0, 28.5),
    "type": ("REX", "DEV", "SER"),
    "nobs_z": (2.5, 4.5, 6.5, 9.5, 14.5, 24.5, 99.5),
}  # fmt: skip
N_COLUMNS, N_HOSTS = 3, 120  # of mode (ii): columns, and degraded hosts in each


def tabulate_axes(table, thresholds, axes=None):
    """Completeness along one further axis after the other, with the intervals of the cells.

    Parameters
    ----------
    table : pandas.DataFrame
        Scored injections: logit, host_index, brickname and the axes.
    thresholds : dict of name -> float
        On the logit.
    axes : dict of column -> sequence, optional
        Rising edges or names of classes; `FURTHER_AXES` by default.

    Returns
    -------
    pandas.DataFrame
        axis, bin (name of the class or range), low, high (NaN for a class), threshold_name, n, k, n_hosts, n_eff,
        completeness, lower, upper (95 %), reason; see `completeness.tabulate_bins`.

    Raises
    ------
    UserError
        For a column the injections do not have; `completeness.tabulate_bins` refuses the rest.
    """
    parts = []
    for axis, bins in (FURTHER_AXES if axes is None else axes).items():
        own = tabulate_bins(table, {axis: bins}, thresholds).drop(columns=axis)
        if isinstance(bins[0], str):
            place = pd.DataFrame({"bin": list(bins)}).assign(low=float("nan"), high=float("nan"))
        else:
            place = pd.DataFrame({"low": bins[:-1], "high": bins[1:]}, dtype=float)
            place["bin"] = [f"{low:g} to {high:g}" for low, high in zip(bins[:-1], bins[1:], strict=True)]
        place = pd.concat([place] * (len(own) // len(place)), ignore_index=True)
        parts.append(own.assign(axis=axis, **place))
    first = ["axis", "bin", "low", "high"]
    joint = pd.concat(parts, ignore_index=True)
    return joint[first + [name for name in joint if name not in first]]


def choose_columns(cells, hosts, config, n_columns=N_COLUMNS):
    """Choose the columns mode (ii) fills, and one that mode (i) fills too, beside which it can be read.

    Parameters
    ----------
    cells : pandas.DataFrame
        Of mode (i), from `completeness.count_cells`; those of its first threshold count.
    hosts : pandas.DataFrame
    config : lensaudit.config.Config
    n_columns : int

    Returns
    -------
    list of (float, float)
        Seeing [arcsec] and depth [mag]: of the columns with an insufficient cell those with the largest share of the
        survey; last, the one with the largest share that has no such cell. Columns with fewer than `N_HOSTS` better
        hosts are passed over, and none is looked for beyond twice as many as are wanted.
    """
    own = cells[cells["threshold_name"] == cells["threshold_name"].iloc[0]]
    columns = own.groupby(["seeing", "depth"], as_index=False).agg(
        full=("sufficient", "all"), share=("footprint_weight", "first"))  # fmt: skip
    columns, chosen = columns.sort_values("share", ascending=False, kind="stable"), []
    for full, wanted in ((False, n_columns), (True, 1)):
        tried = columns[columns["full"] == full].head(2 * wanted)
        places = list(zip(tried["seeing"], tried["depth"], strict=True))
        with contextlib.suppress(UserError):  # no host can be brought to any of them
            plan = plan_columns(hosts, config.completeness, places, N_HOSTS, config.seed)[1]
            filled = plan[plan["n_used"] == N_HOSTS].head(wanted)
            chosen += zip(filled["seeing"], filled["depth"], strict=True)
    return chosen


def run_mode_two(cells, hosts, boxes, detector, config, folder, thresholds, draws=None):
    """Fill a few columns with degraded hosts and count their cells.

    Parameters
    ----------
    cells : pandas.DataFrame
        Of mode (i); see `choose_columns`.
    hosts, boxes, detector, config, folder
        As `campaign.run_injections` takes them.
    thresholds, draws
        As `completeness.count_cells` takes them.

    Returns
    -------
    pandas.DataFrame
        mode ("ii"), the columns of `completeness.count_cells` over every second Einstein radius of the grid, and of
        `mode_two.plan_columns` n_own and n_better. Hosts are counted by the galaxy that was degraded. Empty where no
        column can be filled. The survey's share of the column stands beside it and weights nothing.
    """
    columns = choose_columns(cells, hosts, config)
    if not columns:
        return pd.DataFrame()
    made, plan = plan_columns(hosts, config.completeness, columns, N_HOSTS, config.seed)
    section = dataclasses.replace(config.completeness, theta_E=config.completeness.theta_E[::2])
    table = draw_grid(made, section, config.seed, config.injection.prior, config=config, workers=2)
    scored = run_injections(table, made, degrade_columns(made, hosts, boxes, config.seed), detector, config, folder,
                            "mode ii", measure=False)  # fmt: skip
    parents = made.set_index("host_index")["parent_index"]
    scored["host_index"] = parents.loc[scored["host_index"]].to_numpy()
    grid = make_grid(config) | {"theta_E": section.theta_E}
    counted = count_cells(scored, grid, thresholds, config, hosts, draws=draws)
    counted = counted.merge(plan[["seeing", "depth", "n_own", "n_better"]], on=["seeing", "depth"])
    counted.insert(0, "mode", "ii")
    return counted
