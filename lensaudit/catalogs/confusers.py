"""Catalogue proxies for galaxies that look like lenses. A proxy is a cut on catalogue columns, not a classification."""

import numpy as np
import pandas as pd

from lensaudit.catalogs import sphere

# Rarest first: an object that meets several proxies carries the first name of this list.
CATEGORIES = (
    "labelled_ring", "labelled_spiral", "labelled_merger", "bright_star_neighbourhood", "agn_proxy",
    "merger_neighbour", "edge_on_proxy", "blue_clumpy", "spiral_proxy", "large_galaxy", "ring_proxy",
)  # fmt: skip
_LABEL_RADIUS = 2.0  # arcsec, from a labelled position to its source


def mask_radius(mag):
    """Return the radius in arcsec of the survey's bright-star mask, 1630 x 1.396^-mag (Legacy Surveys, DR9)."""
    return 1630.0 * 1.396 ** -np.asarray(mag, float)


def measure_stars(galaxies, stars):
    """Return the distance [arcsec] and magnitude of the nearest bright star; infinite and NaN without stars."""
    index, distance = sphere.find_nearest(galaxies["ra"], galaxies["dec"], stars["ra"], stars["dec"])
    if not len(stars):
        return distance, np.full(len(galaxies), np.nan)
    return distance, stars["mag"].to_numpy(float)[index]


def find_bright_neighbours(galaxies, survey, ratio=0.5, inner=3.0, outer=6.0):
    """Say which galaxies have a neighbour of comparable brightness.

    Parameters
    ----------
    galaxies, survey : pandas.DataFrame
        ra, dec, flux_r; `survey` holds every source, those outside the parent sample too.
    ratio : float
        Least r flux of the neighbour in units of the galaxy's own.
    inner, outer : float
        Arcsec.

    Returns
    -------
    ndarray of shape (len(galaxies),), bool
    """
    i, j, separation = sphere.find_pairs(galaxies["ra"], galaxies["dec"], survey["ra"], survey["dec"], outer)
    own, other = galaxies["flux_r"].to_numpy()[i], survey["flux_r"].to_numpy()[j]
    found = np.zeros(len(galaxies), bool)
    found[i[(separation >= inner) & (other >= ratio * own) & (own > 0)]] = True
    return found


def classify_confusers(galaxies, survey, stars, labels):
    """Name the confuser category of every galaxy.

    Parameters
    ----------
    galaxies : pandas.DataFrame
        Survey columns, with star_distance and star_mag of `measure_stars`.
    survey : pandas.DataFrame
        All sources, for neighbours.
    stars : pandas.DataFrame
        ra, dec, mag.
    labels : pandas.DataFrame
        ra, dec, label (``ring``, ``spiral`` or ``merger``): objects people have labelled.

    Returns
    -------
    ndarray of shape (N,), object
        One of `CATEGORIES`, or the empty string.

    Notes
    -----
    Cuts of SPEC 2.4, on observed magnitudes: ring DEV, or SER with n >= 4, and flux_r >= 5 nMgy; edge-on ellipticity
    >= 0.50 and SHAPE_R >= 0.6 arcsec; blue clumpy g-r <= 0.4 and r <= 20.5; large SHAPE_R >= 2 arcsec and flux_r >= 3;
    spiral g-r <= 0.7 and SHAPE_R >= 0.8. Design values of this project: AGN SER with n >= 5 and SHAPE_R <= 0.6; merger
    a neighbour of half the flux within 3-6 arcsec, or FRACFLUX_R >= 0.5; star within twice its mask radius. FITBITS
    and FRACIN are carried but not used.
    """
    kind, flux = galaxies["type"].to_numpy(object), galaxies["flux_r"].to_numpy(float)
    colour = (galaxies["mag_g"] - galaxies["mag_r"]).to_numpy(float)
    size, sersic = galaxies["shape_r"].to_numpy(float), galaxies["sersic"].to_numpy(float)
    ellipticity = np.hypot(galaxies["shape_e1"], galaxies["shape_e2"]).to_numpy(float)
    found, separation = sphere.find_nearest(galaxies["ra"], galaxies["dec"], labels["ra"], labels["dec"])
    label = np.full(len(galaxies), "", object)
    near = separation <= _LABEL_RADIUS
    label[near] = labels["label"].to_numpy(object)[found[near]]
    conditions = {
        "labelled_ring": label == "ring",
        "labelled_spiral": label == "spiral",
        "labelled_merger": label == "merger",
        "bright_star_neighbourhood": (galaxies["star_distance"] <= 2 * mask_radius(galaxies["star_mag"])).to_numpy(),
        "agn_proxy": (kind == "SER") & (sersic >= 5.0) & (size <= 0.6),
        "merger_neighbour": find_bright_neighbours(galaxies, survey) | (galaxies["fracflux_r"] >= 0.5).to_numpy(),
        "edge_on_proxy": (ellipticity >= 0.50) & (size >= 0.6),
        "blue_clumpy": (colour <= 0.4) & (galaxies["mag_r"] <= 20.5).to_numpy(),
        "spiral_proxy": (colour <= 0.7) & (size >= 0.8),
        "large_galaxy": (size >= 2.0) & (flux >= 3.0),
        "ring_proxy": ((kind == "DEV") | ((kind == "SER") & (sersic >= 4.0))) & (flux >= 5.0),
    }
    category = np.select([conditions[name] for name in CATEGORIES], CATEGORIES, "")
    return category.astype(object)


def allocate_categories(stock, n, cap):
    """Share a quota among categories: in proportion to their stock, none above a share `cap` of the quota.

    Parameters
    ----------
    stock : pandas.Series
        Available objects per category.
    n : int
        Quota.
    cap : float
        Largest share of the quota one category may take.

    Returns
    -------
    pandas.Series of int
        Sums to `n`, or to less when stocks and caps do not reach it.
    """
    limit = np.minimum(stock, int(np.floor(cap * n))).astype(np.int64)
    share = pd.Series(0, index=stock.index, dtype=np.int64)
    while (left := min(n, int(limit.sum())) - int(share.sum())) > 0:
        free = stock.where(share < limit, 0).astype(float)
        step = np.minimum(spread_quota(free, left), limit - share)
        share += step
    return share


def spread_quota(weights, n):
    """Round the shares ``n x weights / sum`` to integers that sum to `n`, largest remainder first.

    Ties go to the earlier entry. Nothing is given when the weights sum to zero.
    """
    total = float(weights.sum())
    if total <= 0 or n <= 0:
        return pd.Series(0, index=weights.index, dtype=np.int64)
    exact = weights.astype(float) * n / total
    share = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - share).to_numpy(), kind="stable")[: n - int(share.sum())]
    share.iloc[order] += 1
    return share
