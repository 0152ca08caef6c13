"""Realism of injections: targets, weights, the GO / NO-GO table, and the frozen proposal (SPEC 7).

Targets are train and validation lenses of Tier A that pass gate D; `freeze_proposal` refuses any other split. Test
lenses enter afterwards, in the verdict. A check is GO when its interval lies inside the limits, NO-GO when it lies
outside, else inconclusive.

Left for later: a calibration that moves more than the brightness of the arcs, the log-uniform arc-S/N option, the
Frechet distance of more layers than one, candidates' image statistics.
"""

import numpy as np
import pandas as pd

from lensaudit import rng as streams
from lensaudit import stats
from lensaudit.artifacts import UserError, hash_object
from lensaudit.audit.recovery import KernelModel, Scaler, fit_model, fit_scaler
from lensaudit.audit.two_sample import find_power, frechet_distance, probe_classes, weighted_ks
from lensaudit.constants import BANDS
from lensaudit.injection.controls import remove_lens
from lensaudit.injection.inject import inject
from lensaudit.photometry import depth_to_sigma

TARGET_COLUMNS = ("arc_radius", "psfsize_r", "depth_r", "mag_host")
TARGET_BANDWIDTH = 0.45
HAND_MADE = (
    "arc_snr", "arc_snr_g", "arc_snr_z", "arc_g_r", "arc_r_z", "arc_radius", "arc_width", "asymmetry", "ridge",
    "coherence", "rho10", "skew",
)  # fmt: skip
KS_LIMIT, KS_UPPER = 0.10, 0.15  # SPEC 5.3
MAX_UNDEFINED = 0.025  # of the resamples: beyond it a 95 % interval leaves out a tail that is not known
CHECK_COLUMNS = ("sample", "check", "value", "lower", "upper", "threshold", "outcome")


def add_noise_ratio(table):
    """Add noise_ratio_{g,r,z} = measured over expected sigma_pix, expected from psfdepth and psfsize."""
    ratios = {
        f"noise_ratio_{b}": table[f"sigma_pix_{b}"] / depth_to_sigma(table[f"psfdepth_{b}"], table[f"psfsize_{b}"])
        for b in BANDS
    }
    return table.assign(**ratios)


def select_targets(measurements, gate_threshold, splits=("train", "val"), tier="A"):
    """Return the lenses that injections are compared with: one tier, given splits, passing gate D.

    Parameters
    ----------
    measurements : pandas.DataFrame
        Blind measurements of positives, with split and tier.
    gate_threshold : float or None
        On detectability; None (too few negatives to set it) lets all pass.
    """
    own = measurements[measurements["split"].isin(splits) & (measurements["tier"] == tier)]
    return pass_gate(own, gate_threshold)


def pass_gate(table, gate_threshold):
    """Return the rows whose detectability exceeds the gate, and whose arc radius could be measured."""
    keep = table["arc_radius"].notna() & table["mag_host"].notna()
    if gate_threshold is not None:
        keep &= table["detectability"] > gate_threshold
    return table[keep].reset_index(drop=True)


def calibrate_tilt(injections, targets, limits=(0.0, 6.0), steps=20):
    """Tilt the proposal in true arc S/N until its median arc_energy is the targets' (SPEC 7.4).

    Lenses in a catalogue were found, so they are brighter than the prior's arcs; a power of arc_snr_true, applied as a
    weight, stands for that. Everything else is left as drawn, and closure and the map use the prior without it.

    Parameters
    ----------
    injections, targets : pandas.DataFrame
        Past gate D.
    limits : tuple of float
        Of the exponent.
    steps : int
        Bisections.

    Returns
    -------
    float
        The exponent; 0 when either side is empty.
    """
    if targets.empty or injections.empty:
        return 0.0
    wanted, (low, high) = float(targets["arc_energy"].median()), limits
    energy = injections["arc_energy"].to_numpy(dtype=float)
    for _ in range(steps):
        middle = 0.5 * (low + high)
        median = _quantile(energy, weigh_to_targets(injections, targets, middle)[0], 0.5)
        low, high = (middle, high) if median < wanted else (low, middle)
    return 0.5 * (low + high)


def weigh_to_targets(injections, targets, tilt=0.0, columns=TARGET_COLUMNS):
    """Weight injections so that their columns are distributed as the targets' (kernel mixture).

    Parameters
    ----------
    injections, targets : pandas.DataFrame
        With `columns`; both have passed gate D.
    tilt : float
        From `calibrate_tilt`.

    Returns
    -------
    weights : ndarray of shape (N,)
        Sum 1.
    n_eff : float
        Kish size by host; 0 when one side is empty.
    """
    if targets.empty or injections.empty:
        return np.full(len(injections), 1.0 / max(len(injections), 1)), 0.0
    values = targets[list(columns)].to_numpy(dtype=float)
    low, centre, high = np.nanpercentile(values, [16, 50, 84], axis=0)
    scaler = Scaler(tuple(columns), centre, np.maximum(0.5 * (high - low), 1e-3))
    base = injections["arc_snr_true"].to_numpy(dtype=float) ** tilt if tilt else np.ones(len(injections))
    kernel = KernelModel(injections, np.zeros(len(injections)), TARGET_BANDWIDTH, scaler, base / base.mean())
    weight = kernel.weigh(targets).astype(float)
    mixture = (weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-30)).mean(axis=0)
    return mixture, stats.kish_n_eff(mixture, injections["host_index"].to_numpy())


def judge(lower, upper, limits):
    """Return GO when [lower, upper] lies inside the limits, NO-GO when outside, else inconclusive."""
    if not np.isfinite(lower) or not np.isfinite(upper):
        return "inconclusive"
    if lower >= limits[0] and upper <= limits[1]:
        return "GO"
    return "NO-GO" if upper < limits[0] or lower > limits[1] else "inconclusive"


def check_distributions(targets, injections, weights, config, sample):
    """Compare S/N, colours and background noise of weighted injections with those of lenses.

    Returns
    -------
    pandas.DataFrame
        Columns `CHECK_COLUMNS`; inconclusive with fewer than three on a side, and where the value, or more than 2.5 %
        of its resamples, cannot be computed. Ratios and differences are injections
        over (minus) lenses, intervals 95 % from resampling lenses and hosts; a ratio of S/N quantiles is NaN where one
        is not positive. KS distances carry the Dvoretzky-Kiefer-Wolfowitz margin of both samples' effective sizes.
    """
    section, rows = config.realism, []
    statistics = {
        f"arc_snr quantile {q:g}": ("arc_snr", lambda a, wa, b, wb, q=q: _ratio(b, wb, a, wa, q), section.snr_ratio)
        for q in (0.1, 0.5, 0.9)
    }  # fmt: skip
    gap = (-section.colour_offset, section.colour_offset)
    for column in ("arc_g_r", "arc_r_z"):
        statistics[f"{column} median"] = (
            column, lambda a, wa, b, wb: _quantile(b, wb, 0.5) - _quantile(a, wa, 0.5), gap)  # fmt: skip
    for band in BANDS:
        statistics[f"noise ratio {band}"] = (
            f"noise_ratio_{band}", lambda a, wa, b, wb: _ratio(b, wb, a, wa, 0.5), section.noise_ratio)  # fmt: skip
    if len(targets) < 3 or len(injections) < 3:
        rows = [(sample, name, np.nan, np.nan, np.nan, f"{limits[0]:g} to {limits[1]:g}", "inconclusive")
                for name, (_, _, limits) in statistics.items()]  # fmt: skip
        return pd.DataFrame(rows, columns=CHECK_COLUMNS)
    draws = _draw_weights(targets, injections, weights, config, sample)
    for name, (column, function, limits) in statistics.items():
        a, b = targets[column].to_numpy(dtype=float), injections[column].to_numpy(dtype=float)
        value = function(a, np.ones(len(a)), b, weights)
        drawn = np.array([function(a, wa, b, wb) for wa, wb in draws])
        lower, upper = stats.summarise_draws(drawn)
        known = np.isfinite(value) and np.mean(~np.isfinite(drawn)) <= MAX_UNDEFINED
        outcome = judge(lower, upper, limits) if known else "inconclusive"
        rows.append((sample, name, value, lower, upper, f"{limits[0]:g} to {limits[1]:g}", outcome))
    for column in ("noise_ratio_r", "rho10", "skew"):
        margin = _ks_margin(targets[column], injections[column], weights, injections["host_index"])
        value = weighted_ks(targets[column], injections[column], weights)
        lower, upper = max(value - margin, 0.0), min(value + margin, 1.0)
        outcome = "GO" if value < KS_LIMIT and upper < KS_UPPER else "NO-GO" if lower > KS_LIMIT else "inconclusive"
        rows.append((sample, f"KS {column}", value, lower, upper, f"< {KS_LIMIT:g}, bound < {KS_UPPER:g}", outcome))
    return pd.DataFrame(rows, columns=CHECK_COLUMNS)


def _ks_margin(a, b, weights, host):
    """Dvoretzky-Kiefer-Wolfowitz margin (95 %) of two samples: finite rows, the second Kish by host."""
    n, good = int(np.isfinite(a).sum()), np.isfinite(b).to_numpy()
    size = stats.kish_n_eff(weights[good], host.to_numpy()[good]) if good.any() else 0.0
    return 1.36 * np.sqrt(1.0 / max(n, 1) + 1.0 / max(size, 1.0))


def _quantile(values, weights, q):
    good = np.isfinite(values) & (weights > 0)
    return float(stats.weighted_quantile(values[good], q, weights[good])) if good.any() else np.nan


def _ratio(b, weights_b, a, weights_a, q):
    top, bottom = _quantile(b, weights_b, q), _quantile(a, weights_a, q)
    return top / bottom if top > 0 and bottom > 0 else np.nan


def _draw_weights(targets, injections, weights, config, name):
    generator = streams.make_stream(config.seed, "audit/realism/bootstrap", name)
    n = config.realism.n_bootstrap
    lens = stats.draw_multiplicities(len(targets), n, generator, chunk=1)
    host = stats.draw_multiplicities(injections["host_index"].to_numpy(), n, generator, chunk=1)
    return [(a[0].astype(float), b[0] * weights) for a, b in zip(lens, host, strict=True)]


def check_probe(targets, injections, weights, config, sample, features=None):
    """Classifier two-sample test on hand-made features and, when given, on the network's.

    Parameters
    ----------
    targets, injections : pandas.DataFrame
    weights : ndarray of shape (len(injections),)
        Injections are drawn with them, repeats kept, so that hosts and conditions match; folds are by host.
    config : lensaudit.config.Config
    sample : str
    features : tuple of ndarray, optional
        Penultimate features of (some) lenses and of all injections; lenses the detector trained on do not belong here.

    Returns
    -------
    pandas.DataFrame
        Columns `CHECK_COLUMNS`: AUC of each probe, its null and its power, and the Frechet distance (reported only).
    """
    generator = streams.make_stream(config.seed, "audit/realism/match", sample)
    size = min(len(injections), 3 * max(len(targets), 50))
    drawn = np.sort(generator.choice(len(injections), size=size, replace=True, p=weights / weights.sum()))
    host = injections["host_index"].to_numpy()[drawn]
    hand_a = targets[list(HAND_MADE)].to_numpy(dtype=float)
    hand_b = injections[list(HAND_MADE)].to_numpy(dtype=float)[drawn]
    sets = {"hand-made": (hand_a, hand_b, targets["galaxy_id"].to_numpy())}
    if features is not None:
        sets["penultimate"] = (features[0], features[1][drawn], np.arange(len(features[0])))
    rows, limit = [], config.realism.c2st_limit
    for name, (a, b, groups) in sets.items():
        row = probe_classes(a, b, groups, host, config, f"{sample}/{name}")
        outcome = "GO" if row["upper"] < limit else "NO-GO" if row["lower"] > limit else "inconclusive"
        rows.append((sample, f"C2ST {name}", row["auc"], row["lower"], row["upper"], f"< {limit:g}", outcome))
        rows.append((sample, f"C2ST {name}, labels permuted", row["null_auc"], np.nan, np.nan, "", "reported"))
    power = find_power(hand_b, host, HAND_MADE.index("arc_g_r"), config, sample)
    rows.append((sample, "C2ST smallest planted g-r shift seen", power, np.nan, np.nan, "", "reported"))
    if features is not None and min(len(features[0]), len(drawn)) >= 20:
        distance = frechet_distance(features[0], features[1][drawn])
        rows.append((sample, "Frechet distance, penultimate", distance, np.nan, np.nan, "", "reported"))
    return pd.DataFrame(rows, columns=CHECK_COLUMNS)


def check_regions(injections, threshold, config, n_regions=4):
    """Test whether the recovered fraction agrees between regions of the sky (quarters in HEALPix order).

    Returns
    -------
    pandas.DataFrame
        One row per region (z of its recovered fraction against the rest, given seeing, depth and host magnitude by a
        logistic fit) and one verdict: GO when max |z| < 3, NO-GO when above 5.
    """
    flag = (injections["logit"] > threshold).to_numpy()
    model = fit_model(("spline", 3.0), injections, flag, fit_scaler(injections))
    p = model.predict(injections)
    order = injections["healpix_128"].rank(method="dense").to_numpy()
    region = np.minimum((order / (order.max() + 1) * n_regions).astype(int), n_regions - 1)
    rows, residual = [], flag - p
    host = stats.encode_groups(injections["host_index"])
    for number in range(n_regions):
        use = region == number
        scatter = np.sqrt(np.sum(np.bincount(host[use], weights=residual[use]) ** 2))
        z = residual[use].sum() / max(scatter, 1e-9)
        name = f"region {number}: recovered {flag[use].mean():.3f}, z"
        rows.append(("pilot", name, z, np.nan, np.nan, "", "reported"))
    worst = max(abs(row[2]) for row in rows)
    outcome = "GO" if worst < 3 else "NO-GO" if worst > 5 else "inconclusive"
    rows.append(("pilot", "regions agree, max |z|", worst, np.nan, np.nan, "< 3", outcome))
    return pd.DataFrame(rows, columns=CHECK_COLUMNS)


def check_contaminants(hosts, boxes, injections, detector, threshold, config, limit=600):
    """Compare the false-positive rate of confusers with and without an unlensed blue source of an arc's flux.

    Parameters
    ----------
    hosts : pandas.DataFrame
        Host table with confuser_category; hosts without one are left out.
    boxes : ndarray of shape (n_hosts, 3, 65, 65) [nMgy]
    injections : pandas.DataFrame
        Their sources, unlensed but as bright as the arc, are put 1-2.5 arcsec from the confusers.
    detector : object
        With ``score``.
    threshold : float
        On the logit.
    config : lensaudit.config.Config
    limit : int
        At most this many confusers (by hash).

    Returns
    -------
    pandas.DataFrame
        Columns `CHECK_COLUMNS`, per category: FPR with the source; without it and the ratio stand in the name.
    """
    confuser = np.flatnonzero((hosts["confuser_category"].fillna("") != "").to_numpy())
    order = streams.hash_order(config.seed, "audit/realism/contaminant", hosts["galaxy_id"].iloc[confuser].astype(str))
    chosen = confuser[np.argsort(order)[:limit]]
    if not len(chosen):
        return pd.DataFrame(columns=CHECK_COLUMNS)
    own, generator = hosts.iloc[chosen].reset_index(drop=True), streams.make_stream(config.seed, "audit/contaminant")
    arcs = injections.iloc[generator.integers(0, len(injections), len(own))].reset_index(drop=True)
    radius, angle = generator.uniform(1.0, 2.5, len(own)), generator.uniform(0, 2 * np.pi, len(own))
    arcs = remove_lens(arcs).assign(injection_id=np.arange(len(own)), host_index=own["host_index"].to_numpy(),
                                    source_x=radius * np.cos(angle), source_y=radius * np.sin(angle))  # fmt: skip
    spoiled, _ = inject(arcs, own, boxes[chosen], config, config.seed)
    before, after = detector.score(boxes[chosen]) > threshold, detector.score(spoiled) > threshold
    out = []
    for name, index in [("all", np.arange(len(own))), *own.groupby("confuser_category").indices.items()]:
        a, b = before[index], after[index]
        lower, upper = stats.jeffreys_interval(b.sum(), len(b))
        ratio = b.mean() / a.mean() if a.any() else np.inf
        label = f"contaminants, {name}: FPR with a blue source (without: {a.mean():.4f}, ratio {ratio:.1f})"
        out.append(("test", label, b.mean(), lower, upper, "", "reported"))
    return pd.DataFrame(out, columns=CHECK_COLUMNS)


def freeze_proposal(targets, pilot, weights, config, prior, tilt=0.0):
    """Describe and hash the proposal, from train and validation lenses only, before any test lens enters.

    Parameters
    ----------
    targets : pandas.DataFrame
        From `select_targets`; every row's split must be train or val.
    pilot : pandas.DataFrame
        Injections that pass gate D.
    weights : ndarray
        From `weigh_to_targets`.
    config : lensaudit.config.Config
    prior : dict
        The prior as used (its manifest's content).
    tilt : float
        From `calibrate_tilt`.

    Returns
    -------
    dict
        prior, cuts, targets' and pilot's quantiles, moved (what calibration changed), hash.

    Raises
    ------
    UserError
        When a test lens, or a column of the detector, is among the inputs.
    """
    foreign = sorted(set(targets["split"]) - {"train", "val"})
    if foreign:
        row = targets.loc[targets["split"].isin(foreign), "galaxy_id"].iloc[0]
        raise UserError(f"proposal: {row} is a {foreign[0]} lens; targets must be train and validation lenses only")
    scored = [name for name in ("logit", "score") if name in targets or name in pilot]
    if scored:
        raise UserError(f"proposal: column {scored[0]} is a detector score, which calibration must not see; drop it")
    columns = ("arc_snr", "arc_g_r", "arc_r_z", "arc_radius", "arc_width")
    quantiles = (0.1, 0.5, 0.9)
    ones = np.ones(len(targets))
    content = {
        "prior_name": config.injection.prior, "prior": prior,
        "cuts": {"min_mu": config.injection.min_mu, "min_arc_snr_true": config.injection.min_arc_snr_true},
        "n_targets": len(targets), "target_ids": hash_object(sorted(targets["galaxy_id"].astype(str))),
        "targets": {c: [_quantile(targets[c].to_numpy(float), ones, q) for q in quantiles] for c in columns},
        "pilot": {c: [_quantile(pilot[c].to_numpy(float), weights, q) for q in quantiles] for c in columns},
        "moved": {"arc_snr_true_exponent": round(float(tilt), 6)},
    }  # fmt: skip
    return content | {"hash": hash_object(content)}


def summarise_realism(table, proposal):
    """Return the overall outcome: NO-GO when any verdict check is, else inconclusive when any is, else GO.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of all checks; those of the sample "targets" are the calibration's and do not enter the verdict.
    proposal : dict
        Frozen, with its hash.

    Returns
    -------
    dict
        outcome, no_go and inconclusive (names of checks), panel, proposal (hash).
    """
    verdict = table[table["sample"] != "targets"]
    bad = list(verdict.loc[verdict["outcome"] == "NO-GO", "check"])
    unclear = list(verdict.loc[verdict["outcome"] == "inconclusive", "check"])
    outcome = "NO-GO" if bad else "inconclusive" if unclear else "GO"
    return {"outcome": outcome, "no_go": bad, "inconclusive": unclear, "panel": "not graded",
            "proposal": proposal["hash"]}  # fmt: skip


def panel_row():
    """Return the row of the blinded panel, which only people can grade."""
    row = ("panel", "blinded panel of 50", np.nan, np.nan, np.nan, "graded by people", "not graded")
    return pd.DataFrame([row], columns=CHECK_COLUMNS)
