"""Splits of the sky, and the proof that they are apart.

A HEALPix pixel belongs to one split by the sha256 of (pixel, seed), lenses and galaxies alike. `verify_splits` does not
trust that: it looks for systems, galaxies, stamps, pixels and shared sky between splits.
"""

import hashlib

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError
from lensaudit.catalogs import sphere
from lensaudit.constants import PIXEL_SCALE, STAMP_SIZE

# Two square stamps, however they are turned, cannot share sky beyond the length of their diagonal.
STAMP_REACH = np.sqrt(2) * STAMP_SIZE * PIXEL_SCALE  # arcsec
SILVER = "silver"  # independent-channel lenses: evaluation only
LEAK_RADII = (STAMP_REACH, 60.0, 300.0, 1800.0)  # arcsec
BALANCE_COLUMNS = ("psfsize_r", "depth_r", "nobs_g", "nobs_r", "nobs_z", "mag_z", "ebv")


def hash_pixels(pixels, seed):
    """Return a uniform number in [0, 1) per pixel: the first eight bytes of sha256 of ``"pixel,seed"``.

    Parameters
    ----------
    pixels : array_like of int, shape (N,)
    seed : int

    Returns
    -------
    ndarray of shape (N,), float64
    """
    unique, inverse = np.unique(np.asarray(pixels, np.int64), return_inverse=True)
    digests = [hashlib.sha256(f"{p},{int(seed)}".encode()).digest()[:8] for p in unique.tolist()]
    # 53 bits, so that the quotient is exact and stays below 1
    values = np.array([int.from_bytes(d, "big") >> 11 for d in digests], dtype=np.float64) / 2.0**53
    return values[inverse.reshape(-1)]


def assign_splits(ra, dec, seed, config):
    """Assign positions to splits.

    Parameters
    ----------
    ra, dec : array_like of shape (N,)
        Degrees, finite.
    seed : int
    config : lensaudit.config.SamplingConfig
        healpix_nside, split_names in order, split_fractions summing to 1.

    Returns
    -------
    ndarray of shape (N,), object
        Names of splits. A function of position and seed only: no row depends on another.

    Raises
    ------
    UserError
        When names and fractions do not fit together.
    """
    fractions = np.asarray(config.split_fractions, float)
    if len(fractions) != len(config.split_names) or (fractions < 0).any() or abs(fractions.sum() - 1) > 1e-9:
        raise UserError(f"[sampling] split_fractions {tuple(config.split_fractions)} must be one non-negative number "
                        f"per name of split_names {tuple(config.split_names)} and sum to 1")
    pixels = sphere.index_sky(ra, dec, config.healpix_nside)
    index = np.searchsorted(np.cumsum(fractions)[:-1], hash_pixels(pixels, seed), side="right")
    return np.asarray(config.split_names, dtype=object)[index]


def find_overlaps(rows, others):
    """Say which rows have a stamp that may share sky with a stamp of other rows.

    Parameters
    ----------
    rows, others : pandas.DataFrame
        With ra, dec in degrees.

    Returns
    -------
    ndarray of shape (len(rows),), bool
    """
    _, separation = sphere.find_nearest(rows["ra"], rows["dec"], others["ra"], others["dec"])
    return separation < STAMP_REACH


def verify_splits(samples):
    """Check that splits share nothing, and measure how near and how alike they are.

    Parameters
    ----------
    samples : pandas.DataFrame
        galaxy_id, system_id, ra, dec, label, split, healpix_128, survey columns; cutout_path when it exists.

    Returns
    -------
    dict
        ``shared``: number of galaxy ids, systems, pixels (train, val, test only) and cutout paths found in more than
        one split; ``overlapping_pairs``: pairs of stamps of different splits that may share sky; ``is_disjoint``: all
        of these are zero; ``leak_buckets``: rows of each evaluation split by distance to the nearest training stamp;
        ``balance``: per split and label, medians of conditions and fractions by type, and the largest difference from
        train in units of the training scatter.
    """
    shared = {"galaxy_id": _count_shared(samples, "galaxy_id")}
    shared["system_id"] = _count_shared(samples[samples["system_id"] != ""], "system_id")
    shared["healpix_128"] = _count_shared(samples[samples["split"] != SILVER], "healpix_128")
    if "cutout_path" in samples:
        shared["cutout_path"] = _count_shared(samples[samples["cutout_path"] != ""], "cutout_path")
    i, j, _ = sphere.find_pairs(samples["ra"], samples["dec"], samples["ra"], samples["dec"], STAMP_REACH)
    split = samples["split"].to_numpy()
    pairs = (i < j) & (split[i] != split[j])
    kinds = pd.Series([" ".join(sorted(p)) for p in zip(split[i[pairs]], split[j[pairs]], strict=True)], dtype=str)
    return {
        "shared": shared,
        "stamp_reach_arcsec": STAMP_REACH,
        "overlapping_pairs": int(pairs.sum()),
        "overlapping_pairs_by_splits": {k: int(v) for k, v in kinds.value_counts().sort_index().items()},
        "is_disjoint": bool(sum(shared.values()) == 0 and pairs.sum() == 0),
        "leak_buckets": count_leaks(samples).to_dict("records"),
        "balance": measure_balance(samples).to_dict("records"),
    }


def _count_shared(samples, column):
    return int((samples.groupby(column)["split"].nunique() > 1).sum())


def count_leaks(samples):
    """Count evaluation rows by distance to the nearest training stamp.

    Returns
    -------
    pandas.DataFrame
        split, within_arcsec (upper edge, infinite for the rest), n.
    """
    train = samples[samples["split"] == "train"]
    rows = []
    for name in sorted(set(samples["split"]) - {"train"}):
        part = samples[samples["split"] == name]
        _, separation = sphere.find_nearest(part["ra"], part["dec"], train["ra"], train["dec"])
        edges = np.array([0.0, *LEAK_RADII, np.inf])
        bucket = np.clip(np.searchsorted(edges, separation, side="right") - 1, 0, len(edges) - 2)
        counts = np.bincount(bucket, minlength=len(edges) - 1)
        rows += [{"split": name, "within_arcsec": edges[k + 1], "n": int(n)} for k, n in enumerate(counts)]
    return pd.DataFrame(rows, columns=["split", "within_arcsec", "n"])


def measure_balance(samples):
    """Compare conditions and types between splits.

    Returns
    -------
    pandas.DataFrame
        Per label and split: n, median of each condition, fraction of each TYPE, and ``max_shift``, the largest
        difference of a mean from that of train in units of the standard deviation in train (NaN without train rows).
    """
    columns = [c for c in BALANCE_COLUMNS if c in samples]
    types = pd.get_dummies(samples["type_bin"], dtype=float).add_prefix("fraction_")
    values = pd.concat([samples[columns].astype(float), types], axis=1)
    rows = []
    for (label, split), index in samples.groupby(["label", "split"]).groups.items():
        train = values[(samples["label"] == label) & (samples["split"] == "train")]
        scatter = train.std(ddof=0).replace(0, np.nan)
        shift = ((values.loc[index].mean() - train.mean()) / scatter).abs().max() if len(train) else np.nan
        medians = values.loc[index, columns].median().add_prefix("median_")
        rows.append({"label": int(label), "split": split, "n": len(index), "max_shift": float(shift)}
                    | medians.to_dict() | values.loc[index, types.columns].mean().to_dict())
    return pd.DataFrame(rows)
