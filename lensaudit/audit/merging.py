"""Merged cells where single ones are not sufficient, and flat averages over grids; beside the map, never in its place.

The rule, for each threshold and Einstein radius by itself: the first insufficient group, by seeing and then depth of
its first cell, joins a neighbour along depth at one of its seeings; where it has none, along seeing at one of its
depths; of several neighbours the one with fewest injections, the first when they are as many. A group that is still
insufficient goes on, until every group is sufficient or has no neighbour left. Cells without an injection are never
joined and never jumped over, and Einstein radii are never mixed.
"""

import numpy as np
import pandas as pd

from lensaudit import stats
from lensaudit.artifacts import UserError
from lensaudit.audit.completeness import AXES, assign_cells, average_cells
from lensaudit.audit.sufficiency import add_intervals, judge_cell

MERGED_COLUMNS = (
    "threshold_name", "threshold", *AXES, "merged_into", "n_merged", "seeing_low", "seeing_high", "depth_low",
    "depth_high", "n", "k", "n_hosts", "n_bricks", "n_eff", "completeness", "lower_68", "upper_68", "lower_95",
    "upper_95", "sufficient", "reason",
)  # fmt: skip


def merge_cells(cells, table, grid, config):
    """Merge insufficient cells with neighbours, by the rule above.

    Parameters
    ----------
    cells : pandas.DataFrame
        From `completeness.count_cells`; not changed.
    table : pandas.DataFrame
        The injections behind them.
    grid : dict of axis name -> centres
    config : lensaudit.config.Config

    Returns
    -------
    pandas.DataFrame
        `MERGED_COLUMNS`, one row per threshold and cell of the grid, so that it lies beside the map. merged_into is the
        number (row-major) of its group's first cell and n_merged how many cells that has, -1 and 0 for a cell without
        injections; counts and interval are of all the group's injections alike, the bounds those of its centres. n_eff
        takes the correlations of the single cells. A group left insufficient says why.

    Raises
    ------
    UserError
        When the cells are not those of this grid and these injections.
    """
    number = assign_cells(table, grid)
    shape = tuple(len(grid[axis]) for axis in AXES)
    inside = table[number >= 0].assign(cell=number[number >= 0])
    host, brick = stats.encode_groups(inside["host_index"]), stats.encode_groups(inside["brickname"])
    rows = inside.groupby("cell").indices
    parts = []
    for name, own in cells.groupby("threshold_name", sort=False):
        own = own.reset_index(drop=True)
        if len(own) != np.prod(shape) or not np.array_equal(own["n"], np.bincount(inside["cell"], minlength=len(own))):
            raise UserError(f"cells at {name} are not those of these injections on this grid; count them again")
        outside = own["reason"].where(own["reason"].str.startswith("threshold"), "").max()
        describe = _make_describer(own, rows, host, brick, outside, config)
        group = np.full(len(own), -1)
        for block in np.arange(len(own)).reshape(shape[0], -1):
            group[block] = _merge_block(block[own["n"][block] > 0], shape, describe)
        parts.append(_tabulate(own, group, describe, config))
    return pd.concat(parts, ignore_index=True)[list(MERGED_COLUMNS)]


def _make_describer(own, rows, host, brick, outside, config):
    """Return a function: cells of a group -> joint counts and reason; `outside` is that of a useless threshold."""
    rho = own["rho_host"].iloc[0], own["rho_brick"].iloc[0]

    def describe(members):
        use = np.concatenate([rows[cell] for cell in members])
        row = {"n": len(use), "k": int(own["k"][members].sum()), "n_hosts": len(np.unique(host[use])),
               "n_bricks": len(np.unique(brick[use])),
               "n_eff": stats.effective_n(host[use], brick[use], *rho)}  # fmt: skip
        lack = judge_cell(row["n"], row["n_bricks"], config)
        # More cells do not bring a threshold among the scores.
        enough = not lack and row["n_eff"] >= config.completeness.min_n_eff
        return row | {"reason": lack or outside, "enough": enough}

    return describe


def _merge_block(block, shape, describe):
    """Return the group (number of its first cell) of each cell of one Einstein radius, -1 where there is none."""
    start = 0 if not len(block) else block[0] // (shape[1] * shape[2]) * shape[1] * shape[2]
    groups = {int(cell): [int(cell)] for cell in block}
    done = {first: describe(members) for first, members in groups.items()}
    stuck = set()
    while True:
        waiting = [first for first in sorted(groups) if not done[first]["enough"] and first not in stuck]
        if not waiting:
            break
        first = waiting[0]
        near = _find_neighbours(first, groups, shape)
        if not near:
            stuck.add(first)
            continue
        other = min(near, key=lambda key: (done[key]["n"], key))
        members = sorted(groups.pop(first) + groups.pop(other))
        stuck -= {first, other}
        groups[members[0]], done[members[0]] = members, describe(members)
    out = np.full(shape[1] * shape[2], -1)
    for first, members in groups.items():
        out[np.array(members) - start] = first
    return out


def _find_neighbours(first, groups, shape):
    """Return the groups next to one along depth, else those along seeing."""
    owner = {cell: key for key, members in groups.items() for cell in members}
    place = [np.unravel_index(cell, shape) for cell in groups[first]]
    for axis in (2, 1):
        near = set()
        for index in place:
            for step in (-1, 1):
                moved = list(index)
                moved[axis] += step
                if 0 <= moved[axis] < shape[axis]:
                    near.add(owner.get(int(np.ravel_multi_index(moved, shape))))
        near -= {first, None}
        if near:
            return near
    return set()


def _tabulate(own, group, describe, config):
    out = own[["threshold_name", "threshold", *AXES]].assign(merged_into=group)
    used = own[group >= 0].groupby(group[group >= 0])
    joint = used.agg(n_merged=("n", "size"), seeing_low=("seeing", "min"), seeing_high=("seeing", "max"),
                     depth_low=("depth", "min"), depth_high=("depth", "max"))  # fmt: skip
    counts = pd.DataFrame([describe(np.flatnonzero(group == first)) for first in joint.index], index=joint.index)
    joint = joint.join(add_intervals(counts.drop(columns="enough"), config)) if len(joint) else joint
    out = out.join(joint, on="merged_into").reindex(columns=list(MERGED_COLUMNS))
    counted = ["n_merged", "n", "k", "n_hosts", "n_bricks"]
    out[counted] = out[counted].fillna(0).astype(np.int64)
    reason = own["reason"].where(group < 0, out["reason"])
    return out.assign(reason=reason, sufficient=reason == "", n_eff=out["n_eff"].astype(float).fillna(0.0))


def keep_common(cells):
    """Return the first grid's cells, called sufficient where every grid has such a cell and finds it sufficient.

    Parameters
    ----------
    cells : dict of name -> pandas.DataFrame
        From `completeness.count_cells`.
    """

    def place(table):
        return pd.MultiIndex.from_frame(table[["threshold_name", *AXES]].round(6))

    first, *others = cells.values()
    good = first["sufficient"].to_numpy(dtype=bool)
    for other in others:
        good = good & place(first).isin(place(other[other["sufficient"].astype(bool)]))
    return first.assign(sufficient=good)


def compare_grids(cells, table, grids, thresholds, config, draws=None):
    """Compare averages of completeness over grids, such as the default one and the 385 cells of earlier work.

    Parameters
    ----------
    cells : dict of name -> pandas.DataFrame
        From `completeness.count_cells`, one per grid; two or more.
    table : pandas.DataFrame
        The injections behind them.
    grids : dict of name -> (dict of axis name -> centres)
    thresholds : dict of name -> float
    config : lensaudit.config.Config
    draws : optional
        As for `completeness.average_cells`, with the columns it adds.

    Returns
    -------
    pandas.DataFrame
        threshold_name, grid (a name, or "cells of both"), weighting (flat: every cell alike; footprint: by the survey's
        share of its column), completeness, lower, upper (95 %, bricks resampled), n_cells (that enter), n_sufficient,
        n_empty, n_grid. Only sufficient cells enter, each with its tied injections. The grids' averages are over
        different cells; "cells of both" is over those that every grid has, by the same centres, and finds sufficient
        (n_grid is the first's).
    """
    parts, first = [], next(iter(grids))
    cells, grids = cells | {"cells of both": keep_common(cells)}, grids | {"cells of both": grids[first]}
    for grid, axes in grids.items():
        own = cells[grid].groupby("threshold_name")
        counts = pd.DataFrame({"n_sufficient": own["sufficient"].sum(), "n_grid": own.size(),
                               "n_empty": own["n"].agg(lambda n: int((n == 0).sum()))})  # fmt: skip
        for weighting in ("flat", "footprint"):
            part = average_cells(cells[grid], (), table, axes, thresholds, config, weighting, draws)
            parts.append(part.assign(grid=grid).join(counts, on="threshold_name"))
    return pd.concat(parts, ignore_index=True)
