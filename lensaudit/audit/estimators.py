"""The blind estimators held against truth, bias with scatter, and their summary as the literature quotes it."""

import numpy as np
import pandas as pd

from lensaudit import stats
from lensaudit.constants import BANDS, PIXEL_SCALE, RENDER_SIZE
from lensaudit.injection.inject import render_table
from lensaudit.photometry import depth_to_sigma, flux_to_mag

SNR_EDGES = (1, 2, 5, 10, 20, 50, 100, 200)
COLOUR_EDGES = (-0.5, 0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0, 1.5)
# Bins of its truth for every estimator, and whether blind and true are compared as a ratio or as a difference.
ESTIMATORS = {
    "arc_snr": (SNR_EDGES, "ratio"), "arc_energy": (SNR_EDGES, "ratio"),
    "arc_brightness_r": (tuple(range(21, 30)), "difference"),
    "arc_g_r": (COLOUR_EDGES, "difference"), "arc_r_z": (COLOUR_EDGES, "difference"),
    "arc_width": ((0.6, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.3, 3.0, 4.0), "difference"),
}  # fmt: skip
MIN_ROWS = 10  # measured, in a bin that is reported
FWHM = 2.355  # of a normal distribution, in sigma; `detectability.measure_arcs` gives arc_width so


def validate_populations(injections, hosts, lenses, truth=None, rendered=None):
    """Validate the blind estimators on injections and, when the truth table is handed in, on lenses.

    Parameters
    ----------
    injections : pandas.DataFrame
        Measured, with arc_snr_true, arc_surface_brightness and mag_lensed_{g,r,z}.
    hosts : pandas.DataFrame
        Host table with mw_transmission_{g,r,z}: blind numbers carry the Galaxy's dust, and so must their truth.
    lenses : pandas.DataFrame
        Measured, with galaxy_id, psfdepth_r and psfsize_r.
    truth : pandas.DataFrame, optional
        Truth table of the simulated sky: galaxy_id, snr_true, flux_lensed_{g,r,z} (dust included).
    rendered : pandas.DataFrame, optional
        Injections with arc_width_true, from `measure_widths`; without it arc_width is left out. A truth table holds no
        image, so the lenses' arcs have no true width.

    Returns
    -------
    pandas.DataFrame
        As `validate_estimator`, with estimator, population, error ("ratio" or "difference") and binned_by: "truth", the
        estimator's own, or "arc_snr_true".
    """
    samples = [("injections", injections, _take_truth(injections, hosts))]
    if rendered is not None:
        known = rendered[["arc_width_true", "arc_snr_true"]].set_axis(["arc_width", "arc_snr"], axis=1)
        samples.append(("injections", rendered[["arc_width"]], known))
    if truth is not None:
        samples.append(("lenses", lenses, _look_up_truth(lenses, truth)))
    parts = []
    for population, table, known in samples:
        for name in [name for name in ESTIMATORS if name in table and name in known]:
            own, error = ESTIMATORS[name]
            for binned_by, by, edges in (("truth", name, own), ("arc_snr_true", "arc_snr", SNR_EDGES)):
                part = validate_estimator(table[name], known[name], edges, error, known[by])
                parts.append(part.assign(estimator=name, population=population, error=error, binned_by=binned_by))
    return pd.concat(parts, ignore_index=True)


def _take_truth(injections, hosts):
    own = hosts.set_index("host_index").loc[injections["host_index"]]
    dust = {b: flux_to_mag(own[f"mw_transmission_{b}"].to_numpy()) - flux_to_mag(1.0) for b in BANDS}
    mag = {b: injections[f"mag_lensed_{b}"].to_numpy() + dust[b] for b in BANDS}
    brightness = injections["arc_surface_brightness"].to_numpy() + dust["r"]
    return _join_truth(injections["arc_snr_true"].to_numpy(), brightness, mag)


def _look_up_truth(lenses, truth):
    known = truth.drop_duplicates("galaxy_id").set_index("galaxy_id").reindex(lenses["galaxy_id"])
    flux = {b: known[f"flux_lensed_{b}"].to_numpy() for b in BANDS}
    snr = known["snr_true"].to_numpy()
    square = (snr * depth_to_sigma(lenses["psfdepth_r"].to_numpy(), lenses["psfsize_r"].to_numpy())) ** 2
    # As `injection.forecast.add_brightness`: sum f^2 / sum f per pixel area.
    brightness = flux_to_mag(square / flux["r"] / PIXEL_SCALE**2)
    return _join_truth(snr, brightness, {b: flux_to_mag(flux[b]) for b in BANDS})


def _join_truth(snr, brightness, mag):
    return pd.DataFrame({"arc_snr": snr, "arc_energy": snr, "arc_brightness_r": brightness,
                         "arc_g_r": mag["g"] - mag["r"], "arc_r_z": mag["r"] - mag["z"]})  # fmt: skip


def measure_widths(injections, hosts, config):
    """Render the r-band arcs of injections without host and noise, and measure how wide they are.

    Parameters
    ----------
    injections, hosts : pandas.DataFrame
    config : lensaudit.config.Config

    Returns
    -------
    pandas.DataFrame
        `injections` with arc_width_true [arcsec]: 2.355 times the flux-weighted scatter of the distance from the lens
        centre, over all light of the arc after the PSF.

    Notes
    -----
    arc_width is the same moment of what the blind measurement calls arc: detected pixels between 4 and 16 px.
    """
    arcs = render_table(injections, hosts, config, config.seed, ("r",))[0][:, 0].astype(float)
    half = RENDER_SIZE // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    radius, light = np.hypot(x, y) * PIXEL_SCALE, arcs.sum(axis=(1, 2))
    mean, square = ((arcs * radius**k).sum(axis=(1, 2)) / light for k in (1, 2))
    return injections.assign(arc_width_true=FWHM * np.sqrt(np.maximum(square - mean**2, 0.0)))


def validate_estimator(blind, true, edges, error="ratio", by=None):
    """Compare a blind number with its truth, in bins.

    Parameters
    ----------
    blind, true : array_like of shape (N,)
        NaN in `blind` where nothing could be measured.
    edges : sequence of float
        Of the bins in `by`.
    error : str
        "ratio" (blind over true) or "difference" (blind minus true).
    by : array_like of shape (N,), optional
        What the bins are of; the truth itself by default.

    Returns
    -------
    pandas.DataFrame
        Per bin with at least ten measured rows: low, high, n, n_unmeasured, median_true, median, lower, upper (16-84 %
        of the blind number), bias (median error: 1 is right of a ratio, 0 of a difference), scatter (half the 16-84 %
        range of the error).
    """
    frame = pd.DataFrame({"blind": np.asarray(blind, dtype=float), "true": np.asarray(true, dtype=float)})
    frame["by"] = frame["true"] if by is None else np.asarray(by, dtype=float)
    frame["error"] = frame["blind"] / frame["true"] if error == "ratio" else frame["blind"] - frame["true"]
    rows = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = frame[(frame["by"] > low) & (frame["by"] <= high)].dropna(subset=["true"])
        own = inside.dropna()
        if len(own) < MIN_ROWS:
            continue
        lower, median, upper = own["blind"].quantile([0.16, 0.5, 0.84])
        least, bias, most = own["error"].quantile([0.16, 0.5, 0.84])
        rows.append((low, high, len(own), len(inside) - len(own), own["true"].median(), median, lower, upper, bias,
                     0.5 * (most - least)))  # fmt: skip
    columns = ["low", "high", "n", "n_unmeasured", "median_true", "median", "lower", "upper", "bias", "scatter"]
    return pd.DataFrame(rows, columns=columns)


def tabulate_bias(validation):
    """Show bias and scatter of every estimator by true S/N: ``bias ± scatter (rows)``, ratios or differences."""
    rows = validation[validation["binned_by"] == "arc_snr_true"]
    text = [f"{r.bias:.2f} ± {r.scatter:.2f} ({r.n})" for r in rows.itertuples()]
    table = rows.assign(text=text).set_index(["estimator", "error", "population", "low"])["text"].unstack().fillna("")
    order = [name for name in ESTIMATORS if name in table.index.get_level_values(0)]
    names = {low: f"true S/N {low:g}–{high:g}" for low, high in zip(SNR_EDGES[:-1], SNR_EDGES[1:], strict=True)}
    return table.reindex(order, level=0).rename(columns=names).rename_axis(columns=None)


def summarise_snr(table, population, weights=None, edges=(0.0, 18.0, 19.0, 20.0, 99.0)):
    """Return mean, median and the fractions of arc_snr below 2, below 5 and above 20, overall and by host magnitude."""
    weights, rows = np.ones(len(table)) if weights is None else np.asarray(weights, dtype=float), []
    mag, snr = table["mag_host"].to_numpy(dtype=float), table["arc_snr"].to_numpy(dtype=float)
    for low, high in [(-np.inf, np.inf), *zip(edges[:-1], edges[1:], strict=True)]:
        use = (mag >= low) & (mag < high) & (weights > 0)
        if not use.any():
            continue
        share = weights[use] / weights[use].sum()
        rows.append({"population": population, "mag_low": low, "mag_high": high, "n": int(use.sum()),
                     "mean": share @ snr[use], "median": float(stats.weighted_quantile(snr[use], 0.5, share)),
                     "below_2": share @ (snr[use] < 2), "below_5": share @ (snr[use] < 5),
                     "above_20": share @ (snr[use] > 20)})  # fmt: skip
    return pd.DataFrame(rows)
