"""Realism of injections: the checks of the GO / NO-GO table and the verdict on them (SPEC 7.2, 7.3, 7.5).

Targets and the proposal come from `calibration`; test lenses enter here. A check is GO when its interval lies inside
the limits, NO-GO when it lies outside, else inconclusive. What the table only reports has no limits.
"""

from functools import partial

import numpy as np
import pandas as pd

from lensaudit import rng as streams
from lensaudit import stats
from lensaudit.audit.calibration import take_quantile
from lensaudit.audit.detectability import correct_bias, measure_arcs
from lensaudit.audit.rates import compare_regions, paired_ratio
from lensaudit.audit.recovery import fit_model, fit_scaler
from lensaudit.audit.two_sample import (
    compare_layers,
    find_smallest,
    ks_margin,
    measure_power,
    probe_classes,
    weighted_ks,
)
from lensaudit.audit.verdict import explain_weights
from lensaudit.constants import BANDS, PIXEL_SCALE
from lensaudit.injection.controls import remove_lens
from lensaudit.injection.inject import inject
from lensaudit.photometry import depth_to_sigma, flux_to_mag

HAND_MADE = (
    "arc_snr", "arc_snr_g", "arc_snr_z", "arc_g_r", "arc_r_z", "arc_radius", "arc_width", "asymmetry", "ridge",
    "coherence", "rho10", "skew",
)  # fmt: skip
KS_LIMIT, KS_UPPER = 0.10, 0.15  # SPEC 5.3
MAX_UNDEFINED = 0.025  # of the resamples: beyond it a 95 % interval leaves out a tail that is not known
REGION_P = (0.001, 0.05)  # regions disagree below the first, agree above the second
REGION_SMALLEST = 0.10  # difference in the recovered fraction that the test of regions must be able to see
CHECK_COLUMNS = ("sample", "check", "value", "lower", "upper", "threshold", "outcome")


def add_derived(table, hosts=None):
    """Add what follows from measured columns and from the survey's catalogue.

    Parameters
    ----------
    table : pandas.DataFrame
        Measured lenses, or injections.
    hosts : pandas.DataFrame, optional
        Host table, which holds the magnitudes of injections' hosts; lenses have their own.

    Returns
    -------
    pandas.DataFrame
        With noise_ratio_{g,r,z}: measured over expected sigma_pix, expected from psfdepth and psfsize;
        arc_brightness_{g,r,z} [AB mag / arcsec^2]: the mean surface brightness of what the blind measurement calls arc,
        after the PSF, arc_flux over arc_area, NaN where arc_radius is or the flux is not positive; host_g_r, host_r_z
        [mag]: catalogued colours of the host.
    """
    own = table if hosts is None else hosts.set_index("host_index").loc[table["host_index"]]
    mag, area = {b: own[f"mag_{b}"].to_numpy() for b in BANDS}, table["arc_area"] * PIXEL_SCALE**2
    out = {"host_g_r": mag["g"] - mag["r"], "host_r_z": mag["r"] - mag["z"]}
    for b in BANDS:
        expected = depth_to_sigma(table[f"psfdepth_{b}"], table[f"psfsize_{b}"])
        out[f"noise_ratio_{b}"] = table[f"sigma_pix_{b}"] / expected
        out[f"arc_brightness_{b}"] = flux_to_mag(table[f"arc_flux_{b}"] / area.where(table["arc_radius"].notna()))
    return table.assign(**out)


def judge(lower, upper, limits):
    """Return GO when [lower, upper] lies inside the limits, NO-GO when outside, else inconclusive."""
    if not np.isfinite(lower) or not np.isfinite(upper):
        return "inconclusive"
    if lower >= limits[0] and upper <= limits[1]:
        return "GO"
    return "NO-GO" if upper < limits[0] or lower > limits[1] else "inconclusive"


def check_distributions(targets, injections, weights, config, sample):
    """Compare S/N, colours, surface brightness and background noise of weighted injections with those of lenses.

    Returns
    -------
    pandas.DataFrame
        Columns `CHECK_COLUMNS`; inconclusive with fewer than three on a side, and where the value, or more than 2.5 %
        of its resamples, cannot be computed. Ratios and differences are injections
        over (minus) lenses, intervals 95 % from resampling lenses and hosts; a ratio of S/N quantiles is NaN where one
        is not positive. KS distances carry the Dvoretzky-Kiefer-Wolfowitz margin of both samples' effective sizes.
        Surface brightness is reported only: SPEC 7.2 fixes no limit, and one chosen now would know the numbers.
    """
    section, rows = config.realism, []
    statistics = {
        f"arc_snr quantile {q:g}": ("arc_snr", lambda a, wa, b, wb, q=q: _ratio(b, wb, a, wa, q), section.snr_ratio)
        for q in (0.1, 0.5, 0.9)
    }  # fmt: skip
    gap = (-section.colour_offset, section.colour_offset)
    for column in ("arc_g_r", "arc_r_z"):
        statistics[f"{column} median"] = (column, _compare_medians, gap)
    for band in BANDS:
        statistics[f"noise ratio {band}"] = (
            f"noise_ratio_{band}", lambda a, wa, b, wb: _ratio(b, wb, a, wa, 0.5), section.noise_ratio)  # fmt: skip
        statistics[f"arc_brightness_{band} median"] = (f"arc_brightness_{band}", _compare_medians, None)
    rules = {name: f"{limits[0]:g} to {limits[1]:g}" if limits else "" for name, (_, _, limits) in statistics.items()}
    if len(targets) < 3 or len(injections) < 3:
        rows = [(sample, name, np.nan, np.nan, np.nan, rule, "inconclusive" if rule else "reported")
                for name, rule in rules.items()]  # fmt: skip
        return pd.DataFrame(rows, columns=CHECK_COLUMNS)
    draws = _draw_weights(targets, injections, weights, config, sample)
    for name, (column, function, limits) in statistics.items():
        a, b = targets[column].to_numpy(dtype=float), injections[column].to_numpy(dtype=float)
        value = function(a, np.ones(len(a)), b, weights)
        drawn = np.array([function(a, wa, b, wb) for wa, wb in draws])
        lower, upper = stats.summarise_draws(drawn)
        known = np.isfinite(value) and np.mean(~np.isfinite(drawn)) <= MAX_UNDEFINED
        outcome = "reported" if limits is None else judge(lower, upper, limits) if known else "inconclusive"
        rows.append((sample, name, value, lower, upper, rules[name], outcome))
    for column in ("noise_ratio_r", "rho10", "skew"):
        margin = ks_margin(targets[column], injections[column], weights, injections["host_index"])
        value = weighted_ks(targets[column], injections[column], weights)
        lower, upper = max(value - margin, 0.0), min(value + margin, 1.0)
        outcome = "GO" if value < KS_LIMIT and upper < KS_UPPER else "NO-GO" if lower > KS_LIMIT else "inconclusive"
        rows.append((sample, f"KS {column}", value, lower, upper, f"< {KS_LIMIT:g}, bound < {KS_UPPER:g}", outcome))
    return pd.DataFrame(rows, columns=CHECK_COLUMNS)


def _compare_medians(a, weights_a, b, weights_b):
    return take_quantile(b, weights_b, 0.5) - take_quantile(a, weights_a, 0.5)


def _ratio(b, weights_b, a, weights_a, q):
    top, bottom = take_quantile(b, weights_b, q), take_quantile(a, weights_a, q)
    return top / bottom if top > 0 and bottom > 0 else np.nan


def _draw_weights(targets, injections, weights, config, name):
    generator = streams.make_stream(config.seed, "audit/realism/bootstrap", name)
    n = config.realism.n_bootstrap
    lens = stats.draw_multiplicities(len(targets), n, generator, chunk=1)
    host = stats.draw_multiplicities(injections["host_index"].to_numpy(), n, generator, chunk=1)
    return [(a[0].astype(float), b[0] * weights) for a, b in zip(lens, host, strict=True)]


def make_extractor(hosts, boxes, detector, config, bias=None):
    """Return a function that renders injections again, with a colour planted, and gives their features.

    Parameters
    ----------
    hosts : pandas.DataFrame
    boxes : ndarray of shape (n_hosts, 3, 65, 65) [nMgy]
        Row by row with `hosts`.
    detector : Detector or None
        With ``layers(images) -> dict of layer -> (N, D)``; None gives measured features only.
    config : lensaudit.config.Config
    bias : pandas.DataFrame, optional
        From `campaign.measure_bias`; taken off arc_snr.

    Returns
    -------
    callable
        ``extract(table, shift) -> dict``: "hand-made" (N, len(HAND_MADE)) and the detector's layers, of the rows of an
        injection table whose sources are redder in g - r by `shift` [mag], everything else drawn alike.
    """
    position = pd.Series(np.arange(len(hosts)), hosts["host_index"].to_numpy())

    def extract(table, shift):
        table = table.reset_index(drop=True)
        redder = table.assign(mag_source_g=table["mag_source_g"] + shift)
        rows = position.loc[table["host_index"].to_numpy()].to_numpy()
        images, _ = inject(redder, hosts.iloc[rows].reset_index(drop=True), boxes[rows], config, config.seed)
        measured = measure_arcs(images, table["theta_E"])
        measured = measured if bias is None else correct_bias(measured, bias)
        own = {"hand-made": measured[list(HAND_MADE)].to_numpy(dtype=float)}
        return own if detector is None else own | detector.layers(images)

    return extract


def check_probe(targets, injections, weights, config, sample, layers=None, extract=None, unmatched=None):
    """Classifier two-sample test on hand-made features and, when given, on the network's, with its power.

    With weights to `calibration.PROBE_COLUMNS` it asks whether lenses and injections of like conditions, hosts, arc
    radius and colours differ in anything else. What it is conditioned on it cannot see: colours are judged by
    `check_distributions`. The colour whose detection measures its power is planted after the matching.

    Parameters
    ----------
    targets, injections : pandas.DataFrame
    weights : ndarray of shape (len(injections),)
        Injections are drawn with them, repeats kept, so that hosts, conditions and colours match; folds are by host.
    config : lensaudit.config.Config
    sample : str
    layers : dict of layer -> ndarray of shape (len(targets), D), optional
        The detector's features of the lenses, "penultimate" among them; lenses it trained on do not belong here.
    extract : callable, optional
        From `make_extractor`. Without it only the measured colour is shifted, and no layer is compared.
    unmatched : ndarray of shape (len(injections),), optional
        Weights that leave the colours as they are. Under them the hand-made features are probed once more, and layers
        are compared: matching in colours repeats injections so often that halves of them differ for that alone.

    Returns
    -------
    checks : pandas.DataFrame
        Columns `CHECK_COLUMNS`: AUC of each probe with its null and its power; reported only, how many injections the
        matching leaves (Kish, by host) and what of the arcs' colours (median of those drawn minus that of the lenses),
        and the Frechet distance of each layer over that of random halves of the injections (lower, upper: over
        the null's 95 % range).
    power : pandas.DataFrame
        features, shift, auc, power (`two_sample.measure_power`).
    distances : pandas.DataFrame
        `two_sample.compare_layers`.
    """
    if injections.empty:
        lost = dict.fromkeys(("auc", "lower", "upper", "null_auc", "null_lower", "null_upper", "p"), np.nan)
        rows = _describe_probe(sample, "hand-made", lost, config.realism.c2st_limit)
        power = pd.DataFrame(columns=["shift", "auc", "power", "features"])
        return pd.DataFrame(rows, columns=CHECK_COLUMNS), power, compare_layers({}, {}, (), config, sample)
    drawn = _draw_rows(injections, weights, len(targets), config, sample)
    unique, back = np.unique(drawn, return_inverse=True)
    host_all = injections["host_index"].to_numpy()
    own, host = injections.iloc[unique], host_all[drawn]
    known, found = layers or {}, {0.0: (extract or _shift_colour)(own, 0.0)}
    refused = explain_weights(stats.kish_n_eff(weights, host_all), weights.max() / weights.sum())

    def take(name, shift):
        if shift not in found:
            found[shift] = (extract or _shift_colour)(own, shift)
        return found[shift][name][back]

    rows, powers = [], []
    hand_made = targets[list(HAND_MADE)].to_numpy(dtype=float)
    sides = {"hand-made": (hand_made, injections[list(HAND_MADE)].to_numpy(dtype=float)[drawn])}
    if extract is not None and "penultimate" in known:
        sides["penultimate"] = (known["penultimate"], take("penultimate", 0.0))
    for name, (a, b) in sides.items():
        row = probe_classes(a, b, targets["galaxy_id"], host, config, f"{sample}/{name}")
        rows += _describe_probe(sample, name, row, config.realism.c2st_limit, refused)
        table = measure_power(partial(take, name), host, len(targets), config, f"{sample}/{name}")
        label = f"C2ST {name}, smallest planted g-r shift seen"
        rows.append((sample, label, find_smallest(table), np.nan, np.nan, "", "reported"))
        powers.append(table.assign(features=name))
    rows += _describe_matching(targets, injections, weights, drawn, sample)
    if unmatched is not None:
        drawn = _draw_rows(injections, unmatched, len(targets), config, sample)
        host, b = injections["host_index"].to_numpy()[drawn], injections[list(HAND_MADE)].to_numpy(dtype=float)[drawn]
        row = probe_classes(hand_made, b, targets["galaxy_id"], host, config, f"{sample}/hand-made")
        bounds = (row["auc"], row["lower"], row["upper"])
        rows.append((sample, "C2ST hand-made, colours not matched", *bounds, "", "reported"))
    injected = _extract_layers(extract, injections, drawn, known) if known and extract is not None else {}
    distances = compare_layers({k: known[k] for k in injected}, injected, host, config, sample)
    for row in distances.itertuples():
        rows.append((sample, f"Frechet distance, {row.layer}, over that of halves", row.ratio,
                     row.distance / row.null_upper, row.distance / row.null_lower, "", "reported"))  # fmt: skip
    return pd.DataFrame(rows, columns=CHECK_COLUMNS), pd.concat(powers, ignore_index=True), distances


def _draw_rows(injections, weights, n_targets, config, sample):
    generator = streams.make_stream(config.seed, "audit/realism/match", sample)
    size = min(len(injections), 3 * max(n_targets, 50))
    return np.sort(generator.choice(len(injections), size=size, replace=True, p=weights / weights.sum()))


def _extract_layers(extract, injections, drawn, names):
    unique, back = np.unique(drawn, return_inverse=True)
    found = extract(injections.iloc[unique], 0.0)
    return {name: found[name][back] for name in names}


def _describe_matching(targets, injections, weights, drawn, sample):
    rows = [("effective number of injections", stats.kish_n_eff(weights, injections["host_index"].to_numpy()))]
    for name, column in (("arc g-r left, median", "arc_g_r"), ("arc r-z left, median", "arc_r_z")):
        lens, own = (take_quantile(table[column].to_numpy(dtype=float), np.ones(len(table)), 0.5)
                     for table in (targets, injections.iloc[drawn]))  # fmt: skip
        rows.append((name, own - lens))
    return [(sample, f"matching, {name}", value, np.nan, np.nan, "", "reported") for name, value in rows]


def _shift_colour(table, shift):
    moved = table.assign(arc_g_r=table["arc_g_r"] + shift)
    return {"hand-made": moved[list(HAND_MADE)].to_numpy(dtype=float)}


def _describe_probe(sample, name, row, limit, refused=""):
    outcome = "GO" if row["upper"] < limit else "NO-GO" if row["lower"] > limit else "inconclusive"
    # Few injections carry the weight, or labels put at random reach the limit: the probe cannot judge.
    outcome = "inconclusive" if refused or not row["null_upper"] < limit else outcome
    null = (row["null_auc"], row["null_lower"], row["null_upper"])
    return [(sample, f"C2ST {name}", row["auc"], row["lower"], row["upper"], f"< {limit:g}", outcome),
            (sample, f"C2ST {name}, labels permuted", *null, "", "reported"),
            (sample, f"C2ST {name}, permutation p", row["p"], np.nan, np.nan, "", "reported")]  # fmt: skip


def check_regions(injections, threshold, config, n_regions=4):
    """Test whether the recovered fraction agrees between regions of the sky (quarters in HEALPix order).

    Parameters
    ----------
    injections : pandas.DataFrame
        Scored pilot with host_index and healpix_128.
    threshold : float
        On the logit.
    config : lensaudit.config.Config
    n_regions : int

    Returns
    -------
    checks : pandas.DataFrame
        Columns `CHECK_COLUMNS`: p of the chi-squared test (GO from 0.05 on, NO-GO below 0.001, inconclusive between
        and where a difference of 0.10 in one region could not be seen), and that smallest visible difference.
    regions : pandas.DataFrame
        `rates.compare_regions`; what is expected is a logistic fit of seeing, depth, arc and host.
    """
    flag = (injections["logit"] > threshold).to_numpy()
    model = fit_model(("spline", 3.0), injections, flag, fit_scaler(injections))
    order = injections["healpix_128"].rank(method="dense").to_numpy()
    region = np.minimum(((order - 1) / order.max() * n_regions).astype(int), n_regions - 1)
    regions, test = compare_regions(flag, model.predict(injections), region, injections["host_index"])
    seen = regions["smallest"].max()
    outcome = "NO-GO" if test["p"] < REGION_P[0] else "GO" if test["p"] >= REGION_P[1] else "inconclusive"
    outcome = outcome if seen <= REGION_SMALLEST or outcome == "NO-GO" else "inconclusive"
    rows = [("pilot", "regions agree, chi-squared p", test["p"], np.nan, np.nan, f"> {REGION_P[1]:g}", outcome),
            ("pilot", "regions, smallest difference seen", seen, np.nan, np.nan, "", "reported")]  # fmt: skip
    return pd.DataFrame(rows, columns=CHECK_COLUMNS), regions


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
        Columns `CHECK_COLUMNS`, per category: FPR with the source (without it and the ratio stand in the name), and
        the ratio of the two with an interval for pairs.
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
        ratio, *bounds = paired_ratio(a, b)
        label = f"contaminants, {name}: FPR with a blue source (without: {a.mean():.4f}, ratio {ratio:.1f})"
        out.append(("test", label, b.mean(), lower, upper, "", "reported"))
        out.append(("test", f"contaminants, {name}: ratio of FPR", ratio, *bounds, "", "reported"))
    return pd.DataFrame(out, columns=CHECK_COLUMNS)


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
        outcome, no_go and inconclusive (names of checks), panel ("not graded" until people have), proposal (hash).
    """
    verdict, panel = table[table["sample"] != "targets"], table.loc[table["sample"] == "panel", "outcome"]
    graded = [outcome for outcome in panel if outcome not in ("reported", "not graded")]
    bad = list(verdict.loc[verdict["outcome"] == "NO-GO", "check"])
    unclear = list(verdict.loc[verdict["outcome"] == "inconclusive", "check"])
    outcome = "NO-GO" if bad else "inconclusive" if unclear else "GO"
    return {"outcome": outcome, "no_go": bad, "inconclusive": unclear, "panel": graded[0] if graded else "not graded",
            "proposal": proposal["hash"]}  # fmt: skip
