"""The folder of a released selection function: what is in it, and writing it."""

import numpy as np

from lensaudit.artifacts import UserError, hash_file, hash_object, write_atomic
from lensaudit.audit.completeness import AXES, THRESHOLD_COLUMNS
from lensaudit.selection.card import list_blocks, summarise_closure, write_card
from lensaudit.selection.footprint import grid_conditions

FORMAT = "lensaudit selection function 3"
UNITS = {
    "theta_E": "arcsec", "seeing": "arcsec (psfsize_r)", "depth": "AB mag (5 sigma, point source, r)",
    "n_eff": "injections",
}  # fmt: skip
UNITS |= dict.fromkeys(("completeness", "lower_68", "upper_68", "lower_95", "upper_95", *THRESHOLD_COLUMNS), "fraction")
# Columns of the FITS table: unit as the standard writes it, and what they are.
FITS_COLUMNS = {
    "threshold_name": ("", "operating point of the detector"), "theta_E": ("arcsec", "Einstein radius, cell centre"),
    "seeing": ("arcsec", "psfsize_r as published, cell centre"),
    "depth": ("mag", "5-sigma point-source depth in r (AB), cell centre"),
    "C_lo": ("", "lower 68 % bound of C"), "C": ("", "P(detected), recovered over injected"),
    "C_hi": ("", "upper 68 % bound of C"), "lower_95": ("", "lower 95 % bound of C"),
    "upper_95": ("", "upper 95 % bound of C"),
    "sigma_threshold": ("", "standard deviation of C by the error of the threshold, shared by all cells"),
    "C_lo_total": ("", "as C_lo, with the error of the threshold"),
    "C_hi_total": ("", "as C_hi, with the error of the threshold"),
    "lower_total": ("", "as lower_95, with the error of the threshold"),
    "upper_total": ("", "as upper_95, with the error of the threshold"),
    "n": ("", "injections"), "k": ("", "recovered"),
    "n_eff": ("", "independent injections that n are worth"),
    "footprint_weight": ("", "share of the survey in this seeing and depth"),
    "untied_fraction": ("", "share of injections in hosts that could not make such an arc"),
    "sufficient": ("", "C may be used"), "reason": ("", "why C may not be used"),
}  # fmt: skip
# What another prior needs of an injection; those after the first list are kept where present.
INJECTION_COLUMNS = (
    "injection_id", "host_index", "brickname", "cell", "theta_E", "z_lens", "z_source", "mag_source_g", "mag_source_r",
    "mag_source_z", "source_R", "source_q", "source_n", "n_clumps", "clump_fraction", "source_x", "source_y",
    "psfsize_r", "depth_r", "log_q", "untied", "weight", "logit",
)  # fmt: skip
FURTHER_COLUMNS = ("healpix_128", "footprint_weight", "log_acceptance", "sigma_v", "mu", "arc_snr_true")


def write_selection(stage, cells, grid, thresholds, realism, hashes, simulated=True, default=None, closure=None,
                    injections=None, conditions=None, prior_band=None):  # fmt: skip
    """Write a selection function into the folder ``selection`` of a stage.

    Parameters
    ----------
    stage : lensaudit.artifacts.Stage
    cells : pandas.DataFrame
        From `completeness.count_cells`; with the thresholds' draws, so that their error can be asked for.
    grid : dict of axis -> centres
    thresholds : dict of name -> float or dict
        On the logit; or the entries of thresholds.json, whose threshold, lower and upper are kept.
    realism : dict
        From `realism.summarise_realism`; a NO-GO blocks loading, as does one of `prior_band`.
    hashes : dict
        detector, injections, prior, proposal: what the map is of.
    simulated : bool
        Whether it was measured on the simulated sky.
    default : str, optional
        Operating point of `query` when none is named; the first otherwise.
    closure : dict, optional
        From `closure.run_closure`. Without it the product says that closure was not tested.
    injections : pandas.DataFrame, optional
        Scored injections of one set, that other priors are taken from: the closure set, or the grid where its
        densities are known. Logits of further detectors are columns ``logit_<name>``.
    conditions : pandas.DataFrame or path, optional
        Footprint, for `footprint.read_footprint`; the cells' own survey weights otherwise.
    prior_band : dict, optional
        From `sensitivity.measure_prior_band`. Without it the product says that the band was not measured.

    Returns
    -------
    dict
        What ``selection.json`` says.
    """
    cells = cells[cells["threshold_name"].isin(thresholds)].reset_index(drop=True)
    stage.write_table("selection/cells.parquet", cells, {k: v for k, v in UNITS.items() if k in cells})
    _write_plain(stage, cells)
    files = ["cells.parquet", "conditions.parquet"]
    stage.write_table("selection/conditions.parquet", _share_conditions(cells, grid, conditions), UNITS)
    if injections is not None:
        stage.write_table("selection/injections.parquet", take_columns(injections), {"theta_E": "arcsec"})
        files.append("injections.parquet")
    cuts = stage.config.injection
    values = {k: v if not isinstance(v, dict) else v["threshold"] for k, v in thresholds.items()}
    description = {
        "format": FORMAT, "axes": {axis: list(map(float, grid[axis])) for axis in AXES}, "units": UNITS,
        "edges": "half a step outside the centres", "thresholds": values,
        "threshold_intervals": {k: [v.get("lower"), v.get("upper")] for k, v in thresholds.items()
                                if isinstance(v, dict)},
        "default": default or next(iter(thresholds), ""),
        "interval": "68 and 95 %, Jeffreys posterior with n_eff trials; C_lo and C_hi are the 68 % bounds; those named "
                    "total (68 % where so named, else 95 %) hold the error of the threshold too",
        "cuts": {"min_mu": cuts.min_mu, "min_arc_snr_true": cuts.min_arc_snr_true},
        "rules": {"min_bricks": stage.config.completeness.min_bricks}, "prior_name": cuts.prior,
        "realism": realism, "prior_band": prior_band, "closure": summarise_closure(closure),
        "blocked_by": list_blocks(realism, prior_band),
        "simulated": bool(simulated), "hashes": dict(hashes),
        "files": {name: hash_file(stage.output(f"selection/{name}")) for name in files},
    }  # fmt: skip
    description = stage.write_json("selection/selection.json", description | {"version": hash_object(description)[:12]})
    with write_atomic(stage.output("selection/model_card.md")) as temporary:
        temporary.write_text(write_card(description, cells), encoding="utf-8")
    return description


def _share_conditions(cells, grid, conditions):
    """Return the shares of the footprint: of a table given, or those the cells carry."""
    if conditions is not None:
        return grid_conditions(conditions, grid)
    known = cells.drop_duplicates(["seeing", "depth"])[["seeing", "depth", "footprint_weight"]]
    shares = known.rename(columns={"footprint_weight": "weight"}).sort_values(["seeing", "depth"])
    outside = {"seeing": np.nan, "depth": np.nan, "weight": max(1.0 - shares["weight"].sum(), 0.0)}
    shares = shares.reset_index(drop=True)
    shares.loc[len(shares)] = outside
    return shares


def take_columns(injections):
    """Return the columns of scored injections that other priors need.

    Raises
    ------
    UserError
        When one is missing, or rows of the grid and rows drawn from a prior are mixed.
    """
    missing = [c for c in INJECTION_COLUMNS if c not in injections]
    if missing:
        raise UserError(f"injections: column {missing[0]} is missing; hand in scored injections of 07_completeness")
    drawn = injections["cell"] < 0
    if drawn.any() and not drawn.all():
        raise UserError("injections: rows of the grid (cell >= 0) and of the closure set are mixed; hand in one set")
    further = [c for c in injections if c in FURTHER_COLUMNS or str(c).startswith("logit_")]
    return injections[[*INJECTION_COLUMNS, *further]].sort_values("injection_id").reset_index(drop=True)


def _write_plain(stage, cells):
    """Write the cells as CSV and as a FITS table."""
    plain = cells.rename(columns={"lower_68": "C_lo", "completeness": "C", "upper_68": "C_hi",
                                  "lower_68_total": "C_lo_total", "upper_68_total": "C_hi_total"})  # fmt: skip
    columns = ["threshold_name", *AXES, "n", "k", "n_eff", "sufficient", "reason", "C_lo", "C", "C_hi", "lower_95",
               "upper_95", "sigma_threshold", "C_lo_total", "C_hi_total", "lower_total", "upper_total",
               "footprint_weight", "untied_fraction"]  # fmt: skip
    plain = plain[[c for c in columns if c in plain]]
    with write_atomic(stage.output("selection/cells.csv")) as temporary:
        plain.to_csv(temporary, index=False, float_format="%.6g")
    write_fits(stage.output("selection/cells.fits"), plain)


def write_fits(path, plain):
    """Write the plain table of cells as FITS, with units (TUNIT) and descriptions (TCOMM) of the columns it has."""
    from astropy.io import fits
    from astropy.table import Table

    texts, columns = {"threshold_name", "reason"}, {c: v for c, v in FITS_COLUMNS.items() if c in plain}
    table = Table({c: plain[c].to_numpy(dtype=str if c in texts else None) for c in columns})
    hdu = fits.table_to_hdu(table)
    hdu.name = "CELLS"
    hdu.header["FORMAT"] = FORMAT
    for number, (unit, text) in enumerate(columns.values(), 1):
        if unit:
            hdu.header[f"TUNIT{number}"] = unit
        hdu.header[f"TCOMM{number}"] = text
    with write_atomic(path) as temporary:
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(temporary, overwrite=True)
