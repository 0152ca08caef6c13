"""Tests of rates: do regions of the sky agree, and by what factor does a rate change on the same objects?"""

import numpy as np
import pandas as pd
from scipy import optimize, stats

from lensaudit.stats import encode_groups

POWER, SIZE = 0.8, 0.05  # of the chance to see the smallest difference that is stated


def compare_regions(flag, expected, region, host):
    """Test whether recovered fractions agree between regions, given what a fit without regions expects.

    Parameters
    ----------
    flag : array_like of bool, shape (N,)
        Recovered or not.
    expected : array_like of shape (N,)
        Its probability, from a fit to all rows with an intercept and without the region.
    region : array_like of shape (N,)
    host : array_like of shape (N,)
        Rows of one host are correlated.

    Returns
    -------
    regions : pandas.DataFrame
        region, n, n_hosts, recovered, expected, z (of the difference), smallest (difference of this region from all
        others, in the recovered fraction, that the test sees with 80 % power at 5 %).
    test : dict
        chi2, dof, p.

    Notes
    -----
    R = A E is the vector of summed residuals, E that of independent ones with the host-clustered variance, and A takes
    out what the fit's intercept takes out. chi^2 = R' (A V A')^+ R has one degree of freedom fewer than regions; its
    power follows from the non-central chi^2 distribution.
    """
    flag, expected = np.asarray(flag, dtype=float), np.asarray(expected, dtype=float)
    names, code = np.unique(region, return_inverse=True)
    n_regions, host_code = len(names), encode_groups(host)
    pair = encode_groups(host_code.astype(np.int64) * n_regions + code)
    owner = np.zeros(pair.max() + 1, dtype=int)
    owner[pair] = code
    residual = flag - expected
    variance = np.bincount(owner, weights=np.bincount(pair, weights=residual) ** 2, minlength=n_regions)
    share = np.bincount(code, weights=expected * (1.0 - expected), minlength=n_regions)
    project = np.eye(n_regions) - np.outer(share / share.sum(), np.ones(n_regions))
    covariance = project @ np.diag(variance) @ project.T
    inverse = np.linalg.pinv(covariance, rcond=1e-9, hermitian=True)
    total, n = np.bincount(code, weights=residual, minlength=n_regions), np.bincount(code, minlength=n_regions)
    chi2, dof = float(total @ inverse @ total), n_regions - 1
    shifted = project * n  # column r: the sums when region r alone differs by one
    needed = find_noncentrality(dof)
    smallest = np.sqrt(needed / np.maximum(np.einsum("ir,ij,jr->r", shifted, inverse, shifted), 1e-30))
    table = pd.DataFrame({
        "region": names, "n": n, "n_hosts": np.bincount(owner, minlength=n_regions),
        "recovered": np.bincount(code, weights=flag) / n, "expected": np.bincount(code, weights=expected) / n,
        "z": total / np.sqrt(np.maximum(np.diag(covariance), 1e-30)), "smallest": smallest,
    })  # fmt: skip
    return table, {"chi2": chi2, "dof": dof, "p": float(stats.chi2.sf(chi2, dof))}


def find_noncentrality(dof, power=POWER, size=SIZE):
    """Return the non-centrality at which a chi-squared test of level `size` has the given power (float)."""
    limit = stats.chi2.isf(size, dof)
    return optimize.brentq(lambda value: stats.ncx2.sf(limit, dof, value) - power, 1e-3, 1e3)


def paired_ratio(before, after, level=0.95):
    """Ratio of two rates on the same objects, with an interval that allows for their pairing.

    Parameters
    ----------
    before, after : array_like of bool, shape (N,)
    level : float

    Returns
    -------
    ratio, lower, upper : float
        after over before; the ratio is infinite when none is set before and NaN when none is set at all, where the
        interval is (0, inf).

    Notes
    -----
    Bonett & Price 2006, Statistics in Medicine 25, 3039: the two Wilson intervals, at a critical
    value reduced for the correlation of the pairs, are combined on the logarithm.
    """
    before, after = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    a, b, discordant = int(after.sum()), int(before.sum()), int(np.sum(before != after))
    size = int(np.sum(before | after))
    if size == 0:
        return np.nan, 0.0, np.inf
    first, second = (a + 1) / (size + 2), (b + 1) / (size + 2)
    reduced = np.sqrt((discordant + 2) / ((a + 1) * (b + 1)))
    reduced /= np.sqrt((1 - first) / (a + 1)) + np.sqrt((1 - second) / (b + 1))
    z = float(stats.norm.ppf(0.5 + 0.5 * level)) * reduced
    (low_a, high_a), (low_b, high_b) = _wilson(a, size, z), _wilson(b, size, z)
    upper = high_a / low_b if low_b > 0 else np.inf
    return (a / b if b else np.inf), low_a / high_b, upper


def _wilson(k, n, z):
    half = z * np.sqrt(z**2 + 4 * k * (1 - k / n))
    return max(2 * k + z**2 - half, 0.0) / (2 * (n + z**2)), (2 * k + z**2 + half) / (2 * (n + z**2))
