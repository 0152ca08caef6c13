"""Score tables: read from Parquet or CSV, joined to the manifest by key, labelled by stratum."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from lensaudit.artifacts import UserError, read_table

KEYS = ["galaxy_id", "cutout_path"]
SEEING_EDGES = (0.0, 1.1, 1.4, np.inf)  # psfsize_r [arcsec], about the terciles of the simulated and the real survey
DEPTH_EDGES = (0.0, 23.5, 24.5, np.inf)  # depth_r [AB mag]


def read_scores(path):
    """Read a score table from Parquet or CSV; it needs the two keys and ``logit`` or ``score``."""
    path = Path(path)
    if path.suffix.lower() != ".csv":
        return read_table(path)
    try:
        return pd.read_csv(path, dtype=dict.fromkeys(KEYS, str))
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path.name}: not a readable CSV table ({error}); write it with a header line") from None


def join_scores(manifest, scores):
    """Join scores to the manifest by key, never by position.

    Parameters
    ----------
    manifest : DataFrame
        With ``galaxy_id`` and ``cutout_path``, one row per object.
    scores : DataFrame
        With the same keys and ``logit`` or ``score`` (a probability); any order.

    Returns
    -------
    DataFrame
        The manifest sorted by key, with float64 ``logit`` and ``score``.

    Raises
    ------
    UserError
        For a missing column, a missing, duplicate or extra key, or a score that is not finite.
    """
    for name, table in (("manifest", manifest), ("score table", scores)):
        absent = [c for c in KEYS if c not in table]
        if absent:
            raise UserError(f"{name}: column(s) {', '.join(absent)} missing; scores are joined by {' and '.join(KEYS)}")
        twice = table.duplicated(KEYS)
        if twice.any():
            raise UserError(f"{name}: {int(twice.sum())} duplicate key(s), first {table.loc[twice, KEYS[0]].iloc[0]}; "
                            "keep one row per object")  # fmt: skip
    if "logit" not in scores and "score" not in scores:
        raise UserError("score table: column logit or score missing; give one of them")
    values = scores["logit"] if "logit" in scores else logit(np.clip(scores["score"].astype(float), 1e-12, 1 - 1e-12))
    given = scores[KEYS].assign(logit=np.asarray(values, dtype=float))
    table = manifest.drop(columns=["logit", "score"], errors="ignore")
    table = table.merge(given, on=KEYS, how="outer", indicator=True)
    for side, text in (("left_only", "without a score"), ("right_only", "scored but not in the manifest")):
        wrong = table.loc[table["_merge"] == side, KEYS[0]]
        if len(wrong):
            raise UserError(f"{len(wrong)} object(s) {text}, first {wrong.iloc[0]}; score exactly the manifest's rows")
    bad = ~np.isfinite(table["logit"])
    if bad.any():
        raise UserError(f"score of {table.loc[bad, KEYS[0]].iloc[0]} is not finite; {int(bad.sum())} such row(s)")
    table = table.drop(columns="_merge").sort_values(KEYS, ignore_index=True)
    return table.assign(score=expit(table["logit"]))


def label_strata(table):
    """Add ``seeing_bin``, ``depth_bin``, ``confuser_proxy`` and ``confuser_label`` to a joined table.

    When not given, depth_r = 22.5 - 2.5 log10(5 / sqrt(psfdepth_r)), the survey's 5-sigma point-source depth, not
    extinction-corrected. Categories that people labelled start with ``labelled_``; all others are catalogue proxies.
    """
    table = table.copy()
    if "depth_r" not in table:
        with np.errstate(divide="ignore", invalid="ignore"):
            table["depth_r"] = 22.5 - 2.5 * np.log10(5.0 / np.sqrt(table["psfdepth_r"].astype(float)))
    for name, column, edges, unit in (("seeing_bin", "psfsize_r", SEEING_EDGES, "arcsec"),
                                      ("depth_bin", "depth_r", DEPTH_EDGES, "mag")):  # fmt: skip
        inner = edges[1:-1]
        names = [f"< {inner[0]:g} {unit}", f"{inner[0]:g}-{inner[1]:g} {unit}", f">= {inner[1]:g} {unit}"]
        table[name] = pd.cut(table[column], edges, labels=names, right=False).astype(str)
    category = table["confuser_category"].fillna("").astype(str)
    labelled = category.str.startswith("labelled_")
    return table.assign(confuser_proxy=category.mask(labelled, ""),
                        confuser_label=category.where(labelled, "").str.removeprefix("labelled_"))  # fmt: skip


def order_bins(name):
    """Return a sort key that puts ``< 1.1``, ``1.1-1.4``, ``>= 1.4`` (and ``3-5``, ``11+``) in numerical order."""
    keys = []
    for part in str(name).split(" / "):
        number = re.search(r"\d+\.?\d*", part)
        keys.append((part.startswith(">"), not part.startswith("<"), float(number[0]) if number else 0.0, part))
    return keys


def label_classes(table):
    """Return ``class``, ``seeing_bin``, ``seeing_order``, ``logit`` per object, for the score distributions."""
    tier = np.where(table["tier"] == "A", "Tier A lenses", "Tier B lenses")
    pool = np.where(table["pool"] == "N1", "galaxies (N1)", "confusers (N2)")
    names = sorted(table["seeing_bin"].unique(), key=order_bins)
    return table[["seeing_bin", "logit"]].assign(
        **{"class": np.where(table["label"] == 1, tier, pool)}, seeing_order=table["seeing_bin"].map(names.index)
    )


def stack_lenses(*tables):
    """Return ids, tier, split and logit of the labelled lenses of several joined tables, one below the other."""
    columns = ["galaxy_id", "system_id", "tier", "split", "logit"]
    return pd.concat([table.loc[table["label"] == 1, columns] for table in tables], ignore_index=True)
