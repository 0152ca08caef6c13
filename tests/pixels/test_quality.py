"""Quality features against closed forms, the rejection rules, and shortcut flags that fire when they should."""

import numpy as np
import pandas as pd
import pytest

from lensaudit.artifacts import UserError
from lensaudit.pixels.quality import FEATURES, flag_shortcuts, match_negatives, measure_quality, summarise_quality


def make_images(n=6, seed=0, sigma=0.02):
    return np.random.default_rng(seed).normal(0, sigma, (n, 3, 101, 101)).astype(np.float32)


def radius(size=101):
    y, x = np.indices((size, size)) - size // 2
    return np.hypot(x, y), np.arctan2(y, x)


def test_distribution_is_that_of_numpy():
    images = make_images()
    table = measure_quality(images)
    band = images[2, 1].astype(float)
    row = table.iloc[2]
    assert row["median_r"] == pytest.approx(np.median(band), abs=1e-6)
    assert row["mad_r"] == pytest.approx(np.median(np.abs(band - np.median(band))), abs=1e-6)
    assert row["percentile_1_r"] == pytest.approx(np.percentile(band, 1), abs=1e-6)
    assert row["percentile_99_r"] == pytest.approx(np.percentile(band, 99), abs=1e-6)
    assert row["mean_r"] == pytest.approx(band.mean(), abs=1e-6) and row["std_r"] == pytest.approx(band.std(), rel=1e-4)
    assert table["quality_ok"].all() and (table["reason"] == "").all() and not table["rim_gap"].any()
    assert np.isfinite(table[list(FEATURES)].drop(columns=["annulus_core_g_r", "annulus_core_r_z"]).to_numpy()).all()


def test_invalid_pixels_leave_the_statistics_alone():
    images = make_images(2)
    images[1] = images[0]
    images[1, :, :9] = 0
    table = measure_quality(images)
    band = images[0, 1, 9:].astype(float)
    assert table["std_r"][1] == pytest.approx(band.std(), rel=1e-4)
    assert table["percentile_99_r"][1] == pytest.approx(np.percentile(band, 99), abs=1e-6)
    assert table["rim_gap"][1] and table["quality_ok"][1]
    assert table["nan_count_g"][1] == 909 and table["nan_frac"][1] == pytest.approx(9 / 101)


@pytest.mark.parametrize(
    ("where", "value", "reason"),
    [
        ((0, slice(None), slice(None)), np.nan, "band g has no data"),
        ((2, slice(None), slice(None)), 0.0, "band z has no data"),
        ((1, 52, 50), 0.0, "pixel without data in the core"),
        ((1, slice(None), slice(60, 63)), 0.0, "more than 2 per cent"),
        ((1, 20, 20), np.nan, "non-finite pixel in the central 64x64"),
        ((1, 5, 5), np.nan, ""),
        ((1, slice(26, 27), slice(26, 76)), 0.0, ""),  # exactly 2 per cent of the central 50x50
        ((1, slice(None), slice(None)), 0.5, "constant background"),
    ],
)
def test_rejection_rules(where, value, reason):
    images = make_images(3)
    images[(1, *where)] = value
    table = measure_quality(images)
    assert table["reason"][1].startswith(reason) and table["quality_ok"][1] == (reason == "")
    assert table["quality_ok"][[0, 2]].all()


def test_brightness_and_colour_of_a_known_profile():
    r, _ = radius()
    images = make_images(1, sigma=1e-6)
    images[0] += np.where(r < 4, 8.0, np.where(r < 16, 1.0, 0.0)) * np.array([0.25, 1.0, 2.0])[:, None, None]
    images[0, 1] += np.where((r >= 4) & (r < 16), 1.0, 0.0)  # the annulus is redder than the core in g-r by 2.5 log10 2
    row = measure_quality(images).iloc[0]
    assert row["core_brightness_4_r"] == pytest.approx(8.0, rel=1e-3) and row["core_max_r"] == pytest.approx(
        8.0, rel=1e-3
    )
    assert row["annulus_brightness_r"] == pytest.approx(2.0, rel=1e-3)
    assert row["annulus_core_g_r"] == pytest.approx(2.5 * np.log10(2), abs=1e-3)
    assert row["annulus_core_r_z"] == pytest.approx(-2.5 * np.log10(2), abs=1e-3)


def test_structure_features_see_an_arc_and_not_a_round_galaxy():
    r, phi = radius()
    images = make_images(3)
    profile = 0.5 * np.exp(-r / 4)
    images[1] += profile
    images[2] += profile + 0.2 * np.exp(-0.5 * ((r - 8) / 1.5) ** 2) * (np.abs(phi) < 0.8)
    table = measure_quality(images)
    for name in ("asymmetry_r", "ridge_r"):
        assert table[name][2] > 1.5 * table[name][1]
        assert table[name][1] < 1.3 * table[name][0]


def test_artefact_scores():
    images = make_images(2)
    images[1, :, :, 3] += 0.2
    r, _ = radius()
    images[1] += np.where(r < 5, 30.0, 0.0)
    table = measure_quality(images)
    assert table["edge_score_r"][1] > 5 * table["edge_score_r"][0]
    assert table["saturation_r"][1] > 0.3 > table["saturation_r"][0]


def test_summary_counts_every_stamp():
    images = make_images(4)
    images[1, 0] = np.nan
    summary = summarise_quality(measure_quality(images).assign(label=[1, 1, 0, 0])).set_index("reason")
    assert summary["n"].to_dict() == {"kept": 3, "band g has no data": 1}
    assert summary.loc["band g has no data", "n_lenses"] == 1


def make_table(n=1500, seed=3):
    """Lenses are brighter hosts; `hidden` follows the host's magnitude only, `planted` the label itself."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) < n // 5
    mag = rng.normal(19.0, 0.8, n) - 0.8 * label
    table = pd.DataFrame({
        "label": label.astype(int), "mag_r": mag, "mag_g": mag + rng.normal(1.2, 0.2, n),
        "shape_r": 10 ** rng.normal(0, 0.2, n), "psfsize_r": rng.normal(1.2, 0.1, n), "depth_r": rng.normal(24, 0.3, n),
    })  # fmt: skip
    return table.assign(
        hidden=-mag + rng.normal(0, 0.1, n), planted=label * 1.5 + rng.normal(0, 1, n), null=rng.normal(0, 1, n),
        reverse=-1.5 * label + rng.normal(0, 1, n),
    )  # fmt: skip


def test_shortcuts_survive_matching_only_when_they_are_real():
    table = make_table()
    flags = flag_shortcuts(table, seed=1, features=("hidden", "planted", "null", "reverse")).set_index("feature")
    assert flags.loc["hidden", "auc"] > 0.7 and flags.loc["hidden", "flag"] == "none"
    assert flags.loc["planted", "flag"] == "red" and flags.loc["reverse", "flag"] == "red"
    assert flags.loc["reverse", "sign"] == -1
    assert flags.loc["null", "flag"] == "none"
    # AUC of two unit normals 1.5 apart: Phi(1.5 / sqrt 2) = 0.856.
    assert flags.loc["planted", "lower"] < 0.856 < flags.loc["planted", "upper"]
    assert (flags["n_pairs"] <= flags["n_lenses"]).all() and (flags["n_pairs"] > 150).all()
    again = flag_shortcuts(table, seed=1, features=("planted",)).set_index("feature")
    assert again.loc["planted", "auc"] == flags.loc["planted", "auc"]


def test_matched_pairs_are_alike():
    table = make_table()
    lenses, negatives = match_negatives(table)
    assert (table["label"].to_numpy()[lenses] == 1).all() and (table["label"].to_numpy()[negatives] == 0).all()
    gap = table["mag_r"].to_numpy()[lenses] - table["mag_r"].to_numpy()[negatives]
    assert abs(gap.mean()) < 0.2 and np.abs(gap).max() <= table["mag_r"][table["label"] == 1].std(ddof=0) + 1e-9
    with pytest.raises(UserError, match="depth_r"):
        match_negatives(table.drop(columns="depth_r"))
