"""The benchmark card: the statistics the literature quotes, measured here, beside the published numbers.

A published number stands beside the statistic it is nearest to; `remark` says how the two differ. Samples, surveys and
populations are not the same, so that no row is a contest.
"""

import textwrap

import numpy as np
import pandas as pd

from lensaudit.audit.completeness import AXES, average_cells, tabulate_bins
from lensaudit.audit.selected import measure_quantiles

STAGES = ("05_evaluation", "06_injection_realism", "07_completeness")
POINTS = ("score_0.3", "fpr_1e-3", "fpr_1e-2")
LENSED = (20.0, 22.0)  # r mag of the lensed source, the range quoted
BALAJI = "Balaji & Johnson 2026 (public files, not rerun)"
SECOND_HAND = "second-hand, after a public reproduction"
HERLE = "simulations, selected by S/N 8 and 12; 50 % of the selected lie above"
# statistic, point, reference, value, upper end of a range (NaN for one value), remark
PUBLISHED = (
    ("completeness, flat average, 385 cells", "score_0.3", BALAJI, 0.0518, np.nan, "no arc noise, faint red sources"),
    ("completeness, flat average, 385 cells", "fpr_1e-3", BALAJI, 0.0289, np.nan, "no arc noise, faint red sources"),
    ("recall, Tier A", "score_0.3", BALAJI, 0.893, np.nan, "100 of 112 confirmed lenses"),
    ("recall, Tier A", "fpr_1e-3", BALAJI, 0.795, np.nan, "confirmed lenses"),
    ("completeness, lensed r of 20 to 22", "score_0.3", BALAJI, 0.124, np.nan, "lensed magnitude, taken as r"),
    ("two-sample AUC, features of the network", "", BALAJI, 0.997, np.nan, "real lenses against injections"),
    ("AUC", "", "Inchausti et al. 2025", 0.9984, 0.9989, f"validation; {SECOND_HAND}"),
    ("AUC", "", "earlier run of the users", 0.9579, np.nan, "test, n = 62,760"),
    ("recall, Tier A", "score_0.5", "earlier run of the users", 0.6042, np.nan, "48 lenses"),
    ("calibration error, 15 bins", "", "earlier run of the users", 0.0027, np.nan, "test"),
    ("recall without a false positive", "", "Canameras+ XI", 0.1, 0.4, "189 lenses, 70,910 others; committees 0.6"),
    ("recall, Tier A", "fpr_1e-4", "HOLISMOKES XVI", 0.75, np.nan, "FPR about 1e-4"),
    ("recall, Tier A", "fpr_1e-3", "Holloway et al. 2024", 0.46, np.nan, "Bayesian ensemble; best single 0.34"),
    ("recall, Tier A", "", "Lines et al. 2025 (Euclid Q1)", 0.50, np.nan, "real lenses; 0.92 of simulated ones"),
    ("median theta_E of the selected [arcsec]", "fpr_1e-2", "Herle et al. 2024", 0.879, 1.04, HERLE),
    ("median source_R of the selected [arcsec]", "fpr_1e-2", "Herle et al. 2024", 0.178, 0.194, HERLE),
    ("median source_n of the selected", "fpr_1e-2", "Herle et al. 2024", 2.55, 2.62, HERLE),
)  # fmt: skip


def collect_card(stage):
    """Return the benchmark card of a profile from its artifacts.

    Parameters
    ----------
    stage : lensaudit.artifacts.Stage
        That may read `STAGES`.

    Returns
    -------
    pandas.DataFrame
        statistic, point (operating point; empty where there is none), value, lower, upper (95 %; NaN where not made),
        n, reference, reference_value, reference_upper (end of a range), remark. A statistic without a published number
        has an empty reference; a published one that cannot be computed here has value NaN.

    Raises
    ------
    UserError
        When one of the stages has not been made, or a file is not the one its manifest describes.
    """
    limits = stage.read_json("05_evaluation", "thresholds.json")
    cuts = {name: limits[name]["threshold"] for name in POINTS if limits.get(name, {}).get("threshold") is not None}
    rows = pd.DataFrame(_take_evaluation(stage) + _take_realism(stage) + _take_maps(stage, cuts)
                        + _take_quantiles(stage, cuts))  # fmt: skip
    published = pd.DataFrame(PUBLISHED, columns=["statistic", "point", "reference", "reference_value",
                                                 "reference_upper", "remark"])  # fmt: skip
    card = rows.merge(published, on=["statistic", "point"], how="outer", sort=False)
    place = {name: i for i, name in enumerate(dict.fromkeys([*rows["statistic"], *published["statistic"]]))}
    card = card.assign(place=card["statistic"].map(place)).sort_values(["place", "point", "reference"], kind="stable")
    text = ["reference", "remark"]
    return card.assign(**card[text].fillna("")).drop(columns="place").reset_index(drop=True)


def write_card(card):
    """Return the card as text of at most 120 columns: what was measured, the published numbers indented below it.

    Parameters
    ----------
    card : pandas.DataFrame
        From `collect_card`.

    Returns
    -------
    str
    """
    width = card["statistic"].str.len().max()
    lines = [f"{'statistic':{width}}  {'point':9}  {'here':>7}  {'95 %':18}  {'n':>6}"]
    for key, rows in card.groupby(["statistic", "point"], sort=False):
        first = rows.iloc[0]
        known, bounds = np.isfinite(first["value"]), np.isfinite(first["lower"])
        value = f"{first['value']:.4f}" if known else "-"
        interval = f"[{first['lower']:.4f}, {first['upper']:.4f}]" if bounds else ""
        n = f"{first['n']:.0f}" if np.isfinite(first["n"]) else ""
        lines.append(f"{key[0]:{width}}  {key[1]:9}  {value:>7}  {interval:18}  {n:>6}".rstrip())
        for r in rows[rows["reference"] != ""].itertuples():
            number = f"{r.reference_value:g}" + (f" to {r.reference_upper:g}" if np.isfinite(r.reference_upper) else "")
            lines += textwrap.wrap(f"{number}, {r.reference}: {r.remark}", 120, initial_indent=" " * 6,
                                   subsequent_indent=" " * 8)  # fmt: skip
    return "\n".join(lines)


def _row(statistic, point, value, lower=np.nan, upper=np.nan, n=np.nan):
    return {"statistic": statistic, "point": point, "value": value, "lower": lower, "upper": upper, "n": n}


def _take_evaluation(stage):
    name = "05_evaluation"
    record, recall = stage.read_json(name, "evaluation.json"), stage.read_table(name, "recall.parquet")
    own = recall[recall["subset"] == "Tier A"]
    rows = [_row("recall, Tier A", r.point, r.recall, r.lower_total, r.upper_total, r.n) for r in own.itertuples()]
    names = {"auc": "AUC", "tpr0": "recall without a false positive", "tpr10": "recall at 10 false positives"}
    metrics = record["metrics"]
    rows += [_row(text, "", metrics[k]["value"], metrics[k]["lower"], metrics[k]["upper"]) for k, text in names.items()]
    ece = record["reliability"]["ece"]
    return [*rows, _row("calibration error, 15 bins", "", np.nan if ece is None else ece)]


def _take_realism(stage):
    checks = stage.read_table("06_injection_realism", "realism.parquet")
    own = checks[(checks["sample"] == "test") & (checks["check"] == "C2ST penultimate")]
    name = "two-sample AUC, features of the network"
    return [_row(name, "", r.value, r.lower, r.upper) for r in own.itertuples()] or [_row(name, "", np.nan)]


def _take_maps(stage, cuts):
    columns = ["theta_E", "psfsize_r", "depth_r", "logit", "host_index", "brickname", "untied", "mag_lensed_r"]
    table, rows = stage.read_table("07_completeness", "grid_injections.parquet", columns), []
    for file, grid_name in (("cells_385.parquet", "385 cells"), ("cells.parquet", "whole grid")):
        cells = stage.read_table("07_completeness", file)
        grid = {axis: np.sort(cells[axis].unique()) for axis in AXES}
        for weighting, name in (("flat", "flat average"), ("footprint", "survey average")):
            out = average_cells(cells, (), table, grid, cuts, stage.config, weighting)
            text = f"completeness, {name}, {grid_name}"
            rows += [_row(text, r.threshold_name, r.completeness, r.lower, r.upper, r.n_cells)
                     for r in out.itertuples()]  # fmt: skip
    if table["mag_lensed_r"].between(*LENSED).any():
        bright = tabulate_bins(table, {"mag_lensed_r": LENSED}, cuts)
        rows += [_row("completeness, lensed r of 20 to 22", r.threshold_name, r.completeness, r.lower, r.upper, r.n)
                 for r in bright.itertuples()]  # fmt: skip
    return rows


def _take_quantiles(stage, cuts):
    table = stage.read_table("06_injection_realism", "closure_injections.parquet").query("not tilted")
    out = measure_quantiles(table, cuts, stage.config, shares=(0.5,))
    units = {"theta_E": " [arcsec]", "source_R": " [arcsec]"}
    rows = []
    for r in out.itertuples():
        who, point = ("parents", "") if r.sample == "parents" else ("selected", r.sample)
        name = f"median {r.variable} of the {who}{units.get(r.variable, '')}"
        rows.append(_row(name, point, r.value, r.lower, r.upper, r.n))
    return rows
