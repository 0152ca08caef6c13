"""Gates: checks with a rule fixed beforehand and three outcomes (pass, fail, cannot be computed).

They look for what would make good numbers worthless: shared sky between splits, wrong bands, a preprocessing that
moved, data in which noise, colour or the core alone tells lenses apart. The centre-mask curve is a sensitivity curve,
not a gate.
"""

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS, RENDER_SIZE
from lensaudit.injection.inject import inject
from lensaudit.pixels.quality import match_negatives
from lensaudit.rng import make_stream
from lensaudit.stats import (
    Ranking,
    draw_multiplicities,
    jeffreys_interval,
    ks_distance,
    mean_cluster_size,
    summarise_draws,
)

PASS, FAIL, UNKNOWN = "pass", "fail", "cannot be computed"
MAX_PROBE_AUC = 0.70  # the red limit of the shortcut flags, on the 68 % bound
MAX_KS, MAX_KS_UPPER = 0.10, 0.15
MIN_KS_PAIRS = 330  # below this two equal samples exceed MAX_KS_UPPER by their bootstrap noise alone
MIN_PROBE_PAIRS = 50
MAX_CONTROL_MEAN = 0.2
MASK_RADII = (8, 10, 12)  # pixels
MASK_ANNULUS = (20, 32)  # pixels; its median replaces the masked core, as in the preprocessing

# What each probe sees: columns of the stamps' quality table. The smallest core there is r < 4 px.
PROBES = {
    "core only": ("core_brightness_4_r", "core_max_r"),
    "radial profile": ("core_brightness_4_r", "core_brightness_r", "core_brightness_12_r", "annulus_brightness_r",
                       "annulus_brightness_16_28_r", "outer_brightness_r"),
    "annulus only": ("annulus_brightness_r", "annulus_std_r", "asymmetry_r", "ridge_r", "high_frequency_r"),
    "colour only": ("annulus_core_g_r", "annulus_core_r_z"),
    "noise only": ("background_r", "outer_brightness_r", "percentile_1_r", "psfsize_r", "psfdepth_r", "nobs_z", "ebv"),
}  # fmt: skip
# Features that a lens must not move: what remains of them between matched pairs is a difference of the data.
QUALITY = ("nan_frac", "background_r", "edge_score_r", "saturation_r", "psfsize_r", "psfdepth_r", "nobs_z", "ebv")


def make_gate(gate, value, rule, outcome, lower=np.nan, upper=np.nan, n=0, note=""):
    """Return one row of the gate table: gate, value with bounds, number of objects, rule, outcome, note."""
    return {"gate": gate, "value": float(value), "lower": float(lower), "upper": float(upper), "n": int(n),
            "rule": rule, "outcome": outcome, "note": note}  # fmt: skip


def check_splits(report, n):
    """Gate on what `catalogs.splits.verify_splits` found: nothing shared between splits, no overlapping stamps."""
    shared = sum(report["shared"].values()) + report["overlapping_pairs"]
    note = ", ".join(f"{k} {v}" for k, v in report["shared"].items())
    note += f", overlapping stamps {report['overlapping_pairs']}"
    return make_gate("split disjointness", shared, "nothing shared", PASS if shared == 0 else FAIL, n=n, note=note)


def check_bandset(manifest):
    """Gate on the bands: every accepted stamp was requested as grz and has all three."""
    if "bands_requested" not in manifest:
        return make_gate("bandset", np.nan, "non-grz = 0", UNKNOWN, note="column bands_requested missing")
    bands = manifest["bands_requested"] != "grz"
    lacking = ~manifest[["has_g", "has_r", "has_z"]].all(axis=1) & manifest["quality_ok"]
    wrong = int((bands | lacking).sum())
    return make_gate("bandset", wrong, "non-grz = 0", PASS if wrong == 0 else FAIL, n=len(manifest),
                     note=f"{int(bands.sum())} requested otherwise, {int(lacking.sum())} lack a band")  # fmt: skip


def check_preprocessing(detector_checksum, fresh_checksum):
    """Gate on the preprocessing: what the checkpoint stores equals what the code makes of it now."""
    if not detector_checksum:
        return make_gate("preprocessing checksum", np.nan, "equal", UNKNOWN, note="the checkpoint stores none")
    equal = detector_checksum == fresh_checksum
    return make_gate("preprocessing checksum", 0 if equal else 1, "equal", PASS if equal else FAIL, n=1,
                     note=f"{detector_checksum[:12]} against {fresh_checksum[:12]}")  # fmt: skip


def check_repeat(first, second):
    """Gate on scoring: the same stamps in another order and batch give the same logits.

    Parameters
    ----------
    first, second : array_like of shape (N,)
        Logits of the same stamps.

    Notes
    -----
    The rule allows 0.1: reduced precision moves a logit by about 0.015 when the batch changes.
    """
    if not len(first):
        return make_gate("repeated scoring", np.nan, "largest difference <= 0.1", UNKNOWN)
    worst = np.abs(np.asarray(first, float) - np.asarray(second, float)).max()
    outcome = PASS if worst <= 0.1 else FAIL
    return make_gate("repeated scoring", worst, "largest difference <= 0.1", outcome, n=len(first))


def score_null(hosts, store, detector, config, n=200):
    """Score test hosts untouched and after an injection of zero flux.

    Parameters
    ----------
    hosts : DataFrame
        From `injection.hosts.make_hosts`.
    store : lensaudit.pixels.store.Store
    detector : object
        With ``score(images) -> logits``.
    config : lensaudit.config.Config
    n : int
        The first hosts of the table.

    Returns
    -------
    plain, injected : ndarray of shape (n,)
        Logits; for `check_null`.
    """
    own = hosts.head(n).reset_index(drop=True)
    boxes = store.read_box(list(own["cutout_path"]), RENDER_SIZE)
    source = {f"mag_source_{band}": np.inf for band in BANDS}  # magnitude of zero flux
    table = pd.DataFrame({"injection_id": np.arange(len(own)), "host_index": own["host_index"]}).assign(
        theta_E=1.2, q=0.8, phi=0.5, gamma1=0.02, gamma2=0.0, source_x=0.1, source_y=0.1, source_R=0.2, source_n=1.0,
        source_q=0.8, source_phi=0.3, n_clumps=0, psf_beta=3.5, **source)  # fmt: skip
    images, _ = inject(table, own, boxes, config, config.seed)
    return detector.score(boxes), detector.score(images)


def check_null(plain, injected):
    """Gate on the null injection: zero flux gives the identical score.

    Parameters
    ----------
    plain, injected : array_like of shape (N,)
        Logits of host stamps, untouched and after an injection of zero flux.
    """
    if not len(plain):
        return make_gate("null injection", np.nan, "largest difference = 0", UNKNOWN, note="no injection engine run")
    worst = np.abs(np.asarray(plain, float) - np.asarray(injected, float)).max()
    return make_gate("null injection", worst, "largest difference = 0", PASS if worst == 0 else FAIL, n=len(plain))


def check_controls(score):
    """Gate on unlensed hosts: their mean score stays below 0.2; the fractions above 0.5 and 0.9 are shown."""
    score = np.asarray(score, dtype=float)
    if not len(score):
        return make_gate("control scores", np.nan, "mean < 0.2", UNKNOWN)
    half = 1.96 * score.std(ddof=1) / np.sqrt(len(score))
    note = f"fraction > 0.5: {np.mean(score > 0.5):.4f}, > 0.9: {np.mean(score > 0.9):.4f}"
    return make_gate("control scores", score.mean(), "mean < 0.2", PASS if score.mean() < MAX_CONTROL_MEAN else FAIL,
                     score.mean() - half, score.mean() + half, len(score), note)  # fmt: skip


def mask_centres(images, radius):
    """Replace the pixels within `radius` of the centre by the median of the background annulus, band by band.

    Parameters
    ----------
    images : ndarray of shape (N, 3, S, S) [nMgy]
    radius : float [pixels]

    Returns
    -------
    ndarray of the same shape and type
    """
    size = images.shape[-1]
    y, x = np.indices((size, size)) - size // 2
    distance = np.hypot(x, y)
    ring = (distance >= MASK_ANNULUS[0]) & (distance < MASK_ANNULUS[1])
    level = np.nanmedian(np.where(images == 0, np.nan, images)[:, :, ring], axis=2)
    return np.where(distance < radius, level[:, :, None, None], images).astype(images.dtype)


def measure_centre_mask(images, detector, threshold, radii=MASK_RADII):
    """Recall of lenses with their centre masked.

    Parameters
    ----------
    images : ndarray of shape (N, 3, S, S) [nMgy]
        Test lenses.
    detector : object
        With ``score(images) -> logits``.
    threshold : float
        On the logit.
    radii : sequence of float [pixels]

    Returns
    -------
    DataFrame
        ``radius`` (0 for unmasked), ``n``, ``k``, ``recall``, ``lower``, ``upper`` (95 %), ``drop`` (relative, of the
        recall), ``mean_logit``. At 8 px the mask already covers many Einstein rings, so a drop is no proof of a
        shortcut and its absence no proof of none.
    """
    rows = []
    for radius in (0, *radii):
        logits = np.asarray(detector.score(mask_centres(images, radius) if radius else images), dtype=float)
        k, n = int((logits > threshold).sum()), len(logits)
        lower, upper = jeffreys_interval(k, n)
        rows.append({"radius": radius, "n": n, "k": k, "recall": k / n if n else np.nan, "lower": float(lower),
                     "upper": float(upper), "mean_logit": logits.mean() if n else np.nan})  # fmt: skip
    out = pd.DataFrame(rows)
    first = out["recall"].iloc[0]
    return out.assign(drop=1.0 - out["recall"] / first if first > 0 else np.nan)


def score_probes(train, test, seed, n_bootstrap=400, probes=PROBES):
    """Train logistic probes on a few columns of matched pairs and test them on matched pairs.

    Parameters
    ----------
    train, test : DataFrame
        Accepted manifest rows with the columns of `PROBES` and of `pixels.quality.match_negatives`.
    seed : int
    n_bootstrap : int
    probes : dict of name -> columns

    Returns
    -------
    auc : DataFrame
        ``probe``, ``n_pairs``, ``auc`` with ``lower``, ``upper`` (95 %), ``lower_68``, ``upper_68``.
    draws : DataFrame of shape (n_bootstrap, probes)
        AUCs of common resamples of the pairs (by negative), for differences.
    """
    wanted = sorted({c for columns in probes.values() for c in columns})
    absent = [c for c in wanted if c not in train or c not in test]
    if absent:
        raise UserError(f"training manifest: column(s) {', '.join(absent)} missing; run 03_cutouts again")
    pairs = [np.concatenate(match_negatives(t.reset_index(drop=True))) for t in (train, test)]
    n_train, n_test = (len(p) // 2 for p in pairs)
    label, groups = np.repeat([1, 0], n_test), np.tile(pairs[1][n_test:], 2)
    rows, draws = [], {}
    for name, columns in probes.items():
        row = {"probe": name, "n_pairs": n_test}
        if min(n_train, n_test) < MIN_PROBE_PAIRS:
            rows.append(row | dict.fromkeys(("auc", "lower", "upper", "lower_68", "upper_68"), np.nan))
            draws[name] = np.full(n_bootstrap, np.nan)
            continue
        fitted, scored = (fill_columns(t, p, columns) for t, p in zip((train, test), pairs, strict=True))
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        model.fit(fitted, np.repeat([1, 0], n_train))
        ranking = Ranking(model.decision_function(scored), label)
        # The same stream for all probes, so that their differences share the resamples.
        rng = make_stream(seed, "gates/probes")
        draws[name] = np.concatenate([ranking.auc(m) for m in draw_multiplicities(groups, n_bootstrap, rng)])
        (lower, upper), (lower_68, upper_68) = summarise_draws(draws[name]), summarise_draws(draws[name], 0.68)
        rows.append(row | {"auc": float(ranking.auc()[0]), "lower": lower, "upper": upper, "lower_68": lower_68,
                           "upper_68": upper_68})  # fmt: skip
    return pd.DataFrame(rows), pd.DataFrame(draws)


def fill_columns(table, rows, columns):
    """Return columns as signed square roots, (len(rows), C), with missing values at the median of those rows.

    The square root tames fluxes that span four decades and keeps their sign.
    """
    values = table[list(columns)].to_numpy(dtype=float)[rows]
    values = np.where(np.isfinite(values), values, np.nan)
    middle = np.nan_to_num(np.nanmedian(values, axis=0)) if len(values) else np.zeros(len(columns))
    values = np.where(np.isnan(values), middle, values)
    return np.sign(values) * np.sqrt(np.abs(values))


def check_probes(auc, draws):
    """Gates on the probes: none of core, colour, noise alone is red; the annulus tells clearly more than the core.

    A probe fails when its lower 68 % bound exceeds 0.70 and passes when its upper 68 % bound does not. The annulus
    passes when the 95 % interval of its gain over the better of core-only and radial-profile lies above zero, fails
    when it lies below. In between the sample cannot decide.
    """
    gates = []
    for row in auc[auc["probe"].isin(["core only", "colour only", "noise only"])].itertuples():
        outcome = PASS if row.upper_68 <= MAX_PROBE_AUC else FAIL if row.lower_68 > MAX_PROBE_AUC else UNKNOWN
        note = "" if np.isfinite(row.auc) else f"{row.n_pairs} matched pairs, {MIN_PROBE_PAIRS} needed"
        gates.append(make_gate(f"{row.probe} probe", row.auc, "AUC on matched pairs not above 0.70 (68 %)", outcome,
                               row.lower, row.upper, row.n_pairs, note))  # fmt: skip
    value = auc.set_index("probe")["auc"]
    gain = value["annulus only"] - max(value["core only"], value["radial profile"])
    better = "core only" if value["core only"] >= value["radial profile"] else "radial profile"
    lower, upper = summarise_draws(draws["annulus only"] - draws[better])
    outcome = PASS if lower > 0 else FAIL if upper < 0 else UNKNOWN
    rule = "AUC gain over core and profile above 0 (95 %)"
    gates.append(make_gate("annulus against core", gain, rule, outcome, lower, upper, auc["n_pairs"].iloc[0],
                           f"compared with {better}"))  # fmt: skip
    return gates


def check_quality(table, seed, n_bootstrap=400, columns=QUALITY):
    """Gates on class-conditional quality: the KS distance of each feature between lenses and their matched galaxies.

    Parameters
    ----------
    table : DataFrame
        Accepted manifest rows of all splits.
    seed : int
    n_bootstrap : int
    columns : sequence of str

    Returns
    -------
    list of dict
        Pass when D < 0.10 and its 95 % bootstrap bound < 0.15, fail otherwise; one number per stamp and feature. With
        fewer than 330 pairs equal samples would fail by noise, so it cannot be computed. p is printed, not used.
    """
    table = table.reset_index(drop=True)
    lenses, negatives = match_negatives(table)
    n, gates = len(lenses), []
    rng = make_stream(seed, "gates/quality")
    drawn = np.concatenate([np.empty((0, 2 * n)), *draw_multiplicities(np.tile(negatives, 2), n_bootstrap, rng)])
    for name in columns:
        gate, rule = f"quality: {name}", "KS D < 0.10, upper bound < 0.15"
        if name not in table or n < MIN_KS_PAIRS:
            note = f"{n} matched pairs, {MIN_KS_PAIRS} needed" if name in table else "column missing"
            gates.append(make_gate(gate, np.nan, rule, UNKNOWN, n=n, note=note))
            continue
        values = table[name].to_numpy(dtype=float)
        values = np.nan_to_num(np.concatenate([values[lenses], values[negatives]]), nan=-np.inf)
        distance, p = ks_distance(values[:n], values[n:])
        lower, upper = summarise_draws(bootstrap_ks(values, drawn))
        outcome = PASS if distance < MAX_KS and upper < MAX_KS_UPPER else FAIL
        reuse = mean_cluster_size(negatives)
        gates.append(make_gate(gate, distance, rule, outcome, lower, upper, n, f"p = {p:.2g}, reuse {reuse:.1f}"))
    return gates


def bootstrap_ks(values, multiplicity):
    """KS distance of each resample.

    Parameters
    ----------
    values : ndarray of shape (2 n,)
        First sample, then second.
    multiplicity : ndarray of shape (B, 2 n)

    Returns
    -------
    ndarray of shape (B,)
    """
    n = len(values) // 2
    order = np.argsort(values, kind="stable")
    last = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    sign = np.where(order < n, 1.0, 0.0)
    weights = multiplicity[:, order]
    first, second = np.cumsum(weights * sign, axis=1), np.cumsum(weights * (1.0 - sign), axis=1)
    return np.abs(first / first[:, -1:] - second / second[:, -1:])[:, last].max(axis=1)


def tabulate_gates(*gates):
    """Return the gate table from single gates and lists of gates."""
    rows = [row for part in gates for row in (part if isinstance(part, list) else [part])]
    return pd.DataFrame(rows)
