"""The survey's completeness under a catalogue's weights comes back from a known recovery and a known selection."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from lensaudit.artifacts import UserError
from lensaudit.audit import calibrated, completeness, unfolding
from lensaudit.config import load_config

CONFIG = load_config("smoke")
GRID = {"theta_E": (0.75, 1.25, 1.75, 2.25), "seeing": (1.0, 1.2, 1.4, 1.6), "depth": (23.5, 24.5, 25.5)}
THRESHOLDS = {"a": 0.0, "b": 2.0}


def draw_arcs(n, seed, selected=False, shift=0.0):
    """Arcs, found the likelier the brighter arc and host; `selected`: as a catalogue holds them; hosts by `shift`."""
    rng = np.random.default_rng(seed)
    n_all = 12 * n if selected else n
    snr, theta = 5.0 * rng.pareto(1.2, n_all) + 5.0, rng.uniform(0.5, 2.5, n_all)
    psfsize = rng.uniform(0.9, 1.7, n_all)
    chance = expit(3.0 * np.log(snr / 30.0)) * expit(4.0 * (theta / psfsize - 0.9)) if selected else np.ones(n_all)
    keep = np.flatnonzero(rng.random(n_all) < chance)[:n]
    snr, theta, psfsize, n = snr[keep], theta[keep], psfsize[keep], len(keep)
    mag = rng.normal(18.5 + shift, 0.6, n)
    logit = 2.5 * np.log(snr / 35.0) - 1.2 * (mag - 18.5) + rng.logistic(size=n)
    host = rng.integers(0, n // 3, n)
    return pd.DataFrame({
        "arc_snr_true": snr, "theta_E": theta, "psfsize_r": psfsize, "depth_r": rng.uniform(23.3, 25.7, n),
        "mag_host": mag, "arc_energy": 0.7 * snr * rng.lognormal(0.0, 0.5, n) + rng.normal(0, 2, n),
        "arc_snr": 0.2 * snr * rng.lognormal(0.0, 0.6, n) + rng.normal(0, 2, n),
        "arc_radius": np.where(rng.random(n) < 0.2, np.nan, theta + rng.normal(0, 0.3, n)),
        "galaxy_id": [f"g{i}" for i in range(n)], "split": "train", "tier": "A", "footprint_weight": 1.0,
        "host_index": host, "brickname": (host // 5).astype(str), "logit": logit,
    })  # fmt: skip


@pytest.fixture(scope="module")
def world():
    """Rows drawn twice as often at bright S/N, whose prior weights undo it; lenses in brighter hosts."""
    table = draw_arcs(15000, 1)
    keep = np.random.default_rng(2).random(len(table)) < np.where(table["arc_snr_true"] > 20, 1.0, 0.5)
    table = table[keep].reset_index(drop=True)
    weights = np.where(table["arc_snr_true"] > 20, 1.0, 2.0)
    lenses = draw_arcs(1000, 3, selected=True, shift=-0.4)
    selection = unfolding.unfold_selections({"main": draw_arcs(15000, 4)}, lenses, CONFIG)["main"]
    return table, weights, lenses, selection


def make_cells(sufficient=None):
    index = pd.MultiIndex.from_product(list(GRID.values()), names=completeness.AXES).to_frame(index=False)
    return pd.concat([index.assign(threshold_name=n, sufficient=True if sufficient is None else sufficient)
                      for n in THRESHOLDS], ignore_index=True)  # fmt: skip


def run(table, weights, lenses, selection, cells=None):
    out = calibrated.average_calibrated(table, weights, make_cells() if cells is None else cells, GRID, THRESHOLDS,
                                        lenses, selection, CONFIG)  # fmt: skip
    return out.set_index(["weighting", "threshold_name"])


def test_each_average_is_that_of_fresh_arcs(world):
    out, inside = run(*world), lambda t: completeness.assign_cells(t, GRID) >= 0
    fresh = {"prior": draw_arcs(60000, 5), "conditions": draw_arcs(60000, 6, shift=-0.4),
             "conditions and images": draw_arcs(30000, 7, selected=True, shift=-0.4)}  # fmt: skip
    for name, table in fresh.items():
        for point, threshold in THRESHOLDS.items():
            row, true = out.loc[(name, point)], (table[inside(table)]["logit"] > threshold).mean()
            assert row["reason"] == "" and row["lower"] < row["completeness"] < row["upper"]
            # The selection comes back from 15,000 arcs with a bias of 0.01 to 0.04 (towards the prior).
            assert abs(row["completeness"] - true) < (0.05 if "images" in name else 0.02), (name, point, true)
    first = out.xs("a", level=1)["completeness"]
    assert first["prior"] + 0.02 < first["conditions"] < first["conditions and images"] - 0.3
    assert out.loc[("conditions and images", "a"), "n_eff"] < out.loc[("prior", "a"), "n_eff"]


def test_no_lens_is_a_label_and_test_lenses_do_not_count(world):
    table, weights, lenses, selection = world
    more = pd.concat([lenses, draw_arcs(500, 8, shift=3.0).assign(split="test")], ignore_index=True)
    changed = more.assign(logit=-more["logit"])
    pd.testing.assert_frame_equal(run(*world), run(table, weights, changed, selection))


def test_only_supported_cells_enter(world):
    table, weights, lenses, selection = world
    cells = make_cells()
    cells["sufficient"] = cells["depth"] < 25
    own = table["depth_r"] < 25
    left = run(table, weights, lenses, selection, cells)
    pd.testing.assert_frame_equal(left, run(table[own], weights[own], lenses, selection))


def test_guards_refuse_with_the_reason(world):
    table, weights, lenses, selection = world
    few = run(table.assign(host_index=np.arange(len(table)) % 20), weights, lenses, selection)
    assert few["completeness"].isna().all() and few["reason"].str.contains("effective size .* below 30").all()
    heavy = weights.copy()
    heavy[completeness.assign_cells(table, GRID).argmax()] = 0.08 * weights.sum()
    row = run(table, heavy, lenses, selection).loc[("prior", "a")]
    assert "of the weight" in row["reason"] and np.isnan(row["upper"])
    refused = run(table, weights, lenses, {"reason": "3 lenses"})
    assert refused.loc[("conditions and images", "a"), "reason"] == "3 lenses"
    assert refused.loc[("conditions", "a"), "reason"] == ""
    none = run(table, weights, lenses.head(0), None)
    assert "sets the conditions" in none.loc[("conditions", "b"), "reason"] and none.loc[("prior", "b"), "reason"] == ""
    empty = run(table, 0.0 * weights, lenses, selection)
    assert empty["completeness"].isna().all() and (empty["reason"] != "").all()


@pytest.mark.parametrize("column", ["footprint_weight", "mag_host"])
def test_a_missing_column_is_named(world, column):
    with pytest.raises(UserError, match=column):
        run(world[0].drop(columns=column), *world[1:])
