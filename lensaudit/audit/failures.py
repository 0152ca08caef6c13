"""Failure modes: what false positives are, and whether a missed lens was invisible or overlooked.

Left for later: remedies (scheduled centre masking, lens-subtracted input) retrained and compared on the same
injections, and the tested causes of each collapse region.
"""

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError
from lensaudit.audit.scores import order_bins
from lensaudit.audit.thresholds import parent_weights, weigh_fraction
from lensaudit.stats import effective_n, jeffreys_interval, pair_correlation

THETA_E_EDGES = (0.0, 0.75, 1.0, 1.25, 1.5, 2.0, np.inf)  # arcsec
SEEING_EDGES = (0.0, 1.1, 1.4, np.inf)  # psfsize_r [arcsec], those of the evaluation's strata
OUTCOMES = ("found", "found, not seen by D", "missed, seen by D", "missed, not seen by D")
AXES = (
    ("all", []), ("pool", ["pool"]), ("confuser proxy", ["confuser_proxy"]), ("confuser label", ["confuser_label"]),
    ("TYPE", ["type"]), ("seeing", ["seeing_bin"]), ("depth", ["depth_bin"]),
    ("seeing x depth", ["seeing_bin", "depth_bin"]), ("nobs_z", ["nobs_z_bin"]),
)  # fmt: skip


def rate_false_positives(test, thresholds, points):
    """False positives per 10^4 galaxies by pool, confuser category, TYPE and condition.

    Parameters
    ----------
    test : DataFrame
        From `scores.label_strata`.
    thresholds : dict
    points : sequence of str
        Operating points.

    Returns
    -------
    DataFrame
        ``point``, ``axis``, ``stratum``, ``n`` (test galaxies), ``k`` (above the threshold, unweighted),
        ``per_1e4`` with ``lower``, ``upper`` (95 %), ``share`` of all weighted false positives of that axis.

    Notes
    -----
    Galaxies of N1 carry their inverse inclusion probability and stand for the parent population, confusers at their
    natural rate included; N2, a further draw of confusers, counts in its own row of the axis "pool" only, where pools
    overlap and no share is given. Proxies are catalogue cuts, not identifications.
    """
    negative = test[test["label"] == 0]
    own = 1.0 / negative["inclusion_probability"].to_numpy(dtype=float)
    parent, rows = parent_weights(negative), []
    for point in points:
        flag = negative["logit"].to_numpy() > thresholds[point]["threshold"]
        for axis, columns in AXES:
            if not set(columns) <= set(negative):
                continue
            of_pool = axis == "pool"
            table = negative.assign(_flag=flag, _weight=own if of_pool else parent)
            table = table[(table["_weight"] > 0) & (table[columns].fillna("") != "").all(axis=1)]
            total = (table["_flag"] * table["_weight"]).sum()
            parts = {" / ".join(str(v) for v in name): part for name, part in table.groupby(columns)} if columns else {
                axis: table}  # fmt: skip
            for name in sorted(parts, key=order_bins):
                part = parts[name]
                rate, lower, upper = weigh_fraction(part["_flag"], part["_weight"])
                mass = (part["_flag"] * part["_weight"]).sum()
                share = mass / total if total and not of_pool else np.nan
                rows.append({"point": point, "axis": axis, "stratum": name, "n": len(part),
                             "k": int(part["_flag"].sum()), "per_1e4": 1e4 * rate, "lower": 1e4 * lower,
                             "upper": 1e4 * upper, "share": share})  # fmt: skip
    return pd.DataFrame(rows)


def classify_outcomes(logit, detectability, threshold, gate_threshold):
    """Name what became of each lens: found or not by the model, visible or not to the simple gate.

    Parameters
    ----------
    logit, detectability : array_like of shape (N,)
    threshold, gate_threshold : float
        At the same false-positive rate on the same negatives.

    Returns
    -------
    ndarray of str, shape (N,)
        One of `OUTCOMES`.
    """
    found = np.asarray(logit, dtype=float) > threshold
    visible = np.asarray(detectability, dtype=float) > gate_threshold
    return np.select([found & visible, found, visible], OUTCOMES[:3], OUTCOMES[3])


def tabulate_misses(injections, threshold, gate_threshold, theta_E_edges=THETA_E_EDGES, seeing_edges=SEEING_EDGES):
    """Shares of found, overlooked and invisible injections by theta_E and seeing.

    Parameters
    ----------
    injections : DataFrame
        ``logit``, ``detectability``, ``theta_E``, ``psfsize_r`` [arcsec], ``host_index``, ``brickname``.
    threshold, gate_threshold : float
    theta_E_edges, seeing_edges : sequence of float [arcsec]

    Returns
    -------
    DataFrame
        ``theta_E_bin``, ``seeing_bin`` ("all" for the margin over seeing), ``outcome``, ``n``, ``k``, ``n_eff``,
        ``share`` with ``lower``, ``upper`` (95 %, host and brick reuse in n_eff), and ``median_theta_E``.

    Raises
    ------
    UserError
        When a column is missing.
    """
    needed = ("logit", "detectability", "theta_E", "psfsize_r", "host_index", "brickname")
    absent = [c for c in needed if c not in injections]
    if absent:
        raise UserError(f"injections: column(s) {', '.join(absent)} missing; take those of 07_completeness")
    table = injections.assign(
        outcome=classify_outcomes(injections["logit"], injections["detectability"], threshold, gate_threshold),
        theta_E_bin=cut_bins(injections["theta_E"], theta_E_edges),
        seeing_bin=cut_bins(injections["psfsize_r"], seeing_edges),
    )
    # Correlations of the flag "found" stand for those of every outcome.
    rho = pair_correlation(table["logit"] > threshold, table["host_index"], table["brickname"])
    margin = table.assign(seeing_bin="all")
    rows = []
    for (theta_bin, seeing_bin), part in pd.concat([table, margin]).groupby(["theta_E_bin", "seeing_bin"]):
        size = effective_n(part["host_index"], part["brickname"], *rho)
        for outcome in OUTCOMES:
            k = int((part["outcome"] == outcome).sum())
            lower, upper = jeffreys_interval(size * k / len(part), size)
            rows.append({"theta_E_bin": theta_bin, "seeing_bin": seeing_bin, "outcome": outcome, "n": len(part),
                         "k": k, "n_eff": size, "share": k / len(part), "lower": float(lower),
                         "upper": float(upper), "median_theta_E": part["theta_E"].median()})  # fmt: skip
    out = pd.DataFrame(rows)
    # "all" first, then by the numbers in the names; outcomes keep their order.
    order = out["seeing_bin"].map({s: i for i, s in enumerate(sorted(out["seeing_bin"].unique(), key=order_bins))})
    out = out.assign(_order=order.where(out["seeing_bin"] != "all", -1))
    return out.sort_values(["_order", "median_theta_E"], kind="stable", ignore_index=True).drop(columns="_order")


def cut_bins(values, edges):
    """Name the bin of each value: ``"0.75-1"``, ``"< 0.75"``, ``">= 2"``."""
    inner = edges[1:-1]
    names = [f"< {inner[0]:g}", *(f"{a:g}-{b:g}" for a, b in zip(inner[:-1], inner[1:], strict=True)),
             f">= {inner[-1]:g}"]  # fmt: skip
    return pd.cut(values, edges, labels=names, right=False).astype(str)


def list_missed(lenses, threshold, gate_threshold):
    """List the labelled test lenses with their outcome, the most visible of the missed first.

    Parameters
    ----------
    lenses : DataFrame
        Test lenses with ``galaxy_id``, ``logit``, ``detectability`` and whatever else is measured on them.
    threshold, gate_threshold : float

    Returns
    -------
    DataFrame
        `lenses` with ``outcome`` and ``is_recovered``.
    """
    outcome = classify_outcomes(lenses["logit"], lenses["detectability"], threshold, gate_threshold)
    out = lenses.assign(outcome=outcome, is_recovered=lenses["logit"] > threshold)
    return out.sort_values(["is_recovered", "detectability", "galaxy_id"], ascending=[True, False, True],
                           ignore_index=True)  # fmt: skip


def pick_gallery(test, lenses, point_threshold, n=6):
    """Pick the objects of the failure gallery: highest-scoring galaxies, most visible misses, faintest finds.

    Parameters
    ----------
    test : DataFrame
        Joined test table.
    lenses : DataFrame
        From `list_missed`, with ``cutout_path``.
    point_threshold : float
    n : int
        Objects per row.

    Returns
    -------
    DataFrame
        ``row`` (name of the gallery row), ``galaxy_id``, ``cutout_path``, ``logit``, ``note``.
    """
    wrong = test[(test["label"] == 0) & (test["logit"] > point_threshold)].nlargest(n, "logit")
    category = wrong["confuser_category"].fillna("").astype(str)
    wrong = wrong.assign(row="false positives", note=np.where(category != "", category, wrong["type"]))
    missed = lenses[lenses["outcome"] == OUTCOMES[2]].head(n).assign(row="missed, seen by D")
    unseen = lenses[lenses["outcome"] == OUTCOMES[3]].nlargest(n, "detectability").assign(row="missed, not seen by D")
    lens_rows = pd.concat([missed, unseen])
    lens_rows = lens_rows.assign(note=[f"arc S/N {s:.1f}" for s in lens_rows["arc_snr"]])
    columns = ["row", "galaxy_id", "cutout_path", "logit", "note"]
    return pd.concat([wrong[columns], lens_rows[columns]], ignore_index=True)


def make_rgb(images, scale=(6.0, 3.4, 2.2), softening=10.0, cut=(-0.02, 0.35)):
    """Turn stamps into colour pictures by an asinh stretch common to the three bands.

    Parameters
    ----------
    images : ndarray of shape (N, 3, S, S) [nMgy]
        Bands g, r, z.
    scale : tuple of float
        Factors of g, r, z; the brighter bands get the smaller factors.
    softening : float
    cut : tuple of float
        Stretched values that become black and white.

    Returns
    -------
    ndarray of shape (N, S, S, 3), float in [0, 1], red z, green r, blue g

    Notes
    -----
    The intensity is stretched and the colour kept (Lupton et al. 2004, PASP 116, 133).
    """
    bands = np.nan_to_num(images) * np.asarray(scale)[None, :, None, None]
    intensity = bands.mean(axis=1, keepdims=True)
    positive = np.maximum(intensity, 1e-6)
    factor = np.arcsinh(softening * positive) / (softening * positive)
    picture = (bands * factor - cut[0]) / (cut[1] - cut[0])
    peak = np.maximum(picture.max(axis=1, keepdims=True), 1.0)
    return np.clip(picture / peak, 0.0, 1.0)[:, ::-1].transpose(0, 2, 3, 1)
