"""Completeness in cells of theta_E x seeing x depth, its marginals, and C(theta_E, z_l).

Seeing is psfsize_r as published, depth the 5-sigma point-source depth from psfdepth_r. Cell edges lie half a step
outside the centres; hosts outside them are counted and left out, never moved into an edge cell. Nothing is smoothed or
merged: cells that lack injections, effective size or bricks are marked (`merging` sets merged ones beside them).
"""

import numpy as np
import pandas as pd

from lensaudit import rng as streams
from lensaudit import stats
from lensaudit.artifacts import UserError, hash_object
from lensaudit.audit.error_terms import add_threshold_error, count_draws, take_draws
from lensaudit.audit.sufficiency import add_intervals, check_thresholds, judge_cell

AXES = ("theta_E", "seeing", "depth")
COLUMN_OF = {"theta_E": "theta_E", "seeing": "psfsize_r", "depth": "depth_r"}
CELL_COLUMNS = (
    "threshold_name", "threshold", *AXES, "n", "k", "n_hosts", "n_bricks", "n_eff", "rho_host", "rho_brick",
    "completeness", "lower_68", "upper_68", "lower_95", "upper_95", "footprint_weight", "untied_fraction",
    "sufficient", "reason",
)  # fmt: skip
THRESHOLD_COLUMNS = ("sigma_threshold", "lower_68_total", "upper_68_total", "lower_total", "upper_total")


def take_thresholds(entries, names=("fpr_1e-2", "fpr_1e-3")):
    """Return name -> threshold on the logit from thresholds.json, None where too few negatives could set it."""
    missing = [name for name in names if name not in entries]
    if missing:
        raise UserError(f"thresholds.json has no {', '.join(missing)}; it has {', '.join(entries)}")
    return {name: entries[name]["threshold"] for name in names}


def make_edges(centres):
    """Return the bin edges of regular centres: half a step outside the first and last.

    Raises
    ------
    UserError
        When the centres are not regular.
    """
    centres = np.asarray(centres, dtype=float)
    steps = np.diff(centres)
    if len(centres) < 2 or np.any(steps <= 0) or not np.allclose(steps, steps[0]):
        raise UserError(f"grid centres {centres.tolist()} are not rising in equal steps")
    return np.append(centres - 0.5 * steps[0], centres[-1] + 0.5 * steps[0])


def make_grid(config, depth=None):
    """Return the axes of a grid as a dict of centres, from the `completeness` section; `depth` replaces its depths."""
    section = config.completeness
    return {"theta_E": section.theta_E, "seeing": section.seeing, "depth": depth or section.depth}


def assign_cells(table, grid):
    """Return the cell number of each row (row-major over theta_E, seeing, depth), -1 outside the grid.

    Parameters
    ----------
    table : pandas.DataFrame
        With theta_E, psfsize_r [arcsec], depth_r [mag].
    grid : dict of axis name -> centres
    """
    number = np.zeros(len(table), dtype=np.int64)
    outside = np.zeros(len(table), dtype=bool)
    for axis in AXES:
        edges, values = make_edges(grid[axis]), table[COLUMN_OF[axis]].to_numpy(dtype=float)
        index = np.digitize(values, edges) - 1
        index[values == edges[-1]] = len(grid[axis]) - 1
        bad = (index < 0) | (index >= len(grid[axis])) | ~np.isfinite(values)
        number = number * len(grid[axis]) + np.where(bad, 0, index)
        outside |= bad
    return np.where(outside, -1, number)


def assign_columns(table, grid):
    """Return the seeing x depth column number of each row (row-major), -1 outside the grid."""
    cells = assign_cells(table.assign(theta_E=grid["theta_E"][0]), grid)
    return cells


def share_columns(hosts, grid, population="deflector"):
    """Return the survey's share of each seeing x depth column: that of a population over the whole footprint.

    Parameters
    ----------
    hosts : pandas.DataFrame
        Host table: psfsize_r, depth_r, footprint_weight and the population's weight (inverse inclusion probability).
    grid : dict of axis name -> centres
    population : str
        ``"deflector"``, that of the main map, or ``"deployment"``.

    Returns
    -------
    ndarray of shape (seeing x depth,)
        Row-major; sums to the share of the population inside the grid. All hosts count, whether used or not.
    """
    weight = hosts[f"{population}_weight"].to_numpy(dtype=float) * hosts["footprint_weight"].to_numpy(dtype=float)
    columns, n = assign_columns(hosts, grid), len(grid["seeing"]) * len(grid["depth"])
    inside = columns >= 0
    share = np.bincount(columns[inside], weights=weight[inside], minlength=n)
    return share / weight.sum() if weight.sum() > 0 else share


def count_outside(hosts, grid):
    """Count the hosts outside the grid's seeing and depth, which take no injection.

    Returns
    -------
    pandas.DataFrame
        One row per population: n_hosts, n_hosts_outside, share_outside (weighted as `share_columns`).
    """
    outside, rows = assign_columns(hosts, grid) < 0, []
    for population in ("deflector", "deployment"):
        own = hosts[f"{population}_weight"].to_numpy() > 0
        rows.append({"population": population, "n_hosts": int(own.sum()), "n_hosts_outside": int((own & outside).sum()),
                     "share_outside": 1.0 - share_columns(hosts, grid, population).sum()})  # fmt: skip
    return pd.DataFrame(rows)


def count_cells(table, grid, thresholds, config, hosts, parent=None, draws=None):
    """Count injected and recovered arcs per cell and threshold, with intervals that know of reused hosts and bricks.

    Parameters
    ----------
    table : pandas.DataFrame
        Scored grid injections: theta_E, psfsize_r, depth_r, logit, host_index, brickname, untied.
    grid : dict of axis name -> centres
    thresholds : dict of name -> float
        On the logit.
    config : lensaudit.config.Config
    hosts : pandas.DataFrame
        Host table, for the survey's share of each column (`share_columns`).
    parent : pandas.DataFrame, optional
        Galaxies before the exposure cut (psfsize_r, depth_r, nobs_g, nobs_r, nobs_z), which tells why a column has
        no host.
    draws : pandas.DataFrame or dict of name -> array, optional
        Thresholds of the resampled negatives, from `thresholds.set_thresholds`; adds `THRESHOLD_COLUMNS`.

    Returns
    -------
    pandas.DataFrame
        One row per threshold and cell, columns `CELL_COLUMNS`. completeness = k/n; bounds are those of a Jeffreys
        posterior with n_eff trials and n_eff k/n successes. footprint_weight is the survey's share of the cell's
        seeing x depth column; untied_fraction the share of injections in hosts that could not make such an arc, which
        carry no population weight.
    """
    cell = assign_cells(table, grid)
    inside = table[cell >= 0].assign(cell=cell[cell >= 0])
    shape = tuple(len(grid[axis]) for axis in AXES)
    base = _describe_cells(inside, shape, grid, hosts)
    why = explain_columns(grid, config, table, parent)
    base["reason"] = [judge_cell(row.n, row.n_bricks, config, why[i % len(why)])
                      for i, row in enumerate(base.itertuples())]  # fmt: skip
    groups = {number: rows for number, rows in inside.groupby("cell").indices.items()}
    host, brick = stats.encode_groups(inside["host_index"]), stats.encode_groups(inside["brickname"])
    parts = []
    for name, (threshold, outside) in check_thresholds(table, thresholds).items():
        flag = inside["logit"].to_numpy() > threshold
        rho = stats.pair_correlation(flag, host, brick, inside["cell"])
        k, n_eff = np.bincount(inside["cell"], flag, len(base)).astype(np.int64), np.zeros(len(base))
        for number, rows in groups.items():
            n_eff[number] = stats.effective_n(host[rows], brick[rows], *rho)
        part = base.assign(threshold_name=name, threshold=threshold, k=k, n_eff=n_eff, rho_host=rho[0],
                           rho_brick=rho[1])  # fmt: skip
        part["reason"] = part["reason"].where((part["reason"] != "") | (outside == ""), outside)
        part = add_intervals(part, config)
        if draws is not None:
            k = count_draws(inside["cell"].to_numpy(), inside["logit"].to_numpy(), take_draws(draws, name), len(base))
            n = part["n"].to_numpy()
            values = np.divide(k, n, out=np.full(k.shape, np.nan), where=n > 0)
            part = add_threshold_error(part, values, {0.68: "_68", 0.95: "_95"})
        parts.append(part)
    columns = CELL_COLUMNS if draws is None else CELL_COLUMNS + THRESHOLD_COLUMNS
    return pd.concat(parts, ignore_index=True)[list(columns)]


def _describe_cells(inside, shape, grid, hosts):
    n_cells = int(np.prod(shape))
    index = np.stack(np.unravel_index(np.arange(n_cells), shape), axis=1)
    base = pd.DataFrame({axis: np.asarray(grid[axis], float)[index[:, i]] for i, axis in enumerate(AXES)})
    grouped = inside.groupby("cell")
    for name, column in (("n_hosts", "host_index"), ("n_bricks", "brickname")):
        base[name] = grouped[column].nunique().reindex(range(n_cells), fill_value=0).astype(np.int64)
    base["n"] = grouped.size().reindex(range(n_cells), fill_value=0).astype(np.int64)
    base["footprint_weight"] = np.tile(share_columns(hosts, grid), shape[0])
    untied = grouped["untied"].mean() if "untied" in inside else pd.Series(dtype=float)
    base["untied_fraction"] = untied.reindex(range(n_cells)).astype(float)
    return base


def explain_columns(grid, config, hosts, parent=None):
    """Say for each seeing x depth column why it has no host; empty text where it has one.

    Returns
    -------
    list of str
        Row-major over seeing, depth.
    """
    n = len(grid["seeing"]) * len(grid["depth"])
    has_host = np.isin(np.arange(n), assign_columns(hosts, grid))
    if parent is None:
        return ["" if flag else "no host" for flag in has_host]
    columns = assign_columns(parent, grid)
    exposed = (parent[["nobs_g", "nobs_r", "nobs_z"]].min(axis=1) >= config.sampling.nobs_min).to_numpy()
    any_galaxy = np.isin(np.arange(n), columns)
    any_exposed = np.isin(np.arange(n), columns[exposed])
    out = []
    for column in range(n):
        if has_host[column]:
            out.append("")
        elif not any_galaxy[column]:
            out.append("no survey area")
        elif not any_exposed[column]:
            out.append(f"outside the parent sample (NOBS >= {config.sampling.nobs_min})")
        else:
            out.append("no test host")
    return out


def average_cells(cells, axes, table, grid, thresholds, config, weighting="footprint", draws=None):
    """Average completeness over the axes not named, with brick-bootstrap intervals.

    Parameters
    ----------
    cells : pandas.DataFrame
        From `count_cells`; only sufficient cells enter, each with its tied injections: untied ones carry no
        population weight.
    axes : sequence of str
        Axes kept, such as ``("theta_E",)``; empty for the overall average.
    table : pandas.DataFrame
        The injections behind `cells`.
    grid : dict
    thresholds : dict of name -> float
    config : lensaudit.config.Config
    weighting : str
        ``"footprint"`` gives each seeing x depth column its share of the survey, ``"flat"`` every cell the same.
    draws : pandas.DataFrame or dict of name -> array, optional
        As for `count_cells`; all cells move with one drawn threshold.

    Returns
    -------
    pandas.DataFrame
        threshold_name, the axes kept, completeness, lower, upper (95 %), n_cells (sufficient, with tied injections),
        weighting; with `draws` sigma_threshold, lower_total, upper_total (95 %).
    """
    table = table[~table["untied"].to_numpy(dtype=bool)]
    number = assign_cells(table, grid)
    host_brick = stats.encode_groups(table["brickname"])
    parts = []
    for name, threshold in thresholds.items():
        own = cells[cells["threshold_name"] == name].reset_index(drop=True)
        flag = (table["logit"].to_numpy() > threshold).astype(float)
        use = number >= 0
        n = np.bincount(number[use], minlength=len(own))
        k = np.bincount(number[use], weights=flag[use], minlength=len(own))
        column_weight = own["footprint_weight"] if weighting == "footprint" else 1.0
        weight = np.where(own["sufficient"] & (n > 0), column_weight, 0.0)
        label = own.groupby(list(axes)).ngroup().to_numpy() if axes else np.zeros(len(own), dtype=int)
        mean = _average(n, k, weight, label)
        resampled = _draw_averages(number[use], flag[use], host_brick[use], weight, label, len(own), config, name)
        lower, upper = np.full(len(mean), np.nan), np.full(len(mean), np.nan)
        known = np.isfinite(resampled).any(axis=0)
        lower[known], upper[known] = stats.summarise_draws(resampled[:, known])
        first = own.groupby(label)[list(axes)].first() if axes else pd.DataFrame(index=[0])
        part = first.assign(threshold_name=name, completeness=mean, lower=lower, upper=upper, weighting=weighting,
                            n_cells=pd.Series(weight > 0).groupby(label).sum().to_numpy())  # fmt: skip
        if draws is not None:
            found = count_draws(number[use], table["logit"].to_numpy()[use], take_draws(draws, name), len(own))
            values = np.stack([_average(n, k, weight, label) for k in found])
            part = add_threshold_error(part, values, {0.95: ""})
        parts.append(part.reset_index(drop=True))
    return pd.concat(parts, ignore_index=True)


def _average(n, k, weight, label):
    n, k = np.asarray(n, dtype=float), np.asarray(k, dtype=float)
    use = np.where(n > 0, weight, 0.0)
    fraction = np.divide(k, n, out=np.zeros_like(k), where=n > 0)
    top = np.bincount(label, weights=use * fraction)
    bottom = np.bincount(label, weights=use)
    return np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)


def _draw_averages(number, flag, brick, weight, label, n_cells, config, name):
    generator = streams.make_stream(config.seed, "audit/completeness/average", name)
    n_bricks = int(brick.max(initial=0)) + 1
    pair = number * n_bricks + brick
    codes, inverse = np.unique(pair, return_inverse=True)
    count = np.bincount(inverse).astype(float)
    found = np.bincount(inverse, weights=flag)
    cell_of, brick_of = codes // n_bricks, codes % n_bricks
    draws = []
    for _ in range(config.evaluation.n_bootstrap // 5 or 1):
        times = np.bincount(generator.integers(0, n_bricks, n_bricks), minlength=n_bricks)[brick_of]
        n = np.bincount(cell_of, weights=times * count, minlength=n_cells)
        k = np.bincount(cell_of, weights=times * found, minlength=n_cells)
        draws.append(_average(n, k, weight, label))
    return np.asarray(draws)


def tabulate_bins(table, columns, thresholds, level=0.95):
    """Completeness in bins of any columns, such as C(theta_E, z_lens), with the n_eff rule of the cells.

    Parameters
    ----------
    table : pandas.DataFrame
        Scored injections: logit, host_index, brickname and the axes.
    columns : dict of column -> sequence
        Rising edges of a numeric column, bins closed above, or names of a categorical one, such as host type.
    thresholds : dict of name -> float
    level : float

    Returns
    -------
    pandas.DataFrame
        threshold_name, the column's bin centres or names, n, k, n_hosts, n_eff, completeness, lower, upper; reason says
        why a bin gives no completeness: no injection inside, or a threshold outside the scores. Nothing is left out.

    Raises
    ------
    UserError
        For an unknown column, edges that do not rise, bins that hold no injection at all, or bad scores or thresholds.
    """
    missing = [name for name in [*columns, "logit"] if name not in table]
    if missing:
        raise UserError(f"injections have no column {', '.join(missing)}; they have {', '.join(sorted(table))}")
    codes, places = zip(*(_bin_axis(table[name], bins) for name, bins in columns.items()), strict=True)
    keep, shape = np.all([code >= 0 for code in codes], axis=0), tuple(len(place) for place in places)
    inside = table[keep].reset_index(drop=True)
    if inside.empty:
        raise UserError(f"no injection lies inside the bins of {', '.join(columns)}")
    code = np.ravel_multi_index([c[keep] for c in codes], shape)
    index, size = np.unravel_index(np.arange(np.prod(shape)), shape), np.prod(shape)
    base = pd.DataFrame({name: np.asarray(place)[i] for name, place, i in zip(columns, places, index, strict=True)})
    host, brick = stats.encode_groups(inside["host_index"]), stats.encode_groups(inside["brickname"])
    groups, n = pd.Series(code).groupby(code).indices, np.bincount(code, minlength=size)
    n_hosts, n_eff, parts = np.zeros(size, dtype=np.int64), np.zeros(size), []
    for name, (threshold, reason) in check_thresholds(table, thresholds).items():
        flag = inside["logit"].to_numpy() > threshold
        rho = stats.pair_correlation(flag, host, brick, code)
        for number, rows in groups.items():
            n_hosts[number] = len(np.unique(host[rows]))
            n_eff[number] = stats.effective_n(host[rows], brick[rows], *rho)
        k = np.bincount(code, weights=flag, minlength=size).astype(np.int64)
        fraction = np.divide(k, n, out=np.full(size, np.nan), where=n > 0)
        lower, upper = stats.jeffreys_interval(n_eff * np.nan_to_num(fraction), n_eff, level)
        parts.append(base.assign(threshold_name=name, n=n, k=k, n_hosts=n_hosts, n_eff=n_eff, completeness=fraction,
                                 lower=lower, upper=upper, reason=np.where(n, reason, "no injection")))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _bin_axis(values, bins):
    """Return the bin of each value, -1 outside, and the centres or names of the bins."""
    if len(bins) and isinstance(bins[0], str):
        return pd.Index(list(bins)).get_indexer(values.astype(str)), list(bins)
    edges = np.asarray(bins, dtype=float)
    if len(edges) < 2 or not np.all(np.diff(edges) > 0):
        raise UserError(f"{values.name}: bin edges {edges.tolist()} do not rise; give two or more")
    if not pd.api.types.is_numeric_dtype(values):
        raise UserError(f"{values.name} is not numeric; name the classes wanted, of {sorted(set(values.astype(str)))}")
    code = pd.cut(values, edges, labels=False).fillna(-1).to_numpy(dtype=np.int64)
    return code, list(0.5 * (edges[1:] + edges[:-1]))


def average_axes(cells, table, grid, thresholds, config, draws=None):
    """Return axis -> `average_cells` along that axis, footprint-weighted and flat."""
    return {
        axis: pd.concat([average_cells(cells, (axis,), table, grid, thresholds, config, weighting, draws)
                         for weighting in ("footprint", "flat")], ignore_index=True)
        for axis in AXES
    }  # fmt: skip


def hash_injections(table):
    """Return a hash of the injections' ids and logits, independent of row order."""
    own = table[["injection_id", "logit"]].sort_values("injection_id")
    return hash_object([own["injection_id"].tolist(), own["logit"].round(6).tolist()])
