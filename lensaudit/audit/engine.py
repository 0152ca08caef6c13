"""The engine shown to its reader: sheets of arcs, how its error falls with sampling, the benchmarks of it."""

import numpy as np
import pandas as pd

from lensaudit.artifacts import find_root, read_json
from lensaudit.audit.failures import make_rgb
from lensaudit.constants import RENDER_SIZE
from lensaudit.injection.fixed_grid import render_on_grid
from lensaudit.injection.inject import inject, render_table

GOAL = 2e-3  # largest residual over the peak
REFERENCE_WIDTH = 0.3  # panel width of the reference; at a tenth of the default its error is far below what is shown
NEAREST = 8  # the brightest of so many nearest rows stands in a sheet


def compose_sheet(table, hosts, boxes, config, theta_E, seeing):
    """Render, for each seeing and Einstein radius, the brightest arc of the eight nearest injections.

    Parameters
    ----------
    table : pandas.DataFrame
        Scored injections.
    hosts, boxes, config
        As in `campaign.run_injections`.
    theta_E, seeing : sequence of float [arcsec]

    Returns
    -------
    ndarray of shape (n_seeing, n_theta, 65, 65, 3), float in [0, 1]
    """
    chosen = table.iloc[_choose_rows(table, theta_E, seeing, "arc_snr_true")].reset_index(drop=True)
    index = pd.Series(np.arange(len(hosts)), hosts["host_index"]).loc[chosen["host_index"]].to_numpy()
    images, _ = inject(chosen, hosts.iloc[index].reset_index(drop=True), boxes[index], config, config.seed)
    pictures = make_rgb(images)
    return pictures.reshape(len(seeing), len(theta_E), *pictures.shape[1:])


def compose_lenses(measured, store, theta_E, seeing, truth=None):
    """Show lenses of training and validation as `compose_sheet` shows injections; test lenses are never looked at.

    Parameters
    ----------
    measured : pandas.DataFrame
        Measured lenses (`campaign.measure_rows`) with split, psfsize_r, arc_snr, arc_radius and cutout_path.
    store : lensaudit.pixels.store.Store
    theta_E, seeing : sequence of float [arcsec]
    truth : pandas.DataFrame, optional
        Truth table of the simulated sky (galaxy_id, theta_E, snr_true). Without it the blind arc radius and arc_snr
        stand for Einstein radius and true S/N.

    Returns
    -------
    ndarray of shape (n_seeing, n_theta, 65, 65, 3), float in [0, 1]
    """
    table = measured[measured["split"].isin(("train", "val"))]
    if truth is not None:
        known = truth.drop_duplicates("galaxy_id").set_index("galaxy_id")[["theta_E", "snr_true"]]
        table = table.drop(columns=[c for c in known if c in table]).join(known, on="galaxy_id", how="inner")
    else:
        table = table.assign(theta_E=table["arc_radius"], snr_true=table["arc_snr"])
    table = table.dropna(subset=["theta_E", "snr_true"])
    out = np.zeros((len(seeing), len(theta_E), RENDER_SIZE, RENDER_SIZE, 3))
    if len(table):
        rows = _choose_rows(table, theta_E, seeing, "snr_true")
        out[:] = make_rgb(store.read_box(list(table["cutout_path"].iloc[rows]), RENDER_SIZE)).reshape(out.shape)
    return out


def _choose_rows(table, theta_E, seeing, brightness):
    """Return, for each pair, the brightest of the nearest rows in seeing and Einstein radius, no row twice."""
    points, snr = table[["psfsize_r", "theta_E"]].to_numpy(dtype=float), table[brightness].to_numpy(dtype=float)
    chosen = []
    for pair in [np.array([s, t]) for s in seeing for t in theta_E]:
        rows = np.argsort(((points - pair) ** 2).sum(axis=1), kind="stable")
        rows = rows[~np.isin(rows, chosen)][:NEAREST] if len(chosen) < len(rows) else rows[:NEAREST]
        chosen.append(int(rows[np.argmax(snr[rows])]))
    return chosen


def measure_convergence(table, hosts, config, radii, panel_widths, samples, n=24):
    """Measure the sampling error of the engine and of fixed grids in the r band, source sizes set by hand.

    Parameters
    ----------
    table : pandas.DataFrame
        Injection table; the `n` rows of lowest injection_id are used.
    hosts : pandas.DataFrame
    config : lensaudit.config.Config
    radii : sequence of float
        Half-light radii [arcsec] given to the sources.
    panel_widths : sequence of float
        Of the engine; the configured one is always among them.
    samples : sequence of int
        Samples per pixel and axis of the fixed grids.
    n : int

    Returns
    -------
    pandas.DataFrame
        One row per method ("engine", "fixed grid"), source_R and setting: median and maximum over the injections of
        the largest residual over the peak, n.

    Notes
    -----
    The reference is the engine itself at a panel width of 0.3: this shows convergence. That it converges to the right
    image is what `benchmarks/injection_accuracy.py` measures against lenstronomy.
    """
    table, rows = table.sort_values("injection_id").head(n), []
    widths = sorted({*panel_widths, config.injection.panel_width})
    for radius in radii:
        own = table.assign(source_R=radius)

        def render(width, own=own):
            return render_table(own, hosts, config, config.seed, bands=("r",), panel_width=width)[0]

        reference = render(REFERENCE_WIDTH)
        peak = reference.max(axis=(1, 2, 3))
        found = [("engine", width, render(width)) for width in widths]
        found += [("fixed grid", s, render_on_grid(own, hosts, config.seed, s)) for s in samples]
        for method, setting, images in found:
            residual = np.abs(images - reference).max(axis=(1, 2, 3)) / peak
            rows.append({"method": method, "source_R": radius, "setting": float(setting),
                         "median": np.median(residual), "maximum": residual.max(), "n": len(own)})  # fmt: skip
    return pd.DataFrame(rows)


def read_benchmark(name):
    """Return the stored summary of a benchmark, ``benchmarks/results/<name>.json``, or {} when it has not been run."""
    path = find_root() / "benchmarks" / "results" / f"{name}.json"
    return read_json(path) if path.is_file() else {}


def summarise_engine(convergence, config):
    """Return the numbers the paper quotes of the engine; None where a benchmark has not been run.

    Parameters
    ----------
    convergence : pandas.DataFrame
        From `measure_convergence`.
    config : lensaudit.config.Config

    Returns
    -------
    dict of dict
        convergence (largest and median residual over the peak at the configured panel width and of the finest grid,
        at the smallest radius), accuracy and speed (chosen keys of the benchmarks' summaries).
    """
    smallest = convergence[convergence["source_R"] == convergence["source_R"].min()]
    engine = smallest[(smallest["method"] == "engine") & (smallest["setting"] == config.injection.panel_width)]
    grid = smallest[smallest["method"] == "fixed grid"].sort_values("setting").tail(1)
    out = {"convergence": {"source_R": float(convergence["source_R"].min()), "n": int(convergence["n"].max())}}
    for name, part in (("engine", engine), ("grid", grid)):
        row = part.iloc[0] if len(part) else {}
        out["convergence"] |= {f"{name}_{key}": row.get(key) for key in ("setting", "median", "maximum")}
    accuracy, speed = read_benchmark("injection_accuracy"), read_benchmark("injection_speed")
    keys = ("n", "residual_p50", "residual_p99", "residual_max", "flux_error_p99", "float32", "same_points",
            "n_unsettled", "n_rows")  # fmt: skip
    out["accuracy"] = {key: accuracy.get(key) for key in keys}
    keys = ("stamps_per_s", "ratio_imagemodel", "ratio_best_use", "residual_p99", "flux_error_p99", "cores", "device",
            "peak_memory_mb", "best_use_residual_p99", "first_call_s")  # fmt: skip
    return out | {"speed": {key: speed.get(key) for key in keys}}


def tabulate_speed():
    """Return the stored benchmark of speed as a table; one row that says so when it has not been run.

    Returns
    -------
    pandas.DataFrame
        renderer, stamps_per_s, engine_is_faster_by, residual_p99 (largest residual over the peak, 99th percentile),
        remark.
    """
    found = read_benchmark("injection_speed")
    if not found:
        return pd.DataFrame([{"renderer": "engine", "stamps_per_s": np.nan, "engine_is_faster_by": np.nan,
                              "residual_p99": np.nan, "remark": "the benchmark has not been run"}])  # fmt: skip
    speed, rates = found["stamps_per_s"], found["rates"]
    steps, behind = found["imagemodel_supersampling"], found["imagemodel_rows_not_reached"]
    where = f"{found['cores']} cores, {found['device']}"
    rows = [
        ("engine", speed, 1.0, found["residual_p99"], f"{where}, {found['way']}, {found['peak_memory_mb']:.0f} MB"),
        ("lenstronomy ImageModel, as accurate", rates["ImageModel"], found["ratio_imagemodel"], found["residual_p99"],
         f"{min(steps)} to {max(steps)} samples per pixel; {behind} of {len(steps)} rows still less accurate"),
        ("lenstronomy at its best use, 4 samples", rates["best use"], found["ratio_best_use"],
         found["best_use_residual_p99"], "one ray-shooting for three bands"),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["renderer", "stamps_per_s", "engine_is_faster_by", "residual_p99", "remark"])
