"""Two-sample distances between lenses and injections: weighted KS, Frechet, and a classifier test with its power."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lensaudit import rng as streams

N_FOLDS = 5
PLANTED_SHIFTS = (0.1, 0.2, 0.4, 0.8)  # mag, in arc g - r
RIDGE = 0.01  # inverse penalty of the probe, per standardised feature


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


def frechet_distance(a, b, n_components=16):
    """Return the Frechet distance of two feature sets in their leading joint components.

    Parameters
    ----------
    a, b : ndarray of shape (N, D) and (M, D)
    n_components : int
        Components of the pooled, standardised features; fewer than the smaller sample needs for a covariance.

    Notes
    -----
    |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)), Dowson & Landau 1982; a distance, not a test.
    """
    pooled = np.vstack([a, b])
    scale = np.maximum(pooled.std(axis=0), 1e-9)
    pooled = (pooled - pooled.mean(axis=0)) / scale
    _, _, axes = np.linalg.svd(pooled, full_matrices=False)
    projected = pooled @ axes[: min(n_components, len(axes), max(2, min(len(a), len(b)) // 4))].T
    x, y = projected[: len(a)], projected[len(a) :]
    first, second = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
    root = np.sqrt(np.maximum(np.linalg.eigvals(first @ second).real, 0.0)).sum()
    gap = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
    return float(max(gap + np.trace(first) + np.trace(second) - 2 * root, 0.0))


def score_held_out(features, label, groups):
    """Return out-of-fold scores of a linear probe, folds by group; NaN for rows of folds with one class."""
    folds = StratifiedGroupKFold(min(N_FOLDS, len(np.unique(np.asarray(groups)[label]))))
    score = np.full(len(label), np.nan)
    for train, test in folds.split(features, label, groups):
        if len(np.unique(label[train])) < 2:
            continue
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=RIDGE, class_weight="balanced", max_iter=300))
        probe.fit(features[train], label[train])
        centred = probe.decision_function(features[test])
        score[test] = centred
    return score


def probe_classes(lenses, injections, lens_groups, injection_groups, config, name):
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

    Returns
    -------
    dict
        auc, lower, upper (95 %, groups resampled), null_auc (labels permuted among groups), n_lenses, n_injections.
    """
    x = np.vstack([lenses, injections]).astype(float)
    middle = np.nan_to_num(np.nanmedian(x, axis=0))
    x = np.where(np.isfinite(x), x, middle)
    label = np.append(np.ones(len(lenses), bool), np.zeros(len(injections), bool))
    groups = np.append([f"l{g}" for g in lens_groups], [f"i{g}" for g in injection_groups])
    out = {"auc": np.nan, "lower": np.nan, "upper": np.nan, "null_auc": np.nan, "n_lenses": len(lenses),
           "n_injections": len(injections)}  # fmt: skip
    if len(np.unique(groups[label])) < 2 * N_FOLDS or len(np.unique(groups[~label])) < 2 * N_FOLDS:
        return out
    score = score_held_out(x, label, groups)
    good = np.isfinite(score)
    generator = streams.make_stream(config.seed, "audit/realism/c2st", name)
    draws = _bootstrap_auc(label[good], score[good], groups[good], config.realism.n_bootstrap, generator)
    names, index = np.unique(groups, return_inverse=True)
    share = np.array([label[index == k].mean() for k in range(len(names))])
    shuffled = generator.permutation(share)[index] > 0.5
    null = score_held_out(x, shuffled, groups)
    seen = np.isfinite(null)
    lower, upper = np.quantile(draws, [0.025, 0.975])
    return out | {"auc": roc_auc_score(label[good], score[good]), "lower": lower, "upper": upper,
                  "null_auc": roc_auc_score(shuffled[seen], null[seen])}  # fmt: skip


def _bootstrap_auc(label, score, groups, n, generator):
    names, index = np.unique(groups, return_inverse=True)
    draws = []
    for _ in range(n):
        weight = np.bincount(generator.integers(0, len(names), len(names)), minlength=len(names))[index]
        if weight[label].sum() and weight[~label].sum():
            draws.append(roc_auc_score(label, score, sample_weight=weight))
    return np.asarray(draws)


def find_power(injections, groups, column, config, name, shifts=PLANTED_SHIFTS):
    """Return the smallest planted shift of one feature that the probe detects among injections alone.

    Half of the hosts play the lenses; their feature `column` is shifted. Detected means that the lower 95 % bound of
    the AUC exceeds 0.5. NaN when no shift is detected.
    """
    groups = np.asarray(groups).astype(str)
    half = streams.hash_order(config.seed, f"audit/realism/power/{name}", groups) < 0.5
    for shift in shifts:
        moved = np.array(injections, dtype=float)
        moved[half, column] += shift
        row = probe_classes(moved[half], moved[~half], groups[half], groups[~half], config, f"{name}/{shift:g}")
        if row["lower"] > 0.5:
            return float(shift)
    return np.nan
