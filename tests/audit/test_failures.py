"""Purity against closed forms, composition of the top against a known mixture, outcomes of missed lenses."""

import numpy as np
import pandas as pd
import pytest

from lensaudit.artifacts import UserError
from lensaudit.audit import channels, failures, prevalence
from lensaudit.rng import make_stream

RING_SHARE = 0.05  # of the parent sample, so of N1


def make_test(n=20000, n_lenses=400, seed=1):
    rng = make_stream(seed, "tests/failures")
    total = n + n_lenses
    label = np.r_[np.zeros(n, int), np.ones(n_lenses, int)]
    extra = (rng.random(total) < 0.2) & (label == 0)
    ring = extra | ((rng.random(total) < RING_SHARE) & (label == 0))
    return pd.DataFrame({
        "galaxy_id": [f"g{i}" for i in range(total)], "cutout_path": [f"s#{i}" for i in range(total)], "label": label,
        "tier": np.where(label == 1, "A", "N1"), "pool": np.where(extra, "N2", np.where(label == 0, "N1", "")),
        "confuser_category": np.where(ring, "ring_proxy", ""), "confuser_proxy": np.where(ring, "ring_proxy", ""),
        "type": "DEV",
        "inclusion_probability": np.where(extra, 0.5, 0.1), "logit": rng.normal(size=total) + 3 * label + 1.0 * ring,
        "seeing_bin": rng.choice(["a", "b"], total), "arc_snr": rng.normal(size=total),
        "detectability": rng.normal(size=total),
    })  # fmt: skip


def test_purity_of_the_stated_cases():
    # At prevalence 1e-4 and recall 0.5 purity is 0.33 at a rate of 1e-4 and 0.048 at 1e-3.
    assert prevalence.compute_purity(1e-4, 0.5, 1e-4) == pytest.approx(0.333, abs=1e-3)
    assert prevalence.compute_purity(1e-4, 0.5, 1e-3) == pytest.approx(0.0476, abs=1e-3)
    assert np.isnan(prevalence.compute_purity(1e-4, 0.0, 0.0))


def test_purity_interval_holds_the_value():
    recall = pd.DataFrame({"subset": ["Tier A"], "point": ["p"], "n": [200], "k": [90], "recall": [0.45]})
    cuts = {"p": {"achieved_test_fpr": 0.01, "n_test_eff": 5000.0, "n_test_exceedances": 50}}
    table = prevalence.tabulate_purity(recall, cuts, 1)
    assert len(table) == 4 and table.purity.is_monotonic_increasing
    assert ((table.lower < table.lower_68) & (table.lower_68 < table.purity) & (table.purity < table.upper)).all()
    assert table.n_lenses.iloc[1] == pytest.approx(43e6 * 0.8e-4 * 0.45)


def test_composition_adds_up_and_knows_its_limit():
    table = prevalence.compose_top(make_test(), prevalences=(1e-4,))
    reported = table[table.status == "reported"]
    assert np.allclose(reported.groupby("top").share.sum(), 1.0)
    top = table[table.top == 1e-2].set_index("component")
    # Rings are 5 % of the sky and stand one sigma higher.
    assert 0.2 < top.share["ring_proxy"] < 0.5 and top.share["lens"] < 0.011
    assert top.expected.sum() == pytest.approx(430_000)
    last = table[table.top == 1e-4]
    assert last.component.tolist() == ["lens"] and "cannot be computed" in last.status.iloc[0]
    assert last.share.iloc[0] <= 1.0
    with pytest.raises(UserError, match="Tier-A"):
        prevalence.compose_top(make_test(n_lenses=0))


def test_confusers_keep_the_parents_share():
    """N1 holds them at their natural rate; the further draw N2 does not count them again."""
    table = make_test()
    whole = prevalence.compose_top(table, prevalences=(1e-4,), fractions=(1.0,)).set_index("component")
    n1 = (table["pool"] == "N1").sum()
    error = np.sqrt(RING_SHARE * (1 - RING_SHARE) / n1)
    assert whole.share["ring_proxy"] == pytest.approx(RING_SHARE, abs=4 * error)
    assert whole.n_sampled["ring_proxy"] + whole.n_sampled["plain DEV"] == n1


def test_false_positive_rates_are_weighted():
    table, cuts = make_test(), {"p": {"threshold": 2.0}}
    rates = failures.rate_false_positives(table, cuts, ["p"]).set_index(["axis", "stratum"])
    assert rates.lower[("pool", "N2")] < 1e4 * 0.1587 < rates.upper[("pool", "N2")]  # P(N(1, 1) > 2)
    plain, ring = 0.02275, 0.1587
    expected = 1e4 * ((1 - RING_SHARE) * plain + RING_SHARE * ring)
    assert rates.lower[("all", "all")] < expected < rates.upper[("all", "all")]
    assert rates.loc["pool"].share.isna().all() and rates.loc["seeing"].share.sum() == pytest.approx(1)
    # Proxies count in the parent sample alone.
    own = rates.loc[("confuser proxy", "ring_proxy")]
    assert own.n == ((table["pool"] == "N1") & (table["confuser_proxy"] != "")).sum()
    assert own.lower < 1e4 * ring < own.upper
    assert rates.loc["seeing"].n.sum() == rates.n[("all", "all")]


def test_outcomes():
    names = failures.classify_outcomes([1, 1, -1, -1], [1, -1, 1, -1], 0.0, 0.0)
    assert names.tolist() == list(failures.OUTCOMES)
    rng = make_stream(2, "tests/misses")
    n = 4000
    theta = rng.uniform(0.5, 2.5, n)
    table = pd.DataFrame({"logit": theta - 1.5, "detectability": theta - 1.0, "theta_E": theta,
                          "psfsize_r": rng.uniform(0.8, 1.9, n), "host_index": rng.integers(0, 2000, n)})  # fmt: skip
    table["brickname"] = table.host_index // 10
    misses = failures.tabulate_misses(table, 0.0, 0.0)
    margin = misses[misses.seeing_bin == "all"].set_index(["theta_E_bin", "outcome"])
    assert margin.share[("0.75-1", "missed, not seen by D")] == 1 and margin.share[("1-1.25", "missed, seen by D")] == 1
    assert margin.share[(">= 2", "found")] == 1
    assert np.allclose(misses.groupby(["theta_E_bin", "seeing_bin"]).share.sum(), 1)
    with pytest.raises(UserError, match="host_index"):
        failures.tabulate_misses(table.drop(columns="host_index"), 0.0, 0.0)


def test_gallery_and_missed_list():
    table = make_test()
    missed = failures.list_missed(table[table.label == 1], 2.0, 0.0)
    assert not missed.is_recovered.iloc[0] and missed.is_recovered.iloc[-1]
    gallery = failures.pick_gallery(table, missed, 2.0, n=4)
    assert gallery.row.value_counts().tolist() == [4, 4, 4]
    top = table[table.label == 0].nlargest(1, "logit")
    assert gallery.galaxy_id.iloc[0] == top.galaxy_id.iloc[0]


def test_rgb_keeps_colour_and_range():
    images = np.zeros((2, 3, 9, 9), np.float32)
    images[0, 2, 4, 4] = 5.0  # a red source
    picture = failures.make_rgb(images)
    assert picture.shape == (2, 9, 9, 3) and picture.min() >= 0 and picture.max() <= 1
    assert picture[0, 4, 4].argmax() == 0


def test_channels_overlap_and_recapture():
    rng = make_stream(5, "tests/channels")
    n = 4000
    lists = [pd.DataFrame({"system_id": np.flatnonzero(rng.random(n) < p), "channel": c, "catalog": c})
             for c, p in (("imaging", 0.3), ("spectroscopic", 0.1))]  # fmt: skip
    overlaps = channels.measure_overlaps(pd.concat(lists)).set_index(["level", "first", "second"])
    pair = overlaps.loc[("channel", "imaging", "spectroscopic")]
    assert abs(pair.chapman - n) < 4 * pair.chapman_sigma and pair.lower < pair.jaccard < pair.upper
    scored = pd.DataFrame({"system_id": range(100), "split": "test", "logit": np.arange(100) - 49.5})
    recall = channels.measure_channel_recall(scored, lists[0], {"p": {"threshold": 0.0}}, ["p"])
    expected = lists[0].system_id[lists[0].system_id < 100]
    assert recall.n.tolist() == [len(expected)] and recall.k.tolist() == [(expected >= 50).sum()]
