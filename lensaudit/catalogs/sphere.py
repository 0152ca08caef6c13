"""Positions on the sphere: pairs within a radius, nearest neighbours, HEALPix pixels.

Everything goes through unit vectors and a kd-tree, so that the wrap of right ascension and the poles need no care.
"""

import healpy
import numpy as np
from scipy.spatial import cKDTree

ARCSEC = np.pi / 180 / 3600  # radian


def to_vectors(ra, dec):
    """Return unit vectors.

    Parameters
    ----------
    ra, dec : array_like of shape (N,)
        Degrees.

    Returns
    -------
    ndarray of shape (N, 3), float64
    """
    lon, lat = np.radians(np.asarray(ra, float)), np.radians(np.asarray(dec, float))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def _chord_to_arcsec(chord):
    return 2 * np.arcsin(np.minimum(np.asarray(chord) / 2, 1.0)) / ARCSEC


def find_pairs(ra1, dec1, ra2, dec2, radius):
    """Find all pairs of two lists closer than a radius.

    Parameters
    ----------
    ra1, dec1 : array_like of shape (N,)
        Degrees, finite.
    ra2, dec2 : array_like of shape (M,)
        Degrees, finite.
    radius : float
        Arcsec.

    Returns
    -------
    first, second : ndarray of shape (K,), int64
        Row numbers, sorted by `first`, then by separation.
    separation : ndarray of shape (K,)
        Arcsec.
    """
    if len(ra1) == 0 or len(ra2) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    chord = 2 * np.sin(radius * ARCSEC / 2)
    trees = cKDTree(to_vectors(ra1, dec1)), cKDTree(to_vectors(ra2, dec2))
    pairs = trees[0].sparse_distance_matrix(trees[1], chord, output_type="ndarray")
    pairs = pairs[np.lexsort((pairs["j"], pairs["v"], pairs["i"]))]
    return pairs["i"].astype(np.int64), pairs["j"].astype(np.int64), _chord_to_arcsec(pairs["v"])


def find_nearest(ra1, dec1, ra2, dec2):
    """Find the nearest member of the second list to every member of the first.

    Returns
    -------
    index : ndarray of shape (N,), int64
        Row of the second list, -1 when that is empty.
    separation : ndarray of shape (N,)
        Arcsec, infinite when the second list is empty.
    """
    if len(ra2) == 0 or len(ra1) == 0:
        return np.full(len(ra1), -1, np.int64), np.full(len(ra1), np.inf)
    chord, index = cKDTree(to_vectors(ra2, dec2)).query(to_vectors(ra1, dec1))
    return index.astype(np.int64), _chord_to_arcsec(chord)


def index_sky(ra, dec, nside):
    """Return the nested HEALPix pixel of every position.

    Parameters
    ----------
    ra, dec : array_like of shape (N,)
        Degrees, finite.
    nside : int

    Returns
    -------
    ndarray of shape (N,), int64
    """
    ra, dec = np.asarray(ra, float), np.asarray(dec, float)
    return np.asarray(healpy.ang2pix(nside, ra % 360.0, dec, nest=True, lonlat=True), dtype=np.int64)
