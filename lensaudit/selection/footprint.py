"""The survey's conditions: which share of a footprint has which seeing and depth, and averages over it."""

from pathlib import Path

import numpy as np
import pandas as pd

from lensaudit import photometry, stats
from lensaudit.artifacts import UserError, read_table
from lensaudit.audit.completeness import assign_columns
from lensaudit.selection.cells import broadcast_points

# Depths [mag] that no inverse variance of a survey as deep as this takes: a column of them is a table in magnitudes.
MAGNITUDES = (17.0, 28.0)


def read_footprint(footprint):
    """Return seeing [arcsec], depth [mag] and weight of each position of a footprint.

    Parameters
    ----------
    footprint : pandas.DataFrame or path
        A Parquet or FITS table, such as the survey's randoms: PSFSIZE_R [arcsec] and PSFDEPTH_R [nMgy^-2], or seeing
        and depth [mag]; weight or footprint_weight where positions do not count alike. Case does not matter.

    Raises
    ------
    UserError
        When a column is missing or no weight is positive, or PSFDEPTH_R holds magnitudes, as in survey-bricks tables.
    """
    name = "footprint" if isinstance(footprint, pd.DataFrame) else Path(footprint).name
    if not isinstance(footprint, pd.DataFrame):
        footprint = _read_fits(Path(footprint)) if ".fits" in name else read_table(footprint)
    table = footprint.rename(columns=str.lower)
    if {"seeing", "depth"} <= set(table):
        seeing, depth = table["seeing"], table["depth"]
    elif {"psfsize_r", "psfdepth_r"} <= set(table):
        ivar = table["psfdepth_r"].to_numpy(dtype=float)
        known = ivar[ivar > 0]
        if len(known) and (known > MAGNITUDES[0]).all() and (known < MAGNITUDES[1]).all():
            raise UserError(f"{name}: PSFDEPTH_R looks like magnitudes, not inverse variances; rename it to depth")
        seeing, depth = table["psfsize_r"], np.where(ivar > 0, photometry.ivar_to_depth(np.maximum(ivar, 1e-9)), np.nan)
    else:
        raise UserError(f"{name}: columns PSFSIZE_R and PSFDEPTH_R, or seeing and depth, are missing; it has "
                        f"{', '.join(list(table)[:8])}")  # fmt: skip
    weight = next((table[c] for c in ("weight", "footprint_weight") if c in table), pd.Series(1.0, index=table.index))
    out = pd.DataFrame({"seeing": np.asarray(seeing, float), "depth": np.asarray(depth, float),
                        "weight": np.asarray(weight, float)})  # fmt: skip
    if not (out["weight"] >= 0).all() or not out["weight"].sum() > 0:
        raise UserError(f"{name}: weights must be 0 or more, and some positive; correct its column weight")
    return out


def _read_fits(path):
    from astropy.table import Table

    if not path.is_file():
        raise UserError(f"{path.name}: no such footprint file")
    try:
        return Table.read(path, hdu=1).to_pandas()
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path.name}: unreadable as a FITS table ({error})") from None


def grid_conditions(footprint, axes):
    """Return the share of a footprint in each seeing x depth column.

    Parameters
    ----------
    footprint : pandas.DataFrame or path
        For `read_footprint`.
    axes : dict of axis -> centres

    Returns
    -------
    pandas.DataFrame
        seeing, depth (centres), weight, row-major; a last row without seeing and depth holds the share outside the
        grid. The weights sum to 1.
    """
    table = read_footprint(footprint)
    own = table.rename(columns={"seeing": "psfsize_r", "depth": "depth_r"})
    column, weight = assign_columns(own, axes), own["weight"].to_numpy() / own["weight"].sum()
    n = len(axes["seeing"]) * len(axes["depth"])
    share = np.bincount(column[column >= 0], weights=weight[column >= 0], minlength=n)
    seeing, depth = np.meshgrid(axes["seeing"], axes["depth"], indexing="ij")
    return pd.DataFrame({"seeing": np.append(seeing.ravel(), np.nan), "depth": np.append(depth.ravel(), np.nan),
                         "weight": np.append(share, max(1.0 - share.sum(), 0.0))})  # fmt: skip


def find_conditions(selection, footprint):
    """Return `grid_conditions` of a footprint, or those stored with the product when none is given."""
    product = selection.product
    return product.read_conditions() if footprint is None else grid_conditions(footprint, product.axes)


def explain_missing(found, missing):
    """Return the reason that most of `missing`, the weight of each row of a query without support, is missing for."""
    reason = found["reason"].astype(str)
    kind = reason.str.replace(r"[\d.]+", "", regex=True).to_numpy()  # one reason, whatever effective size it names
    most = kind == pd.Series(missing).groupby(kind).sum().idxmax()
    worst = pd.Series(missing[most]).groupby(reason[most].to_numpy()).sum().idxmax()
    return "seeing or depth outside the grid, or not a number" if worst == "not a number" else worst


def average_footprint(selection, footprint=None, threshold=None, prior=None, level=0.95, max_missing=0.1,
                      threshold_error=False):  # fmt: skip
    """Average a selection function over the seeing and depth of a footprint, at each Einstein radius of its grid.

    Parameters
    ----------
    selection : lensaudit.selection.composition.Selection
    footprint : pandas.DataFrame or path, optional
        For `read_footprint`; the footprint stored with the product by default.
    threshold, prior, level, threshold_error
        As for ``query``.
    max_missing : float
        Largest share of the footprint that may lie outside the support at an Einstein radius; 1 takes what there is.

    Returns
    -------
    pandas.DataFrame
        theta_E, p, lower, upper, share_outside (of the footprint, where the function has no support). p is the mean
        over the supported share; NaN where more than `max_missing` is outside.

    Raises
    ------
    UserError
        When the support misses more than `max_missing` of the footprint, or all of it, at every Einstein radius.

    Notes
    -----
    Cells are drawn independently of each other, but for the error of the threshold, which moves all together; weights
    are taken as exact. A factor of a product is taken at the centre of each cell. Draws are centred on p.
    """
    conditions = find_conditions(selection, footprint)
    theta, weight = selection.product.axes["theta_E"], conditions["weight"].to_numpy()
    points = (theta[:, None], conditions["seeing"].to_numpy()[None], conditions["depth"].to_numpy()[None])
    found = selection.query(*points, threshold=threshold, prior=prior, level=level)
    support = found["in_support"].to_numpy().reshape(len(theta), -1)
    share = np.where(support, weight, 0.0)
    total = share.sum(axis=1)
    scale = np.where((total > 0) & (1.0 - total <= max_missing + 1e-9), total, np.nan)
    if np.isnan(scale).all():
        least, best = 1.0 - total.max(), np.arange(len(theta))[:, None] == total.argmax()
        why = explain_missing(found, np.where(best & ~support, weight, 0.0).ravel())
        more = f"; more than the {max_missing:.0%} allowed by max_missing" if least < 1 else ""
        raise UserError(f"average: {least:.0%} of the footprint or more lies outside the support at every Einstein "
                        f"radius (mostly: {why}){more}")  # fmt: skip
    drawn = selection.draw_centred(broadcast_points(*points), found["p"].to_numpy(), threshold, prior, threshold_error)
    p = (share * found["p"].fillna(0.0).to_numpy().reshape(share.shape)).sum(axis=1) / scale
    mean = (drawn.reshape(-1, *share.shape) * share).sum(axis=2) / scale
    known, bounds = np.isfinite(p), np.full((2, len(p)), np.nan)
    bounds[:, known] = np.clip(stats.summarise_draws(mean[:, known], level), 0.0, 1.0)
    lower, upper = bounds
    out = pd.DataFrame({"theta_E": theta, "p": p, "lower": lower, "upper": upper, "share_outside": 1.0 - total})
    out.attrs.update(selection.describe(threshold, prior, level, threshold_error))
    return out
