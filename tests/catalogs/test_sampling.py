"""The parent sample, confuser proxies, the draw and its inclusion probabilities."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from lensaudit.catalogs import confusers, sampling, sphere, splits
from lensaudit.constants import MASKBITS


def test_mask_bits_are_those_of_the_parent_sample():
    assert sorted(MASKBITS[name] for name in sampling.PARITY_MASK) == [1, 5, 6, 7, 11, 12, 13]


def test_each_cut_alone_and_in_order(galaxies, systems, config):
    """Against a row-by-row walk through the cuts."""
    part = galaxies.iloc[:2000].reset_index(drop=True)
    flags = sampling.flag_cuts(part, systems, config.sampling)
    parity = sampling.measure_parity(part, flags, config.sampling).set_index("cut")
    _, distance = sphere.find_nearest(part["ra"], part["dec"], systems["ra"], systems["dec"])
    removed = dict.fromkeys(flags, 0)
    left = 0
    for k, row in enumerate(part.to_dict("records")):
        fails = [
            False, not -18 < row["dec"] < 32, row["type"] not in ("SER", "DEV", "REX"),
            any(row["maskbits"] >> bit & 1 for bit in (1, 5, 6, 7, 11, 12, 13)),
            min(row["nobs_g"], row["nobs_r"], row["nobs_z"]) < 3, not row["flux_z"] > 0,
            row["flux_z"] > 0 and 22.5 - 2.5 * np.log10(row["flux_z"]) >= 20, distance[k] <= 11.0,
        ]  # fmt: skip
        assert list(~flags.iloc[k]) == fails
        if any(fails):
            removed[list(flags)[fails.index(True)]] += 1
        else:
            left += 1
    assert removed == parity.loc[list(flags), "n_removed_in_order"].to_dict()
    assert left == parity.loc["known_lens", "n_left"] == len(part) - sum(removed.values())
    assert parity.loc["nobs_g", "n_removed_alone"] == (part["nobs_g"] < 3).sum()


def test_positions_that_are_not_finite_are_cut(galaxies, systems, config):
    part = galaxies.iloc[:5].assign(ra=[np.nan, 1, 2, 3, np.inf])
    flags = sampling.flag_cuts(part, systems, config.sampling)
    assert list(flags["coordinates"]) == [False, True, True, True, False]


def test_candidates_keep_away_from_lenses_and_exp_apart(selected, systems):
    candidates, _ = selected
    _, distance = sphere.find_nearest(candidates["ra"], candidates["dec"], systems["ra"], systems["dec"])
    assert distance.min() > 11.0
    assert ((candidates["type"] == "EXP") == (candidates["pool"] == "N1b")).all()
    assert ((candidates["confuser_category"] != "") | (candidates["pool"] != "N2")).all()
    assert (candidates["region_id"] == candidates["healpix_128"] // 64).all()
    assert candidates["galaxy_id"].is_monotonic_increasing


PLAIN = {"type": "REX", "sersic": 1.0, "flux_r": 10.0, "mag_g": 21.0, "mag_r": 20.0, "shape_r": 0.5, "shape_e1": 0.0,
         "shape_e2": 0.0, "fracflux_r": 0.0, "star_distance": 900.0, "star_mag": 15.0}  # fmt: skip


@pytest.mark.parametrize(("change", "category"), [
    ({}, ""), ({"type": "DEV"}, "ring_proxy"), ({"type": "DEV", "flux_r": 4.9}, ""),
    ({"type": "SER", "sersic": 4.0}, "ring_proxy"), ({"type": "SER", "sersic": 5.5}, "agn_proxy"),
    ({"shape_e1": 0.3, "shape_e2": -0.4, "shape_r": 0.6}, "edge_on_proxy"),
    ({"shape_e1": 0.3, "shape_e2": -0.39, "shape_r": 0.6}, ""), ({"mag_g": 20.4}, "blue_clumpy"),
    ({"mag_g": 20.9, "mag_r": 20.6}, ""), ({"mag_g": 20.7, "shape_r": 0.8}, "spiral_proxy"),
    ({"shape_r": 2.0}, "large_galaxy"), ({"fracflux_r": 0.5}, "merger_neighbour"),
    ({"mag_g": np.nan, "mag_r": np.nan}, ""), ({"star_distance": 21.0, "star_mag": 15.0}, "bright_star_neighbourhood"),
])  # fmt: skip
def test_confuser_proxies(change, category):
    one = pd.DataFrame([PLAIN | change | {"ra": 10.0, "dec": 0.0}])
    nothing = pd.DataFrame({"ra": [], "dec": [], "mag": [], "label": []})
    assert list(confusers.classify_confusers(one, one, nothing, nothing)) == [category]


def test_labelled_objects_and_neighbours():
    arcsec = 1 / 3600
    pair = pd.DataFrame([PLAIN | {"ra": 10.0, "dec": 0.0}, PLAIN | {"ra": 10.0, "dec": 4 * arcsec, "flux_r": 5.0},
                         PLAIN | {"ra": 20.0, "dec": 0.0}, PLAIN | {"ra": 20.0, "dec": 2 * arcsec}])  # fmt: skip
    labels = pd.DataFrame({"ra": [20.0], "dec": [0.5 * arcsec], "label": ["ring"]})
    stars = pd.DataFrame({"ra": [], "dec": [], "mag": []})
    found = list(confusers.classify_confusers(pair, pair, stars, labels))
    assert found == ["merger_neighbour", "merger_neighbour", "labelled_ring", "labelled_ring"]
    assert list(confusers.find_bright_neighbours(pair, pair)) == [True, True, False, False]


def test_draw_has_exact_numbers_and_pools(drawn, config):
    samples, report = drawn
    negatives = samples[samples["label"] == 0]
    for name in ("train", "val", "test"):
        n = getattr(config.sampling, f"n_{name}")
        pools = negatives.loc[negatives["split"] == name, "pool"].value_counts()
        assert pools.to_dict() == {"N1": round(0.85 * n), "N2": n - round(0.85 * n)}
    assert [row["shortfall"] for row in report["splits"]] == [0, 0, 0]
    share = negatives[negatives["pool"] == "N2"].groupby(["split", "confuser_category"]).size()
    assert (share / share.groupby("split").transform("sum") <= config.sampling.category_cap + 1e-9).all()
    assert samples["galaxy_id"].is_unique
    assert "EXP" not in set(negatives["type"])


def test_inverse_weighting_restores_the_parent_sample(drawn, selected):
    """Per stratum exactly; the mean of a quantity the strata do not know within its sampling error."""
    samples, _ = drawn
    candidates = selected[0][selected[0]["pool"] != "N1b"]
    n1 = samples[samples["pool"] == "N1"].assign(w=lambda t: 1 / t["inclusion_probability"])
    keys = ["split", "nobs_z_bin", "type_bin"]
    pd.testing.assert_series_equal(n1.groupby(keys)["w"].sum(), candidates.groupby(keys).size().astype(float),
                                   check_names=False)
    for name, part in n1.groupby("split"):
        parent = candidates.loc[candidates["split"] == name, "mag_r"]
        error = parent.std() * np.sqrt((part["w"] ** 2).sum()) / part["w"].sum()
        assert abs(np.average(part["mag_r"], weights=part["w"]) - parent.mean()) < 4 * error


def test_draw_ignores_row_order(selected, positives, config, drawn):
    candidates = selected[0].sample(frac=1.0, random_state=4)
    samples, report = sampling.draw_samples(candidates, positives.sample(frac=1.0, random_state=5), config)
    pd.testing.assert_frame_equal(samples, drawn[0])
    assert report["splits"] == drawn[1]["splits"]


def test_draw_is_nested_in_size(selected, positives, config):
    """A larger draw of validation keeps the smaller one: K smallest hashes, stratum by stratum."""
    larger = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, n_test=700))
    small, large = (sampling.draw_samples(selected[0], positives, c)[0] for c in (config, larger))
    ids = [set(s.loc[(s["pool"] == "N1") & (s["split"] == "test"), "galaxy_id"]) for s in (small, large)]
    assert len(ids[0] - ids[1]) <= 2  # rounding of a stratum's share


def test_independent_systems_never_train(drawn):
    samples, report = drawn
    lenses = samples[samples["label"] == 1]
    assert not lenses.loc[lenses["split"].isin(["train", "val"]), "is_independent"].any()
    assert (lenses.loc[lenses["tier"] == "S", "split"] == "silver").all()
    counts = report["positives"]
    moved = sum(counts["silver_removed_by_split"].values())
    assert moved > 0 and counts["silver_removed_by_split"]["test"] == 0
    kept = (lenses["split"] == "silver").sum() + counts["dropped_for_shared_sky"]["silver"]
    assert kept == counts["silver_spectroscopic_only"] + moved
    assert len(lenses) + sum(counts["dropped_for_shared_sky"].values()) == counts["n_matched"]


def test_weights_and_tiers(drawn, config):
    samples, _ = drawn
    weight = samples.groupby("tier")["sample_weight"].agg(["min", "max"])
    assert (weight.loc[["A", "N1", "N2"]] == 1.0).all(axis=None)
    assert (weight.loc["B"] == config.crossmatch.tier_b_weight).all()
    assert (samples.loc[samples["label"] == 0, "tier"] == samples.loc[samples["label"] == 0, "pool"]).all()
    assert samples["label"].dtype == np.int64


def test_drawn_splits_pass_their_verification(drawn):
    checks = splits.verify_splits(drawn[0])
    assert checks["is_disjoint"] and checks["overlapping_pairs"] == 0
    assert sum(row["n_guarded"] for row in drawn[1]["splits"]) > 0  # the guard had work to do


def test_backfill_goes_to_the_neighbouring_bin_first():
    target = pd.Series({"11+ DEV": 10, "3-5 DEV": 10, "6-10 DEV": 10, "6-10 SER": 10})
    stock = pd.Series({"11+ DEV": 12, "3-5 DEV": 4, "6-10 DEV": 13, "6-10 SER": 11})
    share, moves = sampling.backfill_strata(target, stock)
    assert share.to_dict() == {"11+ DEV": 12, "3-5 DEV": 4, "6-10 DEV": 13, "6-10 SER": 11}
    assert moves == [{"from_stratum": "3-5 DEV", "to_stratum": "6-10 DEV", "n": 3},
                     {"from_stratum": "3-5 DEV", "to_stratum": "11+ DEV", "n": 2},
                     {"from_stratum": "3-5 DEV", "to_stratum": "6-10 SER", "n": 1}]  # fmt: skip
    share, moves = sampling.backfill_strata(target + 3, stock)
    assert moves[-1]["to_stratum"] == "none" and share.sum() == stock.sum()
    assert sum(m["n"] for m in moves if m["to_stratum"] == "none") == (target + 3).sum() - stock.sum()


def test_shortfall_is_recorded_not_silent(selected, positives, config):
    greedy = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, n_val=200000))
    samples, report = sampling.draw_samples(selected[0], positives, greedy)
    row = next(r for r in report["splits"] if r["split"] == "val")
    n = ((samples["split"] == "val") & (samples["label"] == 0)).sum()
    assert row["n_drawn"] == n and row["shortfall"] == 200000 - n > 0
    assert any(move["to_stratum"] == "none" for move in report["backfill"])


def test_category_quota():
    stock = pd.Series({"ring": 1000, "edge": 3, "blue": 500, "merger": 0})
    share = confusers.allocate_categories(stock, 100, 0.6)
    assert share.sum() == 100 and share["ring"] == 60 and share["edge"] <= 3 and share["merger"] == 0
    assert confusers.allocate_categories(stock, 100, 0.3).to_dict() == {"ring": 30, "edge": 3, "blue": 30, "merger": 0}


def test_bins():
    assert list(sampling.bin_nobs([0, 1, 2, 3, 5, 6, 10, 11, 99])) == [
        "0", "1-2", "1-2", "3-5", "3-5", "6-10", "6-10", "11+", "11+"]  # fmt: skip
    assert list(sampling.bin_type(["SER", "PSF", "DUP", "EXP"])) == ["SER", "other", "other", "EXP"]
