"""The merging rule on small grids worked by hand, and averages over grids."""

import numpy as np
import pandas as pd
import pytest

from lensaudit import stats
from lensaudit.artifacts import UserError
from lensaudit.audit import completeness, merging
from lensaudit.config import load_config

CONFIG = load_config("demo")
GRID = {"theta_E": (1.0, 1.5), "seeing": (1.0, 1.2), "depth": (23.0, 24.0, 25.0)}


def make_table(numbers, p=0.4, seed=0, per_host=2):
    """Injections with numbers[theta_E][seeing][depth] in each cell; hosts and bricks of a column are its own."""
    index = np.repeat(np.arange(12), np.ravel(numbers))
    i, j, k = np.unravel_index(index, (2, 2, 3))
    column, order = 3 * j + k, np.arange(len(index)) // per_host
    generator = np.random.default_rng(seed)
    return pd.DataFrame({
        "injection_id": np.arange(len(index)), "theta_E": np.take(GRID["theta_E"], i),
        "psfsize_r": np.take(GRID["seeing"], j), "depth_r": np.take(GRID["depth"], k), "untied": False,
        "footprint_weight": 1.0, "host_index": 1000 * column + order,
        "brickname": [f"{c}-{b}" for c, b in zip(column, order % 8, strict=True)],
        "logit": np.where(generator.random(len(index)) < p, 1.0, -1.0),
    })  # fmt: skip


def count(table, thresholds=None):
    hosts = table.drop_duplicates("host_index").assign(deflector_weight=1.0, deployment_weight=1.0)
    return completeness.count_cells(table, GRID, thresholds or {"t": 0.0}, CONFIG, hosts)


def test_groups_follow_the_rule():
    """First radius: 120 + 90 along depth, 80 with the next in depth; second: empty cells bar the way."""
    table = make_table([[[120, 90, 300], [80, 300, 250]], [[0, 100, 0], [60, 70, 0]]])
    merged = merging.merge_cells(count(table), table, GRID, CONFIG)
    # 60 + 70 along depth are 130; their only neighbour along seeing is the 100, which makes 230.
    assert merged["merged_into"].tolist() == [0, 0, 2, 3, 3, 5, -1, 7, -1, 7, 7, -1]
    assert merged["n_merged"].tolist() == [2, 2, 1, 2, 2, 1, 0, 3, 0, 3, 3, 0]
    assert merged["n"].tolist() == [210, 210, 300, 380, 380, 250, 0, 230, 0, 230, 230, 0]
    assert merged["sufficient"].tolist() == [True] * 6 + [False, True, False, True, True, False]
    assert (merged.loc[merged["n"] == 0, "reason"] == "no injection").all() and merged["completeness"].isna().sum() == 3
    assert merged.loc[7, ["seeing_low", "seeing_high", "depth_low", "depth_high"]].tolist() == [1.0, 1.2, 23.0, 24.0]


def test_merged_numbers_are_those_of_all_injections_of_the_group():
    table = make_table([[[120, 90, 300], [80, 300, 250]], [[150, 100, 220], [60, 70, 210]]], seed=2)
    cells = count(table)
    merged = merging.merge_cells(cells, table, GRID, CONFIG)
    part = table[(table["theta_E"] == 1.0) & (table["psfsize_r"] == 1.0) & (table["depth_r"] < 24.5)]
    row, k = merged.iloc[0], int((part["logit"] > 0).sum())
    rho = cells[["rho_host", "rho_brick"]].iloc[0]
    n_eff = stats.effective_n(part["host_index"], part["brickname"], *rho)
    assert (row["k"], row["n_hosts"], row["n_bricks"]) == (k, part["host_index"].nunique(), part["brickname"].nunique())
    assert row["n_eff"] == pytest.approx(n_eff) and row["completeness"] == k / 210
    expected = stats.jeffreys_interval(n_eff * k / 210, n_eff, 0.68)
    assert row[["lower_68", "upper_68"]].tolist() == pytest.approx(expected)
    single = merged["n_merged"] == 1
    shared = ["n", "k", "n_eff", "lower_95", "upper_95", "sufficient"]
    assert single.any()
    assert np.allclose(merged.loc[single, shared].astype(float), cells.loc[single, shared].astype(float))
    for _, group in merged.groupby(["theta_E", "merged_into"]):
        assert group["n"].iloc[0] == cells.loc[group.index, "n"].sum()


def test_merging_does_not_depend_on_row_order_and_leaves_the_map_alone():
    table = make_table([[[120, 90, 300], [80, 300, 250]], [[0, 100, 0], [60, 70, 0]]])
    cells = count(table)
    before, merged = cells.copy(), merging.merge_cells(cells, table, GRID, CONFIG)
    pd.testing.assert_frame_equal(cells, before)
    shuffled = table.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(merged, merging.merge_cells(cells, shuffled, GRID, CONFIG))


def test_what_stays_insufficient_says_so():
    table = make_table([[[40, 50, 0], [30, 20, 0]], [[0, 0, 220], [0, 0, 0]]])
    merged = merging.merge_cells(count(table, {"t": 0.0, "out": 9.0}), table, GRID, CONFIG)
    own = merged[merged["threshold_name"] == "t"]
    assert own.loc[own["n_merged"] == 4, "reason"].tolist() == ["fewer than 200 injections"] * 4
    assert own["sufficient"].sum() == 1
    out = merged[merged["threshold_name"] == "out"]
    assert not out["sufficient"].any() and out.loc[out["n"] == 220, "reason"].item() == "threshold above every score"
    with pytest.raises(UserError, match="count them again"):
        merging.merge_cells(count(table), table.iloc[1:], GRID, CONFIG)
    empty = merging.merge_cells(count(table.iloc[:0]), table.iloc[:0], GRID, CONFIG)
    assert len(empty) == 12 and (empty["merged_into"] == -1).all() and not empty["sufficient"].any()


def test_grids_are_compared_on_their_own_sufficient_cells():
    """The shallow grid lacks the deep cells, where all is found; its flat average is that of the others."""
    table = make_table(np.full((2, 2, 3), 220))
    table["logit"] = np.where(table["depth_r"] == 25.0, 1.0, -1.0)
    shallow = GRID | {"depth": GRID["depth"][:2]}
    hosts = table.drop_duplicates("host_index").assign(deflector_weight=1.0, deployment_weight=1.0)
    cells = {name: completeness.count_cells(table, grid, {"t": 0.0}, CONFIG, hosts)
             for name, grid in (("default", GRID), ("common", shallow))}  # fmt: skip
    draws = {"t": np.zeros(5)}
    out = merging.compare_grids(cells, table, {"default": GRID, "common": shallow}, {"t": 0.0}, CONFIG, draws)
    flat = out[out["weighting"] == "flat"].set_index("grid")
    assert flat["completeness"].to_dict() == pytest.approx({"default": 1 / 3, "common": 0.0, "cells of both": 0.0})
    assert flat["n_cells"].to_dict() == {"default": 12, "common": 8, "cells of both": 8}
    assert flat["n_grid"].to_dict() == {"default": 12, "common": 8, "cells of both": 12}
    assert (flat["n_empty"] == 0).all() and len(out) == 6 and (flat["sigma_threshold"] < 1e-12).all()
    # A cell that either grid finds insufficient is in no average of common cells; the order makes no difference.
    spoiled = {"default": cells["default"].assign(sufficient=cells["default"]["theta_E"] != 1.0),
               "common": cells["common"].assign(sufficient=cells["common"]["seeing"] != 1.0)}  # fmt: skip
    table["logit"] = np.where((table["theta_E"] == 1.5) & (table["depth_r"] == 24.0), 1.0, -1.0)
    for order in (("default", "common"), ("common", "default")):
        grids = {name: {"default": GRID, "common": shallow}[name] for name in order}
        out = merging.compare_grids({name: spoiled[name] for name in order}, table, grids, {"t": 0.0}, CONFIG)
        both = out[(out["grid"] == "cells of both") & (out["weighting"] == "flat")].iloc[0]
        assert both["n_cells"] == both["n_sufficient"] == 2 and both["completeness"] == 0.5
