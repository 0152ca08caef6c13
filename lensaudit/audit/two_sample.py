"""Two-sample distances between lenses and injections: weighted KS, Frechet by layer, a classifier test and its power.

The classifier test asks whether a linear probe tells lenses from injections. Its null distribution comes from labels
permuted among hosts, its power from injections alone: some of their hosts play the lenses, with a colour planted.
"""

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from lensaudit import rng as streams
from lensaudit import stats

N_FOLDS = 5
N_PERMUTATIONS = 199
PLANTED_SHIFTS = (0.1, 0.2, 0.4, 0.8)  # mag, in the g - r of arcs
N_SPLITS = 20  # random choices of the hosts that play the lenses
POWER_LEVEL = 0.8  # a shift counts as detected when this share of the choices sees it
SIZE = 0.05  # of the test, false alarms without a shift
N_COMPONENTS = 16  # of the Frechet distance
PENALTY = 400.0  # of the probe's squared weights, per standardised feature
MAX_DEVIATION = 5.0  # standard deviations; a stray value beyond does not pull the probe


def weighted_ks(a, b, weights_b=None):
    """Return the Kolmogorov-Smirnov distance between a and a weighted b, NaN values left out (float)."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    weights = np.ones(len(b)) if weights_b is None else np.asarray(weights_b, dtype=float)
    a, weights, b = np.sort(a[np.isfinite(a)]), weights[np.isfinite(b)], b[np.isfinite(b)]
    if not len(a) or weights.sum() <= 0:
        return np.nan
    order = np.argsort(b)
    cdf_b = np.append(0.0, np.cumsum(weights[order]) / weights.sum())
    grid = np.concatenate([a, b])
    return float(np.max(np.abs(
        np.searchsorted(a, grid, side="right") / len(a) - cdf_b[np.searchsorted(b[order], grid, side="right")]
    )))  # fmt: skip


def ks_margin(a, b, weights_b, groups_b):
    """Return the Dvoretzky-Kiefer-Wolfowitz margin (95 %): sizes are the finite rows of a, Kish's by group of b."""
    n, good = int(np.isfinite(a).sum()), np.isfinite(np.asarray(b, dtype=float))
    size = stats.kish_n_eff(weights_b[good], np.asarray(groups_b)[good]) if good.any() else 0.0
    return 1.36 * np.sqrt(1.0 / max(n, 1) + 1.0 / max(size, 1.0))


def project_features(a, b, n_components=N_COMPONENTS):
    """Return both feature sets in the leading components of the pooled, standardised features.

    Parameters
    ----------
    a, b : ndarray of shape (N, D) and (M, D)
    n_components : int
        Fewer are taken where the smaller sample could not give them a covariance.
    """
    pooled = np.vstack([a, b]).astype(float)
    pooled = (pooled - pooled.mean(axis=0)) / np.maximum(pooled.std(axis=0), 1e-9)
    _, _, axes = np.linalg.svd(pooled, full_matrices=False)
    projected = pooled @ axes[: min(n_components, len(axes), max(2, min(len(a), len(b)) // 4))].T
    return projected[: len(a)], projected[len(a) :]


def frechet_distance(x, y):
    """Return the Frechet distance of two samples of shape (N, D) and (M, D), as normal distributions (float).

    Notes
    -----
    |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)), Dowson & Landau 1982; a distance, not a test.
    """
    first, second = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
    root = np.sqrt(np.maximum(np.linalg.eigvals(first @ second).real, 0.0)).sum()
    gap = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
    return float(max(gap + np.trace(first) + np.trace(second) - 2 * root, 0.0))


def compare_layers(lenses, injections, groups, config, name, n_splits=99):
    """Measure the Frechet distance of lenses and injections in every layer, beside that of injections among themselves.

    Parameters
    ----------
    lenses, injections : dict of layer -> ndarray of shape (N, D) and (M, D)
    groups : array_like of shape (M,)
        Host of each injection; a host is never on both sides of a split.
    config : lensaudit.config.Config
    name : str
        Names the random stream.
    n_splits : int

    Returns
    -------
    pandas.DataFrame
        layer, distance, null_median, null_lower, null_upper (95 %), ratio (distance over null_median), p (share of
        splits at least as far apart, the observed one counted). Empty when either side has fewer than 20 rows.

    Notes
    -----
    The null puts as many injections as there are lenses on one side and the rest on the other, in the same axes. The
    distance of two finite samples of one distribution is not zero, so only the ratio can be read.
    """
    rows, groups = [], np.asarray(groups).astype(str)
    for layer, a in lenses.items():
        b = injections[layer]
        if min(len(a), len(b)) < 20:
            continue
        x, y = project_features(a, b)
        distance, null = frechet_distance(x, y), []
        for split in range(n_splits):
            half = choose_hosts(groups, len(a), config.seed, f"audit/realism/layers/{name}/{split}")
            null.append(frechet_distance(y[half], y[~half]))
        lower, middle, upper = np.quantile(null, [0.025, 0.5, 0.975])
        rows.append({"layer": layer, "distance": distance, "null_median": middle, "null_lower": lower,
                     "null_upper": upper, "ratio": distance / middle,
                     "p": (1 + np.sum(np.asarray(null) >= distance)) / (n_splits + 1)})  # fmt: skip
    return pd.DataFrame(rows, columns=["layer", "distance", "null_median", "null_lower", "null_upper", "ratio", "p"])


def choose_hosts(groups, n, seed, name):
    """Return a mask of the rows of randomly chosen hosts, at least `n` of them and at most half of all."""
    names, index, size = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(streams.hash_order(seed, name, names))
    total = np.cumsum(size[order])
    last = np.searchsorted(total, min(n, len(groups) // 2)) + 1
    return np.isin(index, order[: min(last, len(order) - 1)])


def score_held_out(features, labels, groups):
    """Return out-of-fold scores of a linear probe, folds by group, for any number of labellings of the same rows.

    Parameters
    ----------
    features : ndarray of shape (N, D)
    labels : array_like of bool, shape (N,) or (N, P)
    groups : array_like of shape (N,)

    Returns
    -------
    ndarray of the shape of `labels`

    Notes
    -----
    The probe is a ridge regression on the labels (Fisher's discriminant, regularised), so that one factorisation serves
    all permutations. Folds do not depend on the labels and the intercept is left out of the score: observed and
    permuted labels go through the same procedure, as a permutation test demands.
    """
    y = np.asarray(labels, dtype=float)
    score = np.empty(y.shape)
    for train, test in GroupKFold(N_FOLDS).split(features, groups=stats.encode_groups(groups)):
        scaler = StandardScaler().fit(features[train])
        first, second = (np.clip(scaler.transform(features[rows]), -MAX_DEVIATION, MAX_DEVIATION)
                         for rows in (train, test))  # fmt: skip
        score[test] = (second - first.mean(axis=0)) @ Ridge(alpha=PENALTY).fit(first, y[train]).coef_.T
    return score


def measure_auc(labels, score):
    """Return the area under the ROC curve of each column, mid-ranks for ties; labels and score (N,) or (N, P)."""
    labels = np.asarray(labels, dtype=bool)
    m, n = labels.sum(axis=0), (~labels).sum(axis=0)
    return (np.sum(rankdata(score, axis=0) * labels, axis=0) - 0.5 * m * (m + 1)) / (m * n)


def probe_classes(lenses, injections, lens_groups, injection_groups, config, name, n_permutations=N_PERMUTATIONS):
    """Classifier two-sample test: can a linear probe tell lenses from injections?

    Parameters
    ----------
    lenses, injections : ndarray of shape (N, D) and (M, D)
        Features; NaN becomes the median of all rows.
    lens_groups, injection_groups : array_like of shape (N,) and (M,)
        Host of each row; a host is never on both sides of a fold.
    config : lensaudit.config.Config
    name : str
        Names the random stream.
    n_permutations : int

    Returns
    -------
    dict
        auc, lower, upper (95 %, groups resampled), null_auc, null_lower, null_upper (median and 95 % range of labels
        permuted among groups), p (share of permutations with at least this AUC, the observed one counted), n_lenses,
        n_injections. NaN with fewer than ten groups in a class.
    """
    x = fill_missing(np.vstack([lenses, injections]))
    label = np.append(np.ones(len(lenses), bool), np.zeros(len(injections), bool))
    groups = stats.encode_groups(np.append([f"l{g}" for g in lens_groups], [f"i{g}" for g in injection_groups]))
    keys = ("auc", "lower", "upper", "null_auc", "null_lower", "null_upper", "p")
    out = dict.fromkeys(keys, np.nan) | {"n_lenses": len(lenses), "n_injections": len(injections)}
    n_groups = groups.max(initial=-1) + 1
    is_lens = np.bincount(groups[label], minlength=n_groups) > 0
    if min(is_lens.sum(), (~is_lens).sum()) < 2 * N_FOLDS:
        return out
    generator = streams.make_stream(config.seed, "audit/realism/c2st", name)
    shuffled = [is_lens[groups], *(generator.permutation(is_lens)[groups] for _ in range(n_permutations))]
    score = score_held_out(x, np.column_stack(shuffled), groups)
    auc, *null = measure_auc(np.column_stack(shuffled), score)
    ranking = stats.Ranking(score[:, 0], label)
    draws = stats.cluster_bootstrap(ranking.auc, groups, config.realism.n_bootstrap, generator)
    bounds = dict(zip(keys[1:3], stats.summarise_draws(draws), strict=True))
    bounds |= dict(zip(("null_lower", "null_auc", "null_upper"), np.quantile(null, [0.025, 0.5, 0.975]), strict=True))
    return out | bounds | {"auc": auc, "p": (1 + np.sum(np.asarray(null) >= auc)) / (n_permutations + 1)}


def fill_missing(features):
    """Return the features with NaN replaced by the median of their column (0 in a column without any value)."""
    features = np.asarray(features, dtype=float)
    good = np.isfinite(features)
    middle = np.nanmedian(np.where(good, features, np.where(good.any(axis=0), np.nan, 0.0)), axis=0)
    return np.where(good, features, middle)


def measure_power(extract, groups, n_lenses, config, name, shifts=PLANTED_SHIFTS, n_splits=N_SPLITS):
    """Measure which planted shifts the classifier test detects, among injections alone.

    Parameters
    ----------
    extract : callable
        ``extract(shift) -> ndarray of shape (N, D)``: features of all injections with the shift planted.
    groups : array_like of shape (N,)
        Host of each injection.
    n_lenses : int
        Rows that play the lenses: as many as there are lenses in the test itself (at most half).
    config : lensaudit.config.Config
    name : str
        Names the random choices of hosts.
    shifts : sequence of float
        Ascending.
    n_splits : int

    Returns
    -------
    pandas.DataFrame
        shift, auc (median over the choices), power (share of the choices whose AUC exceeds the 95th percentile of the
        AUC without a shift), one row per shift, the first for no shift. Empty with fewer than ten hosts on a side.
    """
    groups = stats.encode_groups(groups)
    still = fill_missing(extract(0.0))
    stream = f"audit/realism/power/{name}"
    halves = [choose_hosts(groups, n_lenses, config.seed, f"{stream}/{k}") for k in range(2 * n_splits)]
    if any(len(np.unique(groups[side])) < 2 * N_FOLDS for half in halves for side in (half, ~half)):
        return pd.DataFrame(columns=["shift", "auc", "power"])

    chosen = np.column_stack(halves)
    null = measure_auc(chosen, score_held_out(still, chosen, groups))
    limit = np.quantile(null, 1.0 - SIZE)
    rows = [(0.0, np.median(null), np.mean(null > limit))]
    for shift in shifts:
        moved = fill_missing(extract(shift))
        seen = np.array([measure_auc(half, score_held_out(np.where(half[:, None], moved, still), half, groups))
                         for half in halves[:n_splits]])  # fmt: skip
        rows.append((shift, np.median(seen), np.mean(seen > limit)))
    return pd.DataFrame(rows, columns=["shift", "auc", "power"])


def find_smallest(power):
    """Return the smallest shift of `measure_power` detected in 80 % of the choices (float), NaN when none is."""
    seen = power[(power["shift"] > 0) & (power["power"] >= POWER_LEVEL)]
    return float(seen["shift"].min()) if len(seen) else np.nan
