"""Does the recall hold elsewhere: regions of the sky, distance to training objects, wrong labels.

The spatial cross-validation here divides the *scores of the one locked model* by region; it shows how much the metrics
differ from field to field, not how much the training does. Retraining per fold is left for later.
"""

import numpy as np
import pandas as pd

from lensaudit.audit.thresholds import parent_weights, weigh_fraction
from lensaudit.catalogs.sphere import find_nearest
from lensaudit.catalogs.splits import LEAK_RADII
from lensaudit.rng import hash_order
from lensaudit.stats import MIN_DELONG, auc_interval, jeffreys_interval

REGION_SHIFT = 6  # nested HEALPix nside 128 -> nside 16, pixels of 3.7 degrees
LEAK_EDGES = (0.0, *LEAK_RADII, np.inf)  # arcsec
WRONG_RATES = (0.0, 0.1, 0.2, 0.3, 0.4)
CONFUSER_KINDS = ("ring", "spiral", "merger")


def assign_folds(healpix_128, n_folds, seed):
    """Put whole regions (nested nside 16) into folds of nearly equal numbers of objects.

    Parameters
    ----------
    healpix_128 : array_like of int, shape (N,)
        Nested pixels.
    n_folds : int
    seed : int

    Returns
    -------
    ndarray of int, shape (N,)
        Fold 0 .. n_folds - 1; the regions come in the order of their hashes, so the folds ignore row order.
    """
    region = np.asarray(healpix_128, dtype=np.int64) >> REGION_SHIFT
    names, code, size = np.unique(region, return_inverse=True, return_counts=True)
    order = np.argsort(hash_order(seed, "evaluation/folds", [str(r) for r in names]), kind="stable")
    middle = np.cumsum(size[order]) - 0.5 * size[order]
    fold = np.empty(len(names), dtype=int)
    fold[order] = np.minimum((middle * n_folds / size.sum()).astype(int), n_folds - 1)
    return fold[code.reshape(-1)]


def cross_validate_regions(test, thresholds, point, seed, n_folds=5):
    """AUC, recall and false-positive rate of the locked model's test scores in folds of regions.

    Returns
    -------
    DataFrame
        ``fold``, ``n_lenses``, ``n_negatives``, ``auc``, ``recall``, ``fpr`` with ``_lower``, ``_upper`` (95 %).
    """
    fold, threshold = assign_folds(test["healpix_128"], n_folds, seed), thresholds[point]["threshold"]
    rows = []
    for number in range(n_folds):
        part = test[fold == number]
        label, value, weights = part["label"].to_numpy(), part["logit"].to_numpy(), parent_weights(part)
        lenses = value[label == 1]
        row = {"fold": number, "n_lenses": len(lenses), "n_negatives": int((weights > 0).sum())}
        keep = (label == 1) | (weights > 0)
        enough = min(row["n_lenses"], row["n_negatives"]) >= MIN_DELONG
        row["auc"], row["auc_lower"], row["auc_upper"] = (
            auc_interval(label[keep], value[keep]) if enough else (np.nan,) * 3
        )
        k = int(np.sum(lenses > threshold))
        row["recall"] = k / len(lenses) if len(lenses) else np.nan
        row["recall_lower"], row["recall_upper"] = jeffreys_interval(k, len(lenses))
        row["fpr"], row["fpr_lower"], row["fpr_upper"] = weigh_fraction(
            value[weights > 0] > threshold, weights[weights > 0]
        )
        rows.append(row)
    return pd.DataFrame(rows)


def summarise_folds(folds):
    """Compare the scatter between folds with what counting alone gives.

    Returns
    -------
    DataFrame
        ``metric``, ``mean``, ``scatter`` (standard deviation between folds), ``expected`` (mean half-width of the
        95 % intervals / 1.96).
    """
    rows = []
    for metric in ("auc", "recall", "fpr"):
        half = 0.5 * (folds[f"{metric}_upper"] - folds[f"{metric}_lower"]) / 1.96
        rows.append({"metric": metric, "mean": folds[metric].mean(), "scatter": folds[metric].std(ddof=1),
                     "expected": half.mean()})  # fmt: skip
    return pd.DataFrame(rows)


def compare_recall(recall, folds, silver, points):
    """Put held-out, cross-validated and other-channel recall side by side.

    Parameters
    ----------
    recall, silver : DataFrame
        From `evaluation.measure_recall`, of the test split and of the silver lenses.
    folds : dict of point -> DataFrame
        From `cross_validate_regions`.
    points : sequence of str

    Returns
    -------
    DataFrame
        ``group``, ``name``, ``point``, ``n``, ``recall``, ``lower``, ``upper`` (95 %). Silver lenses are listed by an
        independent channel and kept out of training; most were found by imaging too, and none need be complete.
    """
    held = recall[recall["subset"].isin(["Tier A", "Tier B", "Tier A, visible", "Tier A, invisible"])]
    parts = [held.assign(group="held-out", name="held-out " + held["subset"])]
    for point, table in folds.items():
        parts.append(table.assign(group="folds", name="region fold " + table["fold"].astype(str), point=point,
                                  n=table["n_lenses"], lower=table["recall_lower"],
                                  upper=table["recall_upper"]))  # fmt: skip
    other = silver[(silver["subset"] == "all labelled lenses") & (silver["n"] > 0)]
    parts.append(other.assign(group="other channel", name="other-channel lenses (silver)"))
    table = pd.concat(parts, ignore_index=True)
    table = table[table["point"].isin(points) & (table["n"] > 0)]
    return table[["group", "name", "point", "n", "recall", "lower", "upper"]].reset_index(drop=True)


def measure_leaks(test, train, thresholds, point):
    """Recall of test lenses by their distance to the nearest training object.

    Parameters
    ----------
    test, train : DataFrame with ``ra``, ``dec`` [deg]
    thresholds : dict
    point : str

    Returns
    -------
    DataFrame
        ``bucket`` [arcsec], ``n``, ``k``, ``recall``, ``lower``, ``upper`` (95 %). Lenses in the first bucket, within
        a stamp's diagonal, could share pixels with a training stamp; there must be none.
    """
    lenses = test[test["label"] == 1]
    _, distance = find_nearest(lenses["ra"], lenses["dec"], train["ra"], train["dec"])
    flag = lenses["logit"].to_numpy() > thresholds[point]["threshold"]
    rows = []
    for low, high in zip(LEAK_EDGES[:-1], LEAK_EDGES[1:], strict=True):
        inside = (distance >= low) & (distance < high)
        n, k = int(inside.sum()), int(flag[inside].sum())
        lower, upper = jeffreys_interval(k, n)
        bucket = f"{low:.3g}-{high:.4g}" if np.isfinite(high) else f">= {low:.4g}"
        rows.append({"bucket": bucket, "n": n, "k": k, "recall": k / n if n else np.nan, "lower": lower,
                     "upper": upper})  # fmt: skip
    return pd.DataFrame(rows)


def correct_recall(recall, wrong_rate, confuser_rate):
    """Recall of true lenses when a share of the labels is wrong: (R - w c) / (1 - w), kept in [0, 1].

    Parameters
    ----------
    recall : float or array_like
        Of all labelled lenses.
    wrong_rate : float or array_like
        Share w of labels that are no lens.
    confuser_rate : float or array_like
        Rate c at which such objects are selected.
    """
    recall, wrong_rate = np.asarray(recall, dtype=float), np.asarray(wrong_rate, dtype=float)
    return np.clip((recall - wrong_rate * np.asarray(confuser_rate)) / (1.0 - wrong_rate), 0.0, 1.0)[()]


def measure_label_noise(test, thresholds, point, tier="B", truth=None, truth_kinds=None):
    """Recall of a tier when some of its labels are wrong.

    Parameters
    ----------
    test : DataFrame
        Joined test table.
    thresholds : dict
    point : str
    tier : str
    truth : DataFrame, optional
        Truth table of lenses (simulated sky), with ``galaxy_id``.
    truth_kinds : DataFrame, optional
        Truth table of all galaxies, with ``galaxy_id`` and ``kind``.

    Returns
    -------
    DataFrame
        ``basis``, ``wrong_rate``, ``confuser_rate``, ``recall``, ``lower``, ``upper`` (95 %), ``corrected``,
        ``corrected_lower``, ``corrected_upper``, ``true_recall``. On real data (no truth) a band over wrong rates of
        0-0.4 with the confuser rate of pool N2: a band, never a point. On the simulated sky one row with the true
        wrong rate and the confusers' own rate on test galaxies, and ``true_recall`` to compare with.
    """
    threshold = thresholds[point]["threshold"]
    labelled = test[(test["label"] == 1) & (test["tier"] == tier)]
    flag, n = labelled["logit"].to_numpy() > threshold, len(labelled)
    recall = flag.mean() if n else np.nan
    lower, upper = jeffreys_interval(int(flag.sum()), n)
    negative, true_recall = test["label"] == 0, np.nan
    if truth is None:
        basis, rates, confuser = "band over wrong rates", WRONG_RATES, negative & (test["pool"] == "N2")
    else:
        real = labelled["galaxy_id"].isin(truth["galaxy_id"]).to_numpy()
        basis, rates = "true wrong rate", ((~real).mean() if n else np.nan,)
        kinds = truth_kinds.loc[truth_kinds["kind"].isin(CONFUSER_KINDS), "galaxy_id"]
        confuser = negative & test["galaxy_id"].isin(kinds)
        true_recall = flag[real].mean() if real.any() else np.nan
    rate = float((test.loc[confuser, "logit"] > threshold).mean()) if confuser.any() else np.nan
    rows = [{"basis": basis, "wrong_rate": w, "confuser_rate": rate, "recall": recall, "lower": lower, "upper": upper,
             "corrected": correct_recall(recall, w, rate), "corrected_lower": correct_recall(lower, w, rate),
             "corrected_upper": correct_recall(upper, w, rate), "true_recall": true_recall} for w in rates]  # fmt: skip
    return pd.DataFrame(rows)


def count_contaminants(test, truth, thresholds):
    """Count the undiscovered lenses among the test negatives of N1, in all and above each threshold.

    Only the simulated sky knows them; without a truth table (None) nothing is counted.

    Returns
    -------
    DataFrame
        ``point``, ``n_lenses``, ``n_above``, ``n_exceedances``, ``share`` (inverse-inclusion weighted).
    """
    if truth is None:
        return pd.DataFrame(columns=["point", "n_lenses", "n_above", "n_exceedances", "share"])
    weights = parent_weights(test)
    parent, weights = test[weights > 0], weights[weights > 0]
    is_lens = parent["galaxy_id"].isin(truth["galaxy_id"]).to_numpy()
    rows = []
    for point, entry in thresholds.items():
        if entry["threshold"] is None:
            continue
        above = parent["logit"].to_numpy() > entry["threshold"]
        share = weights[above & is_lens].sum() / weights[above].sum() if above.any() else np.nan
        rows.append({"point": point, "n_lenses": int(is_lens.sum()), "n_above": int((above & is_lens).sum()),
                     "n_exceedances": int(above.sum()), "share": share})  # fmt: skip
    return pd.DataFrame(rows)
