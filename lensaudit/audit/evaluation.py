"""Evaluation on the held-out split: scores joined by key, metrics with intervals, strata, one path-free summary.

Selection happens on validation, everything here on test. Recall is of labelled lenses; tiers and visibility are kept
apart; rates of false positives are those of the parent population (see `thresholds`). Metrics that the sample cannot
give are refused with the reason.

Left for later: paired tests between models and seeds (the tests themselves stand in `stats`), the independence
experiment, ensembles.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from lensaudit.artifacts import UserError, read_table
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
)

KEYS = ["galaxy_id", "cutout_path"]
SEEING_EDGES = (0.0, 1.1, 1.4, np.inf)  # psfsize_r [arcsec], about the terciles of the simulated and the real survey
DEPTH_EDGES = (0.0, 23.5, 24.5, np.inf)  # depth_r [AB mag]
MIN_CLASS = 10  # objects of each class below which a stratum's AUC is refused
TOP_FRACTIONS = (0.001, 0.003, 0.01)
VISIBILITY_CUTS = (1.0, 2.0, 3.0, 4.0, 5.0)  # arc_snr


def read_scores(path):
    """Read a score table from Parquet or CSV; it needs the two keys and ``logit`` or ``score``."""
    path = Path(path)
    if path.suffix.lower() != ".csv":
        return read_table(path)
    try:
        return pd.read_csv(path, dtype=dict.fromkeys(KEYS, str))
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path.name}: not a readable CSV table ({error}); write it with a header line") from None


def join_scores(manifest, scores):
    """Join scores to the manifest by key, never by position.

    Parameters
    ----------
    manifest : DataFrame
        With ``galaxy_id`` and ``cutout_path``, one row per object.
    scores : DataFrame
        With the same keys and ``logit`` or ``score`` (a probability); any order.

    Returns
    -------
    DataFrame
        The manifest sorted by key, with float64 ``logit`` and ``score``.

    Raises
    ------
    UserError
        For a missing column, a missing, duplicate or extra key, or a score that is not finite.
    """
    for name, table in (("manifest", manifest), ("score table", scores)):
        absent = [c for c in KEYS if c not in table]
        if absent:
            raise UserError(f"{name}: column(s) {', '.join(absent)} missing; scores are joined by {' and '.join(KEYS)}")
        twice = table.duplicated(KEYS)
        if twice.any():
            raise UserError(f"{name}: {int(twice.sum())} duplicate key(s), first {table.loc[twice, KEYS[0]].iloc[0]}; "
                            "keep one row per object")  # fmt: skip
    if "logit" not in scores and "score" not in scores:
        raise UserError("score table: column logit or score missing; give one of them")
    values = scores["logit"] if "logit" in scores else logit(np.clip(scores["score"].astype(float), 1e-12, 1 - 1e-12))
    given = scores[KEYS].assign(logit=np.asarray(values, dtype=float))
    table = manifest.drop(columns=["logit", "score"], errors="ignore")
    table = table.merge(given, on=KEYS, how="outer", indicator=True)
    for side, text in (("left_only", "without a score"), ("right_only", "scored but not in the manifest")):
        wrong = table.loc[table["_merge"] == side, KEYS[0]]
        if len(wrong):
            raise UserError(f"{len(wrong)} object(s) {text}, first {wrong.iloc[0]}; score exactly the manifest's rows")
    bad = ~np.isfinite(table["logit"])
    if bad.any():
        raise UserError(f"score of {table.loc[bad, KEYS[0]].iloc[0]} is not finite; {int(bad.sum())} such row(s)")
    table = table.drop(columns="_merge").sort_values(KEYS, ignore_index=True)
    return table.assign(score=expit(table["logit"]))


def label_strata(table):
    """Add ``seeing_bin`` and ``depth_bin`` to a joined table; depth comes from psfdepth_r when not given.

    depth_r = 22.5 - 2.5 log10(5 / sqrt(psfdepth_r)), the survey's 5-sigma point-source depth, not extinction-corrected.
    """
    table = table.copy()
    if "depth_r" not in table:
        with np.errstate(divide="ignore", invalid="ignore"):
            table["depth_r"] = 22.5 - 2.5 * np.log10(5.0 / np.sqrt(table["psfdepth_r"].astype(float)))
    for name, column, edges, unit in (("seeing_bin", "psfsize_r", SEEING_EDGES, "arcsec"),
                                      ("depth_bin", "depth_r", DEPTH_EDGES, "mag")):  # fmt: skip
        inner = edges[1:-1]
        names = [f"< {inner[0]:g} {unit}", f"{inner[0]:g}-{inner[1]:g} {unit}", f">= {inner[1]:g} {unit}"]
        table[name] = pd.cut(table[column], edges, labels=names, right=False).astype(str)
    return table


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
    ("confuser proxy", ["confuser_category"]), ("confuser label", ["confuser_label"]),
)  # fmt: skip


def measure_strata(test, thresholds, point, config):
    """AUC, recall, false-positive rate and calibration by condition, TYPE, pool and confuser category.

    Parameters
    ----------
    test : DataFrame
        From `label_strata`. ``confuser_category`` holds proxies; ``confuser_label`` human labels, when present.
    thresholds : dict
    point : str
        Operating point of recall and false-positive rate.
    config : lensaudit.config.EvaluationConfig

    Returns
    -------
    DataFrame
        ``axis``, ``stratum``, ``n_positive``, ``n_negative``, then ``auc``, ``recall``, ``fpr`` with ``_lower``,
        ``_upper`` (95 %), ``ece``, ``mce``, and ``refused`` with the reasons for what is NaN. Negatives carry their
        inverse inclusion probability in ``fpr``; along the conditions and TYPE only N1 counts there.
    """
    threshold = thresholds[point]["threshold"]
    inclusion = test["inclusion_probability"].to_numpy(dtype=float)
    weights = np.where(test["label"] == 0, 1.0 / np.where(inclusion > 0, inclusion, 1.0), 0.0)
    rows = []
    for axis, columns in STRATA:
        if not set(columns) <= set(test):
            continue
        of_negatives = axis in ("pool", "confuser proxy", "confuser label")
        used = weights if of_negatives else parent_weights(test)
        members = test.assign(_weight=used)
        members = members[(members["label"] == 0) & (members[columns] != "").all(axis=1)] if of_negatives else members
        for stratum, part in members.groupby(columns, observed=True, sort=True):
            name = " / ".join(str(s) for s in stratum)
            rows.append({"axis": axis, "stratum": name} | _measure_stratum(part, threshold, config.n_bins))
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
