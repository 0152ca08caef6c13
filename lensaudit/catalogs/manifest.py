"""The schema of the training manifest: names, types and the rules a row must keep."""

from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS

REQUIRED = ("cutout_path", "label", "split", "sample_weight")
_TEXT = (
    "cutout_path", "filename", "galaxy_id", "cutout_type", "timestamp", "pipeline_version", "cutout_url", "layer",
    "bands_requested", "tier", "match_type", "brickname", "split", "pool", "confuser_category", "nobs_z_bin", "type",
    "type_bin",
)  # fmt: skip
_INTEGER = ("label", "size", "nobs_z", *(f"nan_count_{band}" for band in BANDS))
_BOOLEAN = (*(f"has_{band}" for band in BANDS), "quality_ok")
_DOUBLE = (
    "ra", "dec", "pixel_scale", "weight", "sample_weight", "nan_frac", "central_nan_frac", "core_brightness_r",
    "core_max_r", "annulus_brightness_r", "annulus_std_r", "outer_brightness_r", "radial_gradient_r", "mad_r", "std_r",
    "median_r", "mean_r", "percentile_1_r", "percentile_99_r", "clip_frac_r", "healpix_128", "psfsize_r",
    "psfdepth_r", "galdepth_r", "ebv",
)  # fmt: skip
# Column -> kind, as the prior project's training_v1 table has them.
SCHEMA = (
    {name: "string" for name in _TEXT} | {name: "int64" for name in _INTEGER} | {name: "bool" for name in _BOOLEAN}
    | {name: "double" for name in _DOUBLE}
)  # fmt: skip
SPLITS = ("train", "val", "test", "silver")
TIERS = ("A", "B", "S", "N1", "N1b", "N2")


def cast_manifest(table):
    """Return the table with every schema column in its type: int32 counts to int64, float32 to double, text to string.

    Raises
    ------
    UserError
        When a value cannot be represented, naming the column.
    """
    casts = {"int64": np.int64, "double": float, "bool": bool, "string": "str"}
    table = table.copy()
    for name, kind in SCHEMA.items():
        if name in table:
            try:
                table[name] = table[name].astype(casts[kind])
            except (TypeError, ValueError) as error:
                raise UserError(f"training manifest: column {name} is not {kind} ({error})") from None
    return table


def validate_manifest(table):
    """Check a training manifest against the schema and its rules.

    Parameters
    ----------
    table : pandas.DataFrame
        Required are cutout_path, label, split and sample_weight; other columns of `SCHEMA` are checked when present,
        further columns pass.

    Returns
    -------
    pandas.DataFrame
        The table, unchanged.

    Raises
    ------
    UserError
        One line with everything that is wrong and where.
    """
    missing = [name for name in REQUIRED if name not in table]
    problems = [f"column(s) {', '.join(missing)} missing"] if missing else []
    for name, kind in SCHEMA.items():
        if name in table and not _has_kind(table[name], kind, name):
            problems.append(f"column {name} is {table[name].dtype}, not {kind}")
    if not problems:
        problems = _check_rows(table)
    if problems:
        raise UserError(f"training manifest: {'; '.join(problems)}; mend the stage that wrote it")
    return table


def _has_kind(column, kind, name):
    types = pd.api.types
    if kind == "string":
        return types.is_string_dtype(column)
    if kind == "bool":
        return types.is_bool_dtype(column)
    if kind == "int64":
        return column.dtype == np.int64
    return types.is_float_dtype(column) or (name == "healpix_128" and types.is_integer_dtype(column))


def _check_rows(table):
    label, weight, path = table["label"], table["sample_weight"], table["cutout_path"]
    rules = {
        "label is not 0 or 1": ~label.isin([0, 1]),
        f"split is not one of {', '.join(SPLITS)}": ~table["split"].isin(SPLITS),
        "sample_weight is not a number >= 0": ~(np.isfinite(weight) & (weight >= 0)),
        "cutout_path is empty": path.isna() | (path.str.len() == 0),
        "cutout_path is absolute": path.map(lambda p: PurePosixPath(str(p)).is_absolute()),
        "cutout_path occurs twice": path.duplicated(keep=False) & path.notna() & (path.str.len() > 0),
    }
    if "tier" in table:
        rules["tier does not fit the label"] = ~table["tier"].isin(TIERS) | (
            table["tier"].isin(["A", "B", "S"]) != (label == 1)
        )
    return [f"{text} in {int(bad.sum())} row(s), first {path[bad].iloc[0]!r}" for text, bad in rules.items()
            if bad.any()]
