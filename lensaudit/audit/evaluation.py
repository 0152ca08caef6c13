"""Evaluation on the held-out split: metrics with intervals, strata, one path-free summary.

Selection happens on validation, everything here on test. Recall is of labelled lenses; tiers and visibility are kept
apart; rates of false positives are those of the parent population (see `thresholds`). Metrics that the sample cannot
give are refused with the reason.

Left for later: paired tests between models and seeds (the tests themselves stand in `stats`), the independence
experiment, ensembles.
"""

import numpy as np
import pandas as pd

from lensaudit.audit.scores import order_bins
from lensaudit.audit.thresholds import list_points, parent_weights, weigh_fraction
from lensaudit.rng import make_stream
from lensaudit.stats import (
    Ranking,
    auc_interval,
    cluster_bootstrap,
    expected_calibration_error,
    jeffreys_interval,
    summarise_bin,
    summarise_draws,
    weighted_quantile,
)

MIN_CLASS = 10  # objects of each class below which a stratum's AUC is refused
TOP_FRACTIONS = (0.001, 0.003, 0.01)
VISIBILITY_CUTS = (1.0, 2.0, 3.0, 4.0, 5.0)  # arc_snr


def measure_overall(test, config, seed):
    """AUC, average precision, TPR0 and TPR10 with 68 and 95 % bootstrap intervals over regions.

    Parameters
    ----------
    test : DataFrame
        Joined test table.
    config : lensaudit.config.EvaluationConfig
    seed : int

    Returns
    -------
    DataFrame
        ``metric``, ``value``, ``lower``, ``upper``, ``lower_68``, ``upper_68``, ``note``.

    Notes
    -----
    AUC: labelled lenses against N1 in its parent mix. The others are counts on the test sample as drawn (N1 and N2),
    whose composition they depend on.
    """
    label, weights = test["label"].to_numpy(), parent_weights(test)
    keep = (label == 1) | (weights > 0)
    weighted = Ranking(test["logit"][keep], label[keep], np.where(label == 1, 1.0, weights)[keep])
    plain = Ranking(test["logit"], label)
    groups = test["healpix_128"].to_numpy()
    plans = [
        ("auc", weighted.auc, groups[keep], "lenses against N1, inverse-inclusion weighted"),
        ("average_precision", plain.average_precision, groups, "at the test sample's ratio of lenses to galaxies"),
        ("tpr0", lambda m=None: plain.tpr_at_false_positives(0, m), groups, "recall without any false positive"),
        ("tpr10", lambda m=None: plain.tpr_at_false_positives(10, m), groups, "recall at 10 false positives"),
    ]
    rows = []
    for name, function, members, note in plans:
        draws = cluster_bootstrap(function, members, config.n_bootstrap, make_stream(seed, f"evaluation/{name}"))
        (lower, upper), (lower_68, upper_68) = summarise_draws(draws), summarise_draws(draws, 0.68)
        rows.append({"metric": name, "value": float(function()[0]), "lower": float(lower), "upper": float(upper),
                     "lower_68": float(lower_68), "upper_68": float(upper_68), "note": note})  # fmt: skip
    return pd.DataFrame(rows)


def list_subsets(test, visibility_cut=2.0):
    """Return the subsets of labelled lenses on which recall is given, as name -> boolean mask.

    Tiers A, B and S; Tier A by visibility (``arc_snr``) and for a sweep of cuts; the fainter half of the arcs and the
    smaller half of the arc radii where those are measured.
    """
    lens, tier = test["label"] == 1, test["tier"]
    subsets = {"all labelled lenses": lens} | {f"Tier {t}": lens & (tier == t) for t in ("A", "B", "S")}
    first = subsets["Tier A"]
    if "is_independent" in test:
        subsets["Tier A, also listed by an independent channel"] = first & test["is_independent"].astype(bool)
    if "arc_snr" in test:
        snr = test["arc_snr"]
        subsets["Tier A, visible"] = first & (snr >= visibility_cut)
        subsets["Tier A, invisible"] = first & (snr < visibility_cut)
        subsets["Tier A, faint arcs (lower half)"] = first & (snr < snr[first].median())
        subsets |= {f"Tier A, arc_snr >= {c:g}": first & (snr >= c) for c in VISIBILITY_CUTS}
    if "arc_radius" in test:
        radius = test["arc_radius"]
        subsets["Tier A, small arc radius (lower half)"] = first & (radius < radius[first].median())
    return subsets


def measure_recall(test, thresholds, draws, config, seed):
    """Recall of each subset of lenses at each operating point.

    Parameters
    ----------
    test : DataFrame
        Joined test table; ``arc_snr`` and ``arc_radius`` when measured.
    thresholds, draws
        From `thresholds.set_thresholds`.
    config : lensaudit.config.EvaluationConfig
    seed : int

    Returns
    -------
    DataFrame
        ``subset``, ``point``, ``n``, ``k``, ``recall``; ``lower``, ``upper`` (95 %) and ``lower_68``, ``upper_68`` of
        the Jeffreys posterior at the fixed threshold; ``lower_total``, ``upper_total`` (95 %) with the error of
        the threshold drawn as well.
    """
    rows = []
    for subset, mask in list_subsets(test, config.visibility_cut).items():
        values = np.sort(test.loc[mask, "logit"].to_numpy())
        n = len(values)
        for point in list_points(thresholds):
            k = int(np.sum(values > thresholds[point]["threshold"]))
            row = {"subset": subset, "point": point, "n": n, "k": k, "recall": k / n if n else np.nan}
            row["lower"], row["upper"] = jeffreys_interval(k, n)
            row["lower_68"], row["upper_68"] = jeffreys_interval(k, n, 0.68)
            k_draws = n - np.searchsorted(values, draws[point].to_numpy(), side="right")
            rng = make_stream(seed, "evaluation/recall", f"{subset}/{point}")
            row["lower_total"], row["upper_total"] = summarise_draws(rng.beta(k_draws + 0.5, n - k_draws + 0.5))
            rows.append(row)
    return pd.DataFrame(rows)


STRATA = (
    ("seeing x depth", ["seeing_bin", "depth_bin"]), ("seeing", ["seeing_bin"]), ("depth", ["depth_bin"]),
    ("TYPE", ["type"]), ("nobs_z", ["nobs_z_bin"]), ("pool", ["pool"]),
    ("confuser proxy", ["confuser_proxy"]), ("confuser label", ["confuser_label"]),
)  # fmt: skip


def measure_strata(test, thresholds, point, config):
    """AUC, recall, false-positive rate and calibration by condition, TYPE, pool and confuser category.

    Parameters
    ----------
    test : DataFrame
        From `scores.label_strata`; confusers by catalogue proxy and by human label are apart.
    thresholds : dict
    point : str
        Operating point of recall and false-positive rate.
    config : lensaudit.config.EvaluationConfig

    Returns
    -------
    DataFrame
        ``axis``, ``stratum``, ``n_positive``, ``n_negative``, then ``auc``, ``recall``, ``fpr`` with ``_lower``,
        ``_upper`` (95 %), ``ece``, ``mce``, and ``refused`` with the reasons for what is NaN. Negatives carry their
        inverse inclusion probability in ``fpr``, and only N1 counts, which holds confusers at their natural rate; N2,
        a further draw of confusers, has its own row along the pools and enters nothing else there.
    """
    threshold = thresholds[point]["threshold"]
    inclusion = test["inclusion_probability"].to_numpy(dtype=float)
    weights = np.where(test["label"] == 0, 1.0 / np.where(inclusion > 0, inclusion, 1.0), 0.0)
    rows = []
    for axis, columns in STRATA:
        if not set(columns) <= set(test):
            continue
        of_negatives = axis in ("pool", "confuser proxy", "confuser label")
        members = test.assign(_weight=weights if axis == "pool" else parent_weights(test))
        if of_negatives:
            members = members[(members["_weight"] > 0) & (members[columns] != "").all(axis=1)]
        parts = {" / ".join(str(s) for s in stratum): part for stratum, part in members.groupby(columns)}
        rows += [{"axis": axis, "stratum": name} | _measure_stratum(parts[name], threshold, config.n_bins)
                 for name in sorted(parts, key=order_bins)]  # fmt: skip
    return pd.DataFrame(rows)


def _measure_stratum(part, threshold, n_bins):
    label, value = part["label"].to_numpy(), part["logit"].to_numpy()
    n_positive, n_negative = int(label.sum()), int((label == 0).sum())
    row, refused = {"n_positive": n_positive, "n_negative": n_negative}, []
    if min(n_positive, n_negative) >= MIN_CLASS:
        row["auc"], row["auc_lower"], row["auc_upper"] = auc_interval(label, value)
    else:
        row["auc"] = row["auc_lower"] = row["auc_upper"] = np.nan
        few = f"fewer than {MIN_CLASS} objects of a class"
        refused.append("auc: " + ("single class" if min(n_positive, n_negative) == 0 else few))
    k = int(np.sum(value[label == 1] > threshold))
    row["recall"] = k / n_positive if n_positive else np.nan
    row["recall_lower"], row["recall_upper"] = jeffreys_interval(k, n_positive) if n_positive else (np.nan, np.nan)
    negative = (label == 0) & (part["_weight"].to_numpy() > 0)
    row["fpr"], row["fpr_lower"], row["fpr_upper"] = weigh_fraction(
        value[negative] > threshold, part["_weight"].to_numpy()[negative]
    )
    calibration = expected_calibration_error(part["score"], label, n_bins)
    row["ece"], row["mce"] = calibration["ece"], calibration["mce"]
    if calibration["reason"]:
        refused.append("ece: " + calibration["reason"])
    return row | {"refused": "; ".join(refused)}


def trace_recall(test, config, subsets=("Tier A", "Tier B"), n_points=60):
    """Recall against the false-positive rate of the parent population, down to the rate the count rule allows.

    Parameters
    ----------
    test : DataFrame
    config : lensaudit.config.EvaluationConfig
    subsets : sequence of str
        Names of `list_subsets`.
    n_points : int

    Returns
    -------
    DataFrame
        ``subset``, ``fpr``, ``threshold``, ``n``, ``recall``, ``lower``, ``upper`` (95 % Jeffreys). The thresholds here
        are quantiles of the *test* negatives: a curve to look at, not operating points.
    """
    weights = parent_weights(test)
    values = test["logit"].to_numpy()
    lowest = config.min_exceedances / max(int((weights > 0).sum()), 1)
    fprs = np.geomspace(min(lowest, 0.2), 0.3, n_points)
    cuts = weighted_quantile(values[weights > 0], 1.0 - fprs, weights[weights > 0])
    masks, rows = list_subsets(test, config.visibility_cut), []
    for subset in subsets:
        lenses = values[masks[subset].to_numpy()]
        k, n = (lenses[None] > cuts[:, None]).sum(axis=1), len(lenses)
        lower, upper = jeffreys_interval(k, n)
        rows.append(pd.DataFrame({"subset": subset, "fpr": fprs, "threshold": cuts, "n": n,
                                  "recall": k / n if n else np.nan, "lower": lower, "upper": upper}))  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def list_rates(recall, thresholds, subsets=("Tier A", "Tier B")):
    """Put the achieved test rates beside the recall of the fixed-rate operating points, for the curve's figure."""
    rates = [p for p in thresholds if thresholds[p]["fpr"]]
    rows = recall[recall["subset"].isin(subsets) & recall["point"].isin(rates)]
    achieved = pd.DataFrame({p: {"achieved_fpr": e["achieved_test_fpr"], "fpr_lower": e["achieved_test_fpr_lower"],
                                 "fpr_upper": e["achieved_test_fpr_upper"]}
                             for p, e in thresholds.items() if e["threshold"] is not None}).T  # fmt: skip
    return rows.merge(achieved, left_on="point", right_index=True)


COVARIATES = ("arc_radius", "psfsize_r", "depth_r", "arc_snr")


def measure_recall_bins(test, thresholds, points, covariates=COVARIATES, n_bins=4):
    """Recall of Tier-A lenses in bins of equal count of each covariate.

    Returns
    -------
    DataFrame
        ``covariate``, ``low``, ``centre`` (median), ``high``, ``point``, ``n``, ``k``, ``recall``, ``lower``, ``upper``
        (95 % Jeffreys). Lenses without the covariate are left out.
    """
    lenses, rows = test[(test["label"] == 1) & (test["tier"] == "A")], []
    for name in [c for c in covariates if c in lenses]:
        part = lenses[np.isfinite(lenses[name])].sort_values([name, "galaxy_id"])
        for chosen in [c for c in np.array_split(np.arange(len(part)), n_bins) if len(c)]:
            values, logits = part[name].to_numpy()[chosen], part["logit"].to_numpy()[chosen]
            for point in points:
                k, n = int((logits > thresholds[point]["threshold"]).sum()), len(chosen)
                lower, upper = jeffreys_interval(k, n)
                rows.append({"covariate": name, "low": values.min(), "centre": np.median(values), "high": values.max(),
                             "point": point, "n": n, "k": k, "recall": k / n, "lower": float(lower),
                             "upper": float(upper)})  # fmt: skip
    columns = ["covariate", "low", "centre", "high", "point", "n", "k", "recall", "lower", "upper"]
    return pd.DataFrame(rows, columns=columns)


def measure_reliability(test, config):
    """Reliability of the score over equal-frequency bins and at its top.

    Returns
    -------
    dict
        ``ece``, ``mce``, ``reason``, ``bins`` of `stats.expected_calibration_error`, and ``top``: the same numbers for
        the highest 0.1, 0.3 and 1 % of the test sample. All hold for the test sample's ratio of lenses to galaxies,
        far above the sky's; they are no calibrated lens probabilities.
    """
    result = expected_calibration_error(test["score"], test["label"], config.n_bins)
    order = np.argsort(-test["logit"].to_numpy(), kind="stable")
    score, label = test["score"].to_numpy()[order], test["label"].to_numpy()[order]
    top = []
    for fraction in TOP_FRACTIONS:
        n = round(fraction * len(order))
        if n:
            top.append({"top": fraction} | summarise_bin(score[:n], label[:n], np.ones(n)))
    return result | {"top": top}


def measure_precision(test, thresholds):
    """Precision of the test sample as drawn at each operating point, with its 95 % Jeffreys interval.

    It is the precision at the sample's own ratio of lenses to galaxies; what a survey gets is `prevalence`'s table.
    """
    rows = []
    for point in list_points(thresholds):
        selected = test["logit"] > thresholds[point]["threshold"]
        n, k = int(selected.sum()), int((selected & (test["label"] == 1)).sum())
        lower, upper = jeffreys_interval(k, n)
        rows.append({"point": point, "n_selected": n, "n_lenses": k, "precision": k / n if n else np.nan,
                     "lower": lower, "upper": upper})  # fmt: skip
    return pd.DataFrame(rows)


def collect_refused(thresholds, strata):
    """Return what was not computed, as records of ``metric``, ``where``, ``reason``."""
    refused = [{"metric": "recall", "where": name, "reason": entry["reason"]}
               for name, entry in thresholds.items() if entry["threshold"] is None]  # fmt: skip
    for row in strata[strata["refused"] != ""].itertuples():
        for part in row.refused.split("; "):
            metric, reason = part.split(": ", 1)
            refused.append({"metric": metric, "where": f"{row.axis}: {row.stratum}", "reason": reason})
    return refused


def summarise_evaluation(frozen, test, thresholds, overall, recall, strata, reliability, **tables):
    """Assemble `evaluation.json`: one path-free record of counts, thresholds, metrics with bounds and refusals.

    Parameters
    ----------
    frozen : dict
        From `thresholds.freeze_detector`.
    test : DataFrame
    thresholds, overall, recall, strata, reliability
        From the functions above.
    **tables : DataFrame or dict
        Further results, kept under their names.

    Returns
    -------
    dict
    """
    negative = test[test["label"] == 0]
    counts = {"test": len(test), "lenses": int(test["label"].sum()), "galaxies": len(negative)}
    counts |= {f"tier_{t}": int(((test["label"] == 1) & (test["tier"] == t)).sum()) for t in ("A", "B", "S")}
    counts |= {f"pool_{p}": int(n) for p, n in negative["pool"].value_counts().sort_index().items()}
    extra = {k: v.to_dict("records") if isinstance(v, pd.DataFrame) else v for k, v in tables.items()}
    return {"detector": frozen, "counts": counts, "thresholds": thresholds,
            "metrics": overall.set_index("metric").to_dict("index"), "recall": recall.to_dict("records"),
            "reliability": reliability, "strata": strata.to_dict("records"),
            "refused": collect_refused(thresholds, strata)} | extra  # fmt: skip
