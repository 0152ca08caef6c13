"""The bricks of the simulated sky: 0.25-degree boxes on the densest lens positions, and empty ones beside them."""

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from lensaudit.artifacts import UserError
from lensaudit.rng import hash_order

SIDE = 0.25  # degrees
DEC_RANGE = (-18.0, 32.0)


def locate_bricks(ra, dec):
    """Return brick ids of positions in a tiling of 0.25-degree rows, each cut into boxes of about that width.

    Parameters
    ----------
    ra, dec : array_like, degrees

    Returns
    -------
    ndarray of int64
        row * 1440 + column; unique and below 2**31.
    """
    row = np.floor((np.asarray(dec) + 90.0) / SIDE).astype(np.int64)
    columns = _count_columns(row)
    column = np.minimum(np.floor(np.asarray(ra) % 360.0 / 360.0 * columns).astype(np.int64), columns - 1)
    return row * 1440 + column


def _count_columns(row):
    middle = (row + 0.5) * SIDE - 90.0
    return np.ceil(360.0 * np.cos(np.radians(middle)) / SIDE).astype(np.int64)


def describe_bricks(brickids):
    """Return the box and name of bricks: brickid, brickname and ra1, ra2, dec1, dec2 in degrees."""
    ids = np.asarray(brickids, dtype=np.int64)
    row, column = ids // 1440, ids % 1440
    width = 360.0 / _count_columns(row)
    table = pd.DataFrame(
        {
            "brickid": ids,
            "ra1": column * width,
            "ra2": (column + 1) * width,
            "dec1": row * SIDE - 90.0,
            "dec2": (row + 1) * SIDE - 90.0,
        }
    )
    ra, dec = (table["ra1"] + table["ra2"]) / 2, (table["dec1"] + table["dec2"]) / 2
    table["brickname"] = [
        f"{int(a * 10):04d}{'p' if d >= 0 else 'm'}{int(abs(d) * 10):03d}" for a, d in zip(ra, dec, strict=True)
    ]
    return table


def name_sweeps(ra, dec):
    """Return the names of the survey's sweep files that hold positions (boxes of 10 x 5 degrees)."""

    def corner(r, d):
        return f"{int(r):03d}{'p' if d >= 0 else 'm'}{int(abs(d)):03d}"

    r = np.floor(np.asarray(ra) / 10.0) * 10
    d = np.floor(np.asarray(dec) / 5.0) * 5
    return np.array([f"sweep-{corner(a, b)}-{corner(a + 10, b + 5)}.fits" for a, b in zip(r, d, strict=True)])


def merge_positions(positions, radius=12.0):
    """Keep one of several entries within `radius` arcsec of each other (the first), inside the declination range."""
    inside = positions[(positions["dec"] > DEC_RANGE[0]) & (positions["dec"] < DEC_RANGE[1])].reset_index(drop=True)
    if len(inside) == 0:
        raise UserError("no lens position between Dec -18 and +32; give the sky positions inside its footprint")
    ra, dec = np.radians(inside["ra"]), np.radians(inside["dec"])
    points = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    pairs = cKDTree(points).query_pairs(np.radians(radius / 3600.0), output_type="ndarray")
    dropped = np.unique(pairs.max(axis=1)) if len(pairs) else []
    return inside.drop(index=dropped).reset_index(drop=True)


def choose_bricks(positions, config, seed):
    """Choose the bricks: the densest in positions, and blank ones two or more columns beside them.

    Parameters
    ----------
    positions : pandas.DataFrame
        ra, dec in degrees, one row per system.
    config : SkyConfig
    seed : int

    Returns
    -------
    pandas.DataFrame
        Of `describe_bricks` with n_positions, is_blank and is_tail, ordered by brickid.
    """
    ids = locate_bricks(positions["ra"], positions["dec"])
    counts = pd.Series(ids).value_counts()
    order = pd.DataFrame({"n": counts, "hash": hash_order(seed, "simsky/bricks", counts.index)})
    order = order.sort_values(["n", "hash"], ascending=[False, True])
    n_blank = round(config.n_bricks * config.blank_fraction)
    full = order.index[: config.n_bricks - n_blank].to_numpy()
    if len(full) < config.n_bricks - n_blank:
        raise UserError(f"only {len(full)} bricks hold a lens position; set [sky] n_bricks to at most {len(full)}")
    beside = np.unique(np.concatenate([full + step for step in (-4, -3, -2, 2, 3, 4)]))
    box = describe_bricks(beside)
    beside = beside[(box["ra2"] <= 360.0 + 1e-9) & (box["ra1"] >= 0) & ~np.isin(beside, ids)]
    beside = beside[np.argsort(hash_order(seed, "simsky/blank", beside))][:n_blank]
    bricks = describe_bricks(np.concatenate([full, beside]))
    bricks["n_positions"] = counts.reindex(bricks["brickid"]).fillna(0).astype(int).to_numpy()
    bricks["is_blank"] = bricks["n_positions"] == 0
    rank = np.argsort(np.argsort(hash_order(seed, "simsky/tail", bricks["brickid"])))
    bricks["is_tail"] = rank < round(config.tail_fraction * len(bricks))
    return bricks.sort_values("brickid", ignore_index=True)
