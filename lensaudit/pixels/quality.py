"""Quality and shortcut features of a stamp, the rejection rules, and what each feature tells alone.

Radii are in pixels of 0.262 arcsec from the centre pixel; brightness is the mean flux per pixel [nMgy]. The annulus
relative to theta_E needs a known Einstein radius, which few catalogued lenses have, and is left to the audit.
"""

import functools

import numpy as np
import pandas as pd

from lensaudit import rng
from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS
from lensaudit.stats import Ranking

CORE, ARC, SECOND, BACKGROUND = (0, 8), (4, 16), (16, 28), (20, 32)  # radii of the regions [pixels]
MAX_CENTRAL_FRACTION = 0.02  # of the central 50x50 pixels without data, worst band
CLIP_SIGMAS = 10.0  # a pixel of the central 64x64 beyond this counts as clipped
INNER_BOX = 49  # side of the box the azimuthal residual is measured on; holds the arc annulus with room for curvature

FEATURES = (
    "nan_frac", "core_brightness_r", "core_brightness_4_r", "core_brightness_12_r", "core_max_r",
    "annulus_brightness_r", "annulus_std_r", "annulus_brightness_16_28_r", "outer_brightness_r", "background_r",
    "radial_gradient_r", "mad_r", "std_r", "median_r", "mean_r", "percentile_1_r", "percentile_99_r", "clip_frac_r",
    "high_frequency_r", "asymmetry_r", "ridge_r", "annulus_core_g_r", "annulus_core_r_z", "saturation_r",
    "edge_score_r",
)  # fmt: skip
MATCHED_ON = ("mag_r", "g_r", "log_shape_r", "psfsize_r", "depth_r")


@functools.cache
def _regions(size):
    """Return flat masks of the regions on a stamp of `size` pixels, and the radius of every pixel."""
    y, x = np.indices((size, size)) - size // 2
    radius = np.hypot(x, y).ravel()

    def ring(limits):
        return (radius >= limits[0]) & (radius < limits[1])

    def box(side):
        start = size // 2 - side // 2
        inside = (np.arange(size) >= start) & (np.arange(size) < start + side)
        return np.outer(inside, inside).ravel()

    masks = {
        "core": ring(CORE), "core_4": ring((0, 4)), "core_12": ring((0, 12)), "arc": ring(ARC),
        "second": ring(SECOND), "background": ring(BACKGROUND), "outer": radius >= 40, "centre": box(50),
        "crop": box(64),
    }  # fmt: skip
    return masks, radius


def measure_quality(images):
    """Measure the quality and shortcut features of stamps and apply the rejection rules.

    Parameters
    ----------
    images : ndarray of shape (N, 3, S, S), float32 [nMgy]
        Bands g, r, z; an invalid pixel is non-finite or exactly zero (how the survey writes "no data").

    Returns
    -------
    DataFrame of N rows
        ``nan_count_{g,r,z}`` (int64, invalid pixels), ``has_{g,r,z}``, ``nan_frac``, ``central_nan_frac`` (worst band),
        ``rim_gap``, the features of `FEATURES`, ``quality_ok`` and ``reason`` ("" when fine).

    Notes
    -----
    Rejected: a band without data, more than 2 per cent of the central 50x50 pixels invalid in any band, any invalid
    pixel at r < 8, a non-finite pixel in the central 64x64 (the detector's crop), a constant background. Gaps in
    the rim are kept and flagged. ``asymmetry_r`` is the rms at 4 <= r < 16 after removing the mean radial profile,
    ``ridge_r`` the rms of the negative curvature of the smoothed residual there (bright ridges, every orientation), and
    ``high_frequency_r`` the rms of its Laplacian, each in units of the background sigma.
    """
    size = images.shape[-1]
    masks, _ = _regions(size)
    flat = np.ascontiguousarray(images, dtype=np.float32).reshape(len(images), 3, size * size)
    finite = np.isfinite(flat)
    bad = ~finite | (flat == 0)
    clean = np.where(bad, np.float32(0), flat)
    out = {f"nan_count_{b}": bad[:, i].sum(1).astype(np.int64) for i, b in enumerate(BANDS)}
    has = ~bad.all(2)
    out |= {f"has_{b}": has[:, i] for i, b in enumerate(BANDS)}
    central = bad[:, :, masks["centre"]].mean(2).max(1)
    core = bad[:, :, masks["core"]].any((1, 2))
    out |= {"nan_frac": bad.mean((1, 2)), "central_nan_frac": central}
    out["rim_gap"] = bad.any((1, 2)) & (central == 0)
    with np.errstate(all="ignore"):
        level, sigma = _measure_background(clean[:, :, masks["background"]], bad[:, :, masks["background"]])
        out |= _measure_brightness(clean, bad, level, masks)
        out |= _measure_distribution(clean[:, 1], bad[:, 1], level[:, 1], sigma[:, 1], masks)
        out |= _measure_structure(clean[:, 1].reshape(-1, size, size), level[:, 1], sigma[:, 1])
    unfit = (~finite[:, :, masks["crop"]]).any((1, 2))
    flat_sky = ~((sigma > 0) & np.isfinite(sigma)).all(1)
    reason = _name_reasons(has, central, core, unfit, flat_sky)
    table = pd.DataFrame(out)
    table.loc[~has[:, 1], list(FEATURES[1:])] = np.nan
    return table.assign(quality_ok=reason == "", reason=reason)


def _name_reasons(has, central, core, unfit, flat_sky):
    reason = np.full(len(has), "", dtype=object)
    rules = [
        (flat_sky, "constant background"),
        (unfit, "non-finite pixel in the central 64x64"),
        (core, "pixel without data in the core"),
        (central > MAX_CENTRAL_FRACTION, "more than 2 per cent of the central 50x50 pixels without data"),
    ]
    rules += [(~has[:, i], f"band {b} has no data") for i, b in reversed(list(enumerate(BANDS)))]
    for flag, text in rules:  # the last rule that applies is the one named
        reason[flag] = text
    return reason


def _sorted_quantiles(ordered, n, fractions):
    """Quantiles of rows sorted with their invalid entries last (+inf); `n` valid ones per row, linear interpolation."""
    position = np.maximum(n[..., None] - 1, 0) * np.asarray(fractions)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, np.maximum(n[..., None] - 1, 0))
    a, b = np.take_along_axis(ordered, low, -1), np.take_along_axis(ordered, high, -1)
    value = a + (b - a) * (position - low)
    return np.where((n > 0)[..., None] & np.isfinite(value), value, np.nan)


def _median_mad(values, bad):
    n = (~bad).sum(-1)
    median = _sorted_quantiles(np.sort(np.where(bad, np.inf, values), axis=-1), n, [0.5])
    distance = np.where(bad, np.inf, np.abs(values - median)).astype(np.float32)
    return median[..., 0], _sorted_quantiles(np.sort(distance, axis=-1), n, [0.5])[..., 0]


def _measure_background(values, bad):
    median, mad = _median_mad(values, bad)
    return median, 1.4826 * mad  # the sigma of a Gaussian


def _measure_brightness(clean, bad, level, masks):
    """Mean flux per pixel in the regions (r band), and the colour of the arc annulus minus that of the core."""

    def mean(band, name):
        good = ~bad[:, band][:, masks[name]]
        return clean[:, band][:, masks[name]].sum(1) / good.sum(1)

    arc = clean[:, 1][:, masks["arc"]]
    good = ~bad[:, 1][:, masks["arc"]]
    arc_mean = arc.sum(1) / good.sum(1)
    square = (arc.astype(np.float64) ** 2).sum(1) / good.sum(1)
    spread = np.sqrt(np.maximum(square - arc_mean.astype(np.float64) ** 2, 0))
    arcs = np.stack([mean(i, "arc") - level[:, i] for i in range(3)])
    cores = np.stack([mean(i, "core_4") - level[:, i] for i in range(3)])
    colour = -2.5 * np.log10(np.where(arcs > 0, arcs, np.nan)) + 2.5 * np.log10(np.where(cores > 0, cores, np.nan))
    core = clean[:, 1][:, masks["core"]]
    peak = core.max(1)
    return {
        "core_brightness_4_r": mean(1, "core_4"), "core_brightness_r": mean(1, "core"),
        "core_brightness_12_r": mean(1, "core_12"), "core_max_r": peak,
        "annulus_brightness_r": arc_mean, "annulus_std_r": spread,
        "annulus_brightness_16_28_r": mean(1, "second"), "outer_brightness_r": mean(1, "outer"),
        "background_r": level[:, 1], "radial_gradient_r": mean(1, "core") - arc_mean,
        "annulus_core_g_r": colour[0] - colour[1], "annulus_core_r_z": colour[1] - colour[2],
        # A saturated core is flat: many pixels within 1 per cent of its peak.
        "saturation_r": (core > 0.99 * peak[:, None]).mean(1),
    }  # fmt: skip


def _measure_distribution(clean, bad, level, sigma, masks):
    """Mean, spread, quantiles and clipped fraction of the r-band stamp, and the score of its worst rim line."""
    n = (~bad).sum(1)
    ordered = np.sort(np.where(bad, np.float32(np.inf), clean), axis=1)
    quantiles = _sorted_quantiles(ordered, n, [0.01, 0.5, 0.99])
    distance = np.where(bad, np.float32(np.inf), np.abs(clean - quantiles[:, 1, None].astype(np.float32)))
    mean = clean.sum(1, dtype=np.float64) / n
    variance = np.einsum("ij,ij->i", clean, clean, dtype=np.float64) / n - mean**2
    pull = (clean[:, masks["crop"]] - level[:, None]) / sigma[:, None]
    size = int(np.sqrt(clean.shape[1]))
    lines = np.clip((clean - level[:, None]) / sigma[:, None], -5, 5).reshape(-1, size, size)
    # Artefacts of an edge or a bad column lift one whole line at the rim; the outer 20 lines hold little galaxy.
    rows, columns = lines.mean(2), lines.mean(1)
    rim = np.concatenate([rows[:, :20], rows[:, -20:], columns[:, :20], columns[:, -20:]], axis=1)
    return {
        "mad_r": _sorted_quantiles(np.sort(distance, axis=1), n, [0.5])[:, 0],
        "std_r": np.sqrt(np.maximum(variance, 0)),
        "median_r": quantiles[:, 1], "mean_r": mean, "percentile_1_r": quantiles[:, 0],
        "percentile_99_r": quantiles[:, 2], "clip_frac_r": (np.abs(pull) > CLIP_SIGMAS).mean(1),
        "edge_score_r": np.abs(rim).max(1) * np.sqrt(size),
    }  # fmt: skip


@functools.cache
def _radial_bins():
    """Return the one-hot matrix (pixel, integer radius) of the inner box, the averaging matrix, and the arc annulus."""
    y, x = np.indices((INNER_BOX, INNER_BOX)) - INNER_BOX // 2
    radius = np.hypot(x, y)
    one_hot = np.eye(int(radius.max()) + 2, dtype=np.float32)[np.round(radius).astype(int).ravel()]
    counts = np.maximum(one_hot.sum(0), 1)
    return one_hot, (one_hot / counts).astype(np.float32), (radius >= ARC[0]) & (radius < ARC[1])


def _measure_structure(band, level, sigma):
    """Asymmetry, ridge and high-frequency energy of the r band in the arc annulus, in background sigmas."""
    one_hot, mean_of, ring = _radial_bins()
    start = band.shape[-1] // 2 - INNER_BOX // 2
    box = band[:, start : start + INNER_BOX, start : start + INNER_BOX] - level[:, None, None].astype(np.float32)
    flat = box.reshape(len(box), -1)
    residual = (flat - (flat @ mean_of) @ one_hot.T).reshape(box.shape) / sigma[:, None, None].astype(np.float32)

    def rms(values, mask):
        return np.sqrt((values[:, mask].astype(np.float64) ** 2).mean(1))

    inside = ring[1:-1, 1:-1]
    smooth = residual[:, :-2] + 2 * residual[:, 1:-1] + residual[:, 2:]
    smooth = (smooth[:, :, :-2] + 2 * smooth[:, :, 1:-1] + smooth[:, :, 2:]) / 16
    xx = smooth[:, 1:-1, 2:] - 2 * smooth[:, 1:-1, 1:-1] + smooth[:, 1:-1, :-2]
    yy = smooth[:, 2:, 1:-1] - 2 * smooth[:, 1:-1, 1:-1] + smooth[:, :-2, 1:-1]
    xy = (smooth[:, 2:, 2:] - smooth[:, 2:, :-2] - smooth[:, :-2, 2:] + smooth[:, :-2, :-2]) / 4
    # The most negative eigenvalue of the Hessian is the curvature across a bright ridge, whatever its angle.
    across = (xx + yy) / 2 - np.hypot((xx - yy) / 2, xy)
    laplacian = (
        residual[:, 2:, 1:-1] + residual[:, :-2, 1:-1] + residual[:, 1:-1, 2:] + residual[:, 1:-1, :-2]
        - 4 * residual[:, 1:-1, 1:-1]
    )  # fmt: skip
    return {
        "asymmetry_r": rms(residual, ring), "ridge_r": rms(np.minimum(across, 0), ring[2:-2, 2:-2]),
        "high_frequency_r": rms(laplacian, inside),
    }  # fmt: skip


def summarise_quality(table):
    """Count stamps by what became of them.

    Parameters
    ----------
    table : DataFrame
        With ``quality_ok``, ``reason``, ``rim_gap`` and, when present, ``label``.

    Returns
    -------
    DataFrame
        ``reason`` ("kept" for accepted stamps), ``n``, ``fraction`` and, with labels, ``n_lenses``.
    """
    label = table["label"] if "label" in table else pd.Series(0, index=table.index)
    grouped = pd.DataFrame({
        "reason": table["reason"].where(~table["quality_ok"], "kept"), "is_lens": label == 1, "gap": table["rim_gap"],
    }).groupby("reason")  # fmt: skip
    out = grouped.agg(n=("gap", "size"), n_lenses=("is_lens", "sum"), n_rim_gaps=("gap", "sum")).reset_index()
    return out.assign(fraction=out["n"] / len(table)).sort_values("n", ascending=False, ignore_index=True)


def choose_examples(table, seed, n=8):
    """Pick accepted stamps to look at: `n` of each tier, by the smallest hash of their id.

    Returns
    -------
    DataFrame
        Rows of `table`, grouped by ``tier``, with a ``caption``: the tier, or a confuser's category.
    """
    good = table[table["quality_ok"]].assign(hash=lambda t: rng.hash_order(seed, "pixels/examples", t["galaxy_id"]))
    rows = good.sort_values("hash").groupby("tier").head(n).sort_values(["tier", "hash"], ignore_index=True)
    category = rows["confuser_category"].fillna("").astype(str).str.replace("_", " ")
    lens = "tier " + rows["tier"].astype(str)
    return rows.assign(caption=np.where(rows["label"] == 1, lens, np.where(category == "", "galaxy", category)))


def match_negatives(table, caliper=1.0):
    """Pair every lens with the nearest negative in host magnitude, colour, size, seeing and depth.

    Parameters
    ----------
    table : DataFrame
        With ``label``, ``mag_r``, ``mag_g``, ``shape_r``, ``psfsize_r``, ``depth_r``.
    caliper : float
        Largest accepted distance, in standard deviations of the lenses, quadratic sum over the five covariates.

    Returns
    -------
    lenses, negatives : ndarray of int
        Row positions of the pairs; a negative may serve several lenses.
    """
    from sklearn.neighbors import NearestNeighbors

    missing = sorted({"label", "mag_g", "mag_r", "shape_r", "psfsize_r", "depth_r"} - set(table))
    if missing:
        raise UserError(f"matching needs column(s) {', '.join(missing)}; join the survey columns to the stamps first")
    values = make_covariates(table).to_numpy()
    usable = np.isfinite(values).all(1)
    is_lens = table["label"].to_numpy() == 1
    lenses, negatives = np.flatnonzero(usable & is_lens), np.flatnonzero(usable & ~is_lens)
    if not len(lenses) or not len(negatives):
        return np.zeros(0, int), np.zeros(0, int)
    spread = values[lenses].std(0)
    values = values / np.where(spread > 0, spread, 1.0)
    distance, index = NearestNeighbors(n_neighbors=1).fit(values[negatives]).kneighbors(values[lenses])
    close = distance[:, 0] <= caliper
    return lenses[close], negatives[index[close, 0]]


def make_covariates(table):
    """Return the matching covariates: host r magnitude, g-r, log10 half-light radius, PSF size, depth."""
    size = np.log10(np.maximum(table["shape_r"].to_numpy(float), 0.05))
    columns = (table["mag_r"], table["mag_g"] - table["mag_r"], size, table["psfsize_r"], table["depth_r"])
    return pd.DataFrame({n: np.asarray(c, float) for n, c in zip(MATCHED_ON, columns, strict=True)}, index=table.index)


def measure_match(table):
    """Return the mean difference of matched pairs per covariate, in standard deviations of the lenses.

    Returns
    -------
    dict
        ``"matched difference"`` -> Series over the covariates.
    """
    lenses, negatives = match_negatives(table)
    values = make_covariates(table)
    spread = values[table["label"] == 1].std(ddof=0)
    gap = values.iloc[lenses].to_numpy() - values.iloc[negatives].to_numpy()
    mean = gap.mean(0) if len(gap) else np.full(len(MATCHED_ON), np.nan)
    return {"matched difference": (pd.Series(mean, index=list(MATCHED_ON)) / spread).round(3)}


def flag_shortcuts(table, seed, n_bootstrap=200, features=FEATURES):
    """Measure how well each feature alone separates lenses from negatives, unmatched and matched, and flag shortcuts.

    Parameters
    ----------
    table : DataFrame
        Accepted stamps of one split with features, ``label`` and the columns of `match_negatives`.
    seed : int
    n_bootstrap : int
        Resamples; at least 200 for the rule to mean what it says.

    Returns
    -------
    DataFrame
        Per feature: ``auc``, ``lower``, ``upper`` (unmatched, 95 per cent), ``auc_matched``, ``lower_matched``,
        ``upper_matched`` (95 per cent), ``lower_68_matched``, ``n_lenses``, ``n_pairs``, ``flag``.

    Notes
    -----
    An AUC below 0.5 is folded to 1 - AUC, with the side of the point estimate kept in every resample (``sign``).
    Matched pairs are resampled together. Yellow: lower 68 per cent bound of the matched AUC above 0.60; red:
    above 0.70.
    """
    lenses, negatives = match_negatives(table)
    label = (table["label"].to_numpy() == 1).astype(int)
    stream = rng.make_stream(seed, "pixels/shortcuts")
    parts = [np.flatnonzero(label == 1), np.flatnonzero(label == 0)]
    counts = np.zeros((n_bootstrap, len(table)))
    for rows in parts:
        if len(rows):
            counts[:, rows] = stream.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=n_bootstrap)
    n = len(lenses)
    pairs = stream.multinomial(n, np.full(n, 1 / n), size=n_bootstrap) if n else np.zeros((n_bootstrap, 0))
    rows = []
    for name in features:
        value = table[name].to_numpy(float)
        free = _bootstrap_auc(value, label, counts)
        both = np.concatenate([value[lenses], value[negatives]])
        held = _bootstrap_auc(both, np.repeat([1, 0], n), np.concatenate([pairs, pairs], axis=1), pairs=True)
        rows.append({
            "feature": name, "auc": free[0], "lower": free[1], "upper": free[2], "auc_matched": held[0],
            "lower_matched": held[1], "upper_matched": held[2], "lower_68_matched": held[3], "sign": held[4],
            "n_lenses": int(label.sum()), "n_pairs": n, "flag": _name_flag(held[3]),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _name_flag(lower):
    if not np.isfinite(lower):
        return "not computed"
    return "red" if lower > 0.70 else "yellow" if lower > 0.60 else "none"


def _bootstrap_auc(value, label, counts, pairs=False):
    """Return folded AUC, its 2.5, 97.5 and 16 per cent bounds, and its side; NaN rows (and their pairs) drop out."""
    good = np.isfinite(value)
    if pairs:
        half = good.reshape(2, -1).all(0)
        good = np.concatenate([half, half])
    if len(np.unique(label[good])) < 2:
        return np.nan, np.nan, np.nan, np.nan, 0
    ranking = Ranking(value[good], label[good])
    auc = float(ranking.auc()[0])
    draws = ranking.auc(counts[:, good])
    sign = 1 if auc >= 0.5 else -1
    draws = draws if sign > 0 else 1 - draws
    lower, low68, upper = np.nanquantile(draws, [0.025, 0.16, 0.975])
    return (auc if sign > 0 else 1 - auc), float(lower), float(upper), float(low68), sign
