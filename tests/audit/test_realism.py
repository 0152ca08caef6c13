"""Realism: who may set targets, three outcomes, two-sample tests with power and null."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from lensaudit.artifacts import UserError
from lensaudit.audit import estimators, realism, two_sample
from lensaudit.config import load_config

CONFIG = load_config("smoke")
CONFIG = dataclasses.replace(CONFIG, realism=dataclasses.replace(CONFIG.realism, n_bootstrap=60))


def make_measurements(n, seed, **shift):
    generator = np.random.default_rng(seed)
    table = pd.DataFrame({name: generator.normal(size=n) for name in realism.HAND_MADE})
    table = table.assign(
        arc_snr=np.exp(generator.normal(2, 0.5, n)), arc_radius=generator.normal(1.3, 0.3, n),
        psfsize_r=generator.uniform(0.9, 1.8, n), depth_r=generator.uniform(22.5, 25.5, n),
        mag_host=generator.normal(19, 0.7, n), detectability=generator.random(n), host_index=np.arange(n) // 2,
        galaxy_id=[f"{seed}-{i}" for i in range(n)], split="train", tier="A",
        arc_g_r=generator.normal(0.4, 0.3, n), arc_r_z=generator.normal(0.5, 0.3, n),
        **{f"noise_ratio_{b}": generator.normal(1, 0.02, n) for b in "grz"},
    )  # fmt: skip
    for name, value in shift.items():
        table[name] = table[name] + value
    return table


def test_targets_are_of_one_tier_the_splits_asked_for_and_past_the_gate():
    table = make_measurements(60, 0).assign(split=["train", "val", "test"] * 20, tier=["A", "B"] * 30)
    targets = realism.select_targets(table, 0.5)
    assert set(targets["split"]) == {"train", "val"} and set(targets["tier"]) == {"A"}
    assert targets["detectability"].min() > 0.5


def test_a_test_lens_or_a_score_in_the_calibration_raises():
    targets, pilot = make_measurements(20, 1), make_measurements(30, 2)
    weights = np.full(30, 1 / 30)
    frozen = realism.freeze_proposal(targets, pilot, weights, CONFIG, {"name": "p"})
    assert frozen["hash"] == realism.freeze_proposal(targets, pilot, weights, CONFIG, {"name": "p"})["hash"]
    assert frozen["hash"] != realism.freeze_proposal(targets.head(19), pilot, weights, CONFIG, {"name": "p"})["hash"]
    mixed = targets.assign(split=["test"] + ["val"] * 19)
    with pytest.raises(UserError, match="1-0 is a test lens"):
        realism.freeze_proposal(mixed, pilot, weights, CONFIG, {})
    with pytest.raises(UserError, match="logit"):
        realism.freeze_proposal(targets, pilot.assign(logit=0.0), weights, CONFIG, {})


def test_weights_bring_the_injections_to_the_targets():
    pilot, targets = make_measurements(3000, 3), make_measurements(200, 4, psfsize_r=-0.0)
    targets = targets[targets["depth_r"] > 24.5]
    weights, n_eff = realism.weigh_to_targets(pilot, targets)
    assert np.isclose(weights.sum(), 1.0) and n_eff > 100
    assert abs(weights @ pilot["depth_r"] - targets["depth_r"].mean()) < 0.15
    empty, size = realism.weigh_to_targets(pilot, targets.head(0))
    assert size == 0.0 and len(empty) == len(pilot)


def test_a_match_is_go_and_a_wrong_colour_is_not():
    lenses, same, red = make_measurements(400, 5), make_measurements(1200, 6), make_measurements(1200, 7, arc_g_r=0.8)
    weights = np.full(1200, 1 / 1200)
    good = realism.check_distributions(lenses, same, weights, CONFIG, "test").set_index("check")["outcome"]
    assert good["arc_g_r median"] == good["arc_snr quantile 0.5"] == good["noise ratio r"] == "GO"
    assert "NO-GO" not in set(good)
    bad = realism.check_distributions(lenses, red, weights, CONFIG, "test").set_index("check")["outcome"]
    assert bad["arc_g_r median"] == "NO-GO"
    few = realism.check_distributions(lenses.head(2), same, weights, CONFIG, "test")
    assert set(few["outcome"]) == {"inconclusive"}


def test_what_cannot_be_computed_is_inconclusive_and_gives_no_power():
    lenses, same = make_measurements(400, 5), make_measurements(1200, 6)
    weights = np.full(1200, 1 / 1200)
    full = realism.check_distributions(lenses, same, weights, CONFIG, "test").set_index("check")
    holes = lenses.assign(rho10=lenses["rho10"].where(lenses.index < 30), arc_g_r=np.nan)
    out = realism.check_distributions(holes, same, weights, CONFIG, "test").set_index("check")
    width = out["upper"] - out["value"], full["upper"] - full["value"]
    assert width[0]["KS rho10"] > 2 * width[1]["KS rho10"] and np.isclose(width[0]["KS skew"], width[1]["KS skew"])
    assert out.loc["arc_g_r median", "outcome"] == "inconclusive"
    # The lowest S/N quantile is positive as it stands, but not in a good part of the resamples.
    edge = lenses.head(60).assign(arc_snr=np.where(np.arange(60) < 6, -1.0, 10.0))
    tail = realism.check_distributions(edge, same.assign(arc_snr=10.0), weights, CONFIG, "test").set_index("check")
    assert tail.loc["arc_snr quantile 0.1", "outcome"] == "inconclusive"


def test_probe_sees_a_planted_colour_and_nothing_in_a_match():
    lenses, same, red = make_measurements(250, 8), make_measurements(700, 9), make_measurements(700, 10, arc_g_r=0.8)
    weights = np.full(700, 1 / 700)
    match = realism.check_probe(lenses, same, weights, CONFIG, "test").set_index("check")
    assert match.loc["C2ST hand-made", "outcome"] == "GO"
    assert abs(match.loc["C2ST hand-made, labels permuted", "value"] - 0.5) < 0.12
    assert match.loc["C2ST smallest planted g-r shift seen", "value"] <= 0.4
    wrong = realism.check_probe(lenses, red, weights, CONFIG, "test").set_index("check")
    assert wrong.loc["C2ST hand-made", "outcome"] == "NO-GO"


@pytest.mark.parametrize(("lower", "upper", "expected"), [
    (0.6, 1.9, "GO"), (2.1, 3.0, "NO-GO"), (0.1, 0.4, "NO-GO"), (0.4, 1.0, "inconclusive"), (np.nan, 1, "inconclusive"),
])  # fmt: skip
def test_three_outcomes(lower, upper, expected):
    assert realism.judge(lower, upper, (0.5, 2.0)) == expected


def test_the_verdict_leaves_the_targets_out():
    rows = pd.DataFrame([("targets", "x", 0, 0, 0, "", "NO-GO"), ("test", "y", 0, 0, 0, "", "GO")],
                        columns=realism.CHECK_COLUMNS)  # fmt: skip
    assert realism.summarise_realism(rows, {"hash": "h"})["outcome"] == "GO"
    both = pd.concat([rows, rows.assign(sample="test")])
    assert realism.summarise_realism(both, {"hash": "h"})["no_go"] == ["x"]


def test_distances_against_closed_forms():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=4000), generator.normal(size=4000)
    assert two_sample.weighted_ks(a, a) < 1e-9
    half = np.where(b > 0, 1.0, 0.0)
    assert np.isclose(two_sample.weighted_ks(a, b, half), 0.5, atol=0.03)
    x, y = generator.normal(size=(4000, 3)), generator.normal(size=(4000, 3)) + 1.0
    pooled = np.vstack([x, y]).std(axis=0)
    assert np.isclose(two_sample.frechet_distance(x, y), np.sum(1.0 / pooled**2), rtol=0.1)


def test_estimators_are_held_against_truth():
    table = make_measurements(500, 11)
    out = estimators.validate_estimators(table, 2.0 * table["arc_snr"])
    assert np.allclose(out["ratio"], 0.5, rtol=0.02)
    summary = estimators.summarise_snr(table, "x").iloc[0]
    assert np.isclose(summary["below_5"], (table["arc_snr"] < 5).mean())
