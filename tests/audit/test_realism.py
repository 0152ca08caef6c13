"""Realism: who may set targets, three outcomes, two-sample tests with power and null."""

import ast
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import chi2, kstest, ncx2, norm, uniform

from lensaudit.artifacts import UserError
from lensaudit.audit import calibration, estimators, rates, realism, two_sample, unfolding
from lensaudit.audit.recovery import COVARIATES
from lensaudit.config import load_config
from lensaudit.figures import realism as figures

ROOT = Path(__file__).resolve().parents[2]

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
        arc_energy=np.exp(generator.normal(2, 0.5, n)), arc_g_r=generator.normal(0.4, 0.3, n),
        arc_r_z=generator.normal(0.5, 0.3, n), host_g_r=generator.normal(1.6, 0.3, n),
        host_r_z=generator.normal(1.0, 0.2, n), **{f"arc_brightness_{b}": generator.normal(25, 0.6, n) for b in "grz"},
        **{f"noise_ratio_{b}": generator.normal(1, 0.02, n) for b in "grz"},
    )  # fmt: skip
    for name, value in shift.items():
        table[name] = table[name] + value
    return table


def test_targets_are_of_one_tier_the_splits_asked_for_and_past_the_gate():
    table = make_measurements(60, 0).assign(split=["train", "val", "test"] * 20, tier=["A", "B"] * 30)
    targets = calibration.select_targets(table, 0.5)
    assert set(targets["split"]) == {"train", "val"} and set(targets["tier"]) == {"A"}
    assert targets["detectability"].min() > 0.5


def test_a_test_lens_or_a_score_in_the_calibration_raises():
    targets, pilot = make_measurements(20, 1), make_measurements(30, 2)
    weights = np.full(30, 1 / 30)
    frozen = calibration.freeze_proposal(targets, pilot, weights, CONFIG, {"name": "p"})
    assert frozen["hash"] == calibration.freeze_proposal(targets, pilot, weights, CONFIG, {"name": "p"})["hash"]
    fewer = calibration.freeze_proposal(targets.head(19), pilot, weights, CONFIG, {"name": "p"})
    assert frozen["hash"] != fewer["hash"]
    mixed = targets.assign(split=["test"] + ["val"] * 19)
    with pytest.raises(UserError, match="1-0 is a test lens"):
        calibration.freeze_proposal(mixed, pilot, weights, CONFIG, {})
    with pytest.raises(UserError, match="logit"):
        calibration.freeze_proposal(targets, pilot.assign(logit=0.0), weights, CONFIG, {})


def test_weights_bring_the_injections_to_the_targets():
    pilot, targets = make_measurements(3000, 3), make_measurements(200, 4, psfsize_r=-0.0)
    targets = targets[targets["depth_r"] > 24.5]
    weights, n_eff = calibration.weigh_to_targets(pilot, targets)
    assert np.isclose(weights.sum(), 1.0) and n_eff > 100
    assert abs(weights @ pilot["depth_r"] - targets["depth_r"].mean()) < 0.15
    empty, size = calibration.weigh_to_targets(pilot, targets.head(0))
    assert size == 0.0 and len(empty) == len(pilot)


def test_a_match_is_go_and_a_wrong_colour_is_not():
    lenses, same, red = make_measurements(400, 5), make_measurements(1200, 6), make_measurements(1200, 7, arc_g_r=0.8)
    weights = np.full(1200, 1 / 1200)
    good = realism.check_distributions(lenses, same, weights, CONFIG, "test").set_index("check")["outcome"]
    assert good["arc_g_r median"] == good["arc_snr quantile 0.5"] == good["noise ratio r"] == "GO"
    assert "NO-GO" not in set(good)
    bad = realism.check_distributions(lenses, red, weights, CONFIG, "test").set_index("check")["outcome"]
    assert bad["arc_g_r median"] == "NO-GO"
    faint = same.assign(arc_brightness_r=same["arc_brightness_r"] + 2.0)
    moved = realism.check_distributions(lenses, faint, weights, CONFIG, "test").set_index("check")
    row = moved.loc["arc_brightness_r median"]
    assert row["outcome"] == "reported" and row["lower"] < 2.0 < row["upper"] and row["lower"] > 1.5
    assert moved.loc["arc_brightness_g median", "lower"] < 0 < moved.loc["arc_brightness_g median", "upper"]
    few = realism.check_distributions(lenses.head(2), same, weights, CONFIG, "test")
    assert set(few["outcome"]) == {"inconclusive", "reported"}


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
    checks, power, _ = realism.check_probe(lenses, same, weights, CONFIG, "test")
    match = checks.set_index("check")
    assert match.loc["C2ST hand-made", "outcome"] == "GO"
    null = match.loc["C2ST hand-made, labels permuted"]
    assert null["lower"] < 0.5 < null["upper"] and match.loc["C2ST hand-made, permutation p", "value"] > 0.05
    smallest = match.loc["C2ST hand-made, smallest planted g-r shift seen", "value"]
    assert 0.1 <= smallest <= 0.4
    assert power["power"].iloc[0] <= 0.06 and power["power"].iloc[-1] == 1.0 and power["auc"].is_monotonic_increasing
    wrong = realism.check_probe(lenses, red, weights, CONFIG, "test")[0].set_index("check")
    assert wrong.loc["C2ST hand-made", "outcome"] == "NO-GO"
    assert wrong.loc["C2ST hand-made, permutation p", "value"] == pytest.approx(1 / 200)
    for own in (same, red):  # twenty hosts carry all the weight: nothing can be judged
        few = np.where(own["host_index"].isin(own["host_index"].unique()[:20]), 1.0, 1e-9)
        checks = realism.check_probe(lenses, own, few, CONFIG, "test")[0].set_index("check")
        assert checks.loc["C2ST hand-made", "outcome"] == "inconclusive"


def check_colours(lenses, injections):
    """Return the probe's rows, as chapter 06 makes them: matched in colours, and not."""
    plain, _ = calibration.weigh_to_targets(injections, lenses)
    matched, _ = calibration.weigh_to_targets(injections, lenses, None, calibration.PROBE_COLUMNS)
    checks, power, _ = realism.check_probe(lenses, injections, matched, CONFIG, "test", unmatched=plain)
    return checks.set_index("check"), power


def test_the_matched_probe_is_blind_to_colour_alone_and_the_planted_colour_is_caught():
    lenses, red = make_measurements(250, 8), make_measurements(2500, 10, arc_g_r=0.4, arc_r_z=-0.4, host_g_r=0.2)
    checks, power = check_colours(lenses, red)
    matched, plain = checks.loc["C2ST hand-made"], checks.loc["C2ST hand-made, colours not matched"]
    assert matched["outcome"] == "GO" and matched["lower"] < 0.56 and matched["value"] < 0.62
    assert plain["lower"] > CONFIG.realism.c2st_limit and plain["outcome"] == "reported"
    assert abs(checks.loc["matching, arc g-r left, median", "value"]) < 0.12
    assert 100 < checks.loc["matching, effective number of injections", "value"] < 2500
    assert checks.loc["C2ST hand-made, smallest planted g-r shift seen", "value"] <= 0.4
    assert power["power"].iloc[0] <= 0.06 and power["power"].iloc[-1] == 1.0


def test_the_matched_probe_sees_what_is_not_colour_and_colours_out_of_reach():
    lenses = make_measurements(250, 8)
    for shift in ({"arc_width": 1.2, "arc_g_r": 0.3}, {"arc_g_r": 3.0}):
        checks, _ = check_colours(lenses, make_measurements(2500, 10, **shift))
        assert checks.loc["C2ST hand-made", "outcome"] == "NO-GO"


def test_colours_no_lens_has_are_left_out_of_the_matching():
    lenses, pilot = make_measurements(60, 8).assign(host_r_z=np.nan), make_measurements(300, 9)
    weights, n_eff = calibration.weigh_to_targets(pilot, lenses, None, calibration.PROBE_COLUMNS)
    assert np.isfinite(weights).all() and n_eff > 5


@pytest.mark.parametrize(("n_lenses", "n_injections"), [(0, 40), (5, 3), (5, 0), (0, 0)])
def test_too_few_for_a_probe_are_inconclusive(n_lenses, n_injections):
    lenses, injections = make_measurements(60, 8).head(n_lenses), make_measurements(60, 9).head(n_injections)
    weights = np.full(n_injections, 1 / max(n_injections, 1))
    checks, power, distances = realism.check_probe(lenses, injections, weights, CONFIG, "test", unmatched=weights)
    assert checks["outcome"].iloc[0] == "inconclusive" and power.empty and distances.empty
    assert set(checks["outcome"].iloc[1:]) == {"reported"}


def test_the_probe_s_power_is_that_of_the_closed_form():
    """Normal features of unit variance shifted by d have AUC Phi(d / sqrt 2) for the best linear probe."""
    generator = np.random.default_rng(2)
    still, groups = generator.normal(size=(1200, 3)), np.arange(1200) // 2
    table = two_sample.measure_power(lambda d: still + np.array([d, 0, 0]), groups, 300, CONFIG, "x", (0.5, 1.0), 5)
    assert table["auc"].to_numpy() == pytest.approx(norm.cdf(np.array([0.0, 0.5, 1.0]) / np.sqrt(2)), abs=0.03)
    assert two_sample.find_smallest(table) == 0.5
    assert np.isnan(two_sample.find_smallest(table[table["shift"] == 0]))
    assert two_sample.measure_power(lambda d: still[:20] + d, groups[:20], 5, CONFIG, "x", (0.5,), 2).empty


def test_labels_are_permuted_among_hosts():
    """Rows of a host are alike: permuting rows would call two sets of few hosts different, permuting hosts does not."""
    generator, found = np.random.default_rng(3), []
    for k in range(60):
        lenses, hosts = generator.normal(size=(30, 4)), generator.normal(size=(20, 4))
        rows = np.repeat(hosts, 15, axis=0) + 0.1 * generator.normal(size=(300, 4))
        row = two_sample.probe_classes(lenses, rows, np.arange(30), np.repeat(np.arange(20), 15), CONFIG, str(k), 99)
        found.append(row["p"])
    assert np.mean(np.array(found) <= 0.1) < 0.25 and np.mean(found) == pytest.approx(0.5, abs=0.12)


def test_layers_are_read_against_injections_alone():
    generator = np.random.default_rng(4)
    groups = np.arange(600) // 3
    host = generator.normal(size=(200, 8))[groups]
    injections = {"a": host + generator.normal(size=(600, 8)), "b": host + generator.normal(size=(600, 8))}
    same = generator.normal(size=(150, 8)) * np.sqrt(2)
    lenses = {"a": same, "b": same + 0.8}
    out = two_sample.compare_layers(lenses, injections, groups, CONFIG, "x").set_index("layer")
    assert out.loc["a", "p"] > 0.02 and out.loc["a", "ratio"] < 1.8
    assert out.loc["b", "p"] == 0.01 and out.loc["b", "distance"] > out.loc["b", "null_upper"]
    assert two_sample.compare_layers({"a": lenses["a"][:5]}, injections, groups, CONFIG, "x").empty


def test_rejection_flattens_the_s_n_and_its_weights_undo_it():
    generator = np.random.default_rng(5)
    table = pd.DataFrame({"injection_id": np.arange(40000), "arc_snr_true": np.exp(generator.normal(1.5, 1.0, 40000)),
                          "other": generator.normal(size=40000)})  # fmt: skip
    table["other"] += np.log(table["arc_snr_true"])
    kept, weights = calibration.reject_to_log_uniform(table, 1, 2.0, 50.0)
    inside = table[table["arc_snr_true"].between(2.0, 50.0)]
    even = kstest(np.log(kept["arc_snr_true"]), uniform(np.log(2.0), np.log(25.0)).cdf)
    assert len(kept) > 3000 and even.statistic < 1.36 / np.sqrt(len(kept)) + 0.01
    for name in ("arc_snr_true", "other"):
        raw = two_sample.weighted_ks(inside[name], kept[name])
        assert two_sample.weighted_ks(inside[name], kept[name], weights) < 0.03 < 0.1 < raw
    assert weights.sum() == pytest.approx(len(inside), rel=0.03)
    # In the column `weight` they give whatever weighs injections the table that was rejected from.
    few, targets = make_measurements(6000, 20), make_measurements(200, 21)
    few = few.assign(injection_id=np.arange(6000), arc_snr_true=few["arc_energy"])
    few = few[few["arc_energy"].between(2.0, 50.0)].reset_index(drop=True)
    even, undo = calibration.reject_to_log_uniform(few, 1, 2.0, 50.0, per_bin=30)
    one, two, raw = (calibration.take_quantile(t["arc_energy"].to_numpy(), calibration.weigh_to_targets(t, targets)[0],
                                               0.9) for t in (few, even.assign(weight=undo), even))  # fmt: skip
    assert two == pytest.approx(one, rel=0.12) and raw > 1.2 * one
    shuffled, _ = calibration.reject_to_log_uniform(table.sample(frac=1.0, random_state=0), 1, 2.0, 50.0)
    assert set(shuffled["injection_id"]) == set(kept["injection_id"])
    with pytest.raises(UserError, match="arc_snr_true is missing"):
        calibration.reject_to_log_uniform(table[["injection_id"]], 1)
    with pytest.raises(UserError, match="no row has arc_snr_true between 1"):
        calibration.reject_to_log_uniform(table, 1, 1e5, 1e6)


def test_the_calibration_moves_the_brightness_and_freezes_what_it_moved():
    """Arcs of a catalogue that holds the bright ones: with the selection inferred, their true S/N comes back."""
    generator = np.random.default_rng(6)

    def draw(n, seed):
        snr = np.exp(generator.normal(2.2, 0.8, n))
        return make_measurements(n, seed).assign(
            arc_snr_true=snr, theta_E=generator.uniform(0.5, 2.5, n), arc_energy=snr * generator.lognormal(0, 0.4, n),
            arc_snr=0.3 * snr * generator.lognormal(0, 0.5, n))  # fmt: skip

    pilot, lenses = draw(3000, 12).drop(columns="detectability"), draw(4000, 13)
    lenses = lenses[generator.random(4000) < expit(3.0 * np.log(lenses["arc_snr_true"] / 25.0))]
    selection = unfolding.unfold_selections({"pilot": pilot}, lenses, CONFIG)["pilot"]
    plain, _ = calibration.weigh_to_targets(pilot, lenses)
    weights, n_eff = calibration.weigh_to_targets(pilot, lenses, selection)
    true = lenses["arc_snr_true"].median()
    before, after = (calibration.take_quantile(pilot["arc_snr_true"].to_numpy(), w, 0.5) for w in (plain, weights))
    assert abs(after - true) < 0.12 * true and before < 0.5 * true and n_eff > 100
    frozen = calibration.freeze_proposal(lenses, pilot, weights, CONFIG, {}, selection)
    assert frozen["moved"]["hash"] == selection["hash"] and frozen["moved"]["log_weights"] == selection["log_weights"]
    assert frozen["pilot_as_drawn"]["arc_energy"][1] < frozen["pilot"]["arc_energy"][1]
    moves = calibration.describe_moves(frozen)
    assert abs(moves.loc["arc_energy", "left"]) < moves.loc["arc_energy", "moved"]
    assert abs(moves.loc["arc_g_r", "moved"]) < 0.05
    assert moves.loc["arc_snr", "targets"] == pytest.approx(lenses["arc_snr"].median(), rel=0.02)
    other = calibration.freeze_proposal(lenses, pilot, weights, CONFIG, {})
    assert "too few" in other["moved"]["reason"] and other["hash"] != frozen["hash"]


def test_weights_of_an_unevenly_drawn_pilot_count():
    pilot, targets = make_measurements(4000, 14), make_measurements(300, 15)
    keep = np.random.default_rng(16).random(4000) < np.where(pilot["arc_energy"] > 8, 1.0, 0.25)
    uneven = pilot[keep].assign(weight=np.where(pilot["arc_energy"][keep] > 8, 1.0, 4.0))
    one, two = (calibration.take_quantile(t["arc_energy"].to_numpy(), calibration.weigh_to_targets(t, targets)[0], 0.5)
                for t in (pilot, uneven))  # fmt: skip
    assert one == pytest.approx(two, rel=0.08) and uneven["arc_energy"].median() > 1.15 * one


def test_the_notebook_freezes_the_proposal_before_a_test_lens_enters():
    cells = json.loads((ROOT / "notebooks" / "06_injection_realism.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [ast.parse("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    calls = [{ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)} for tree in code]
    frozen = next(i for i, names in enumerate(calls) if "calibration.freeze_proposal" in names)
    words = [{n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)} for tree in code]
    assert all("test" not in found for found in words[: frozen + 1])
    assert not any(name.startswith("realism.check_") for names in calls[: frozen + 1] for name in names)
    assert {"stage.write_json", "proposal.json"} <= calls[frozen] | words[frozen]


def make_pilot(seed, spread=0.0):
    """Injections of 1,200 hosts whose recovery depends on seeing, arc and host; `spread` is added in one region."""
    generator = np.random.default_rng(seed)
    host = np.repeat(np.arange(1200), 3)
    table = pd.DataFrame({name: generator.normal(size=len(host)) for name in COVARIATES}).assign(
        host_index=host, healpix_128=host % 400, brickname=(host % 90).astype(str))  # fmt: skip
    push = table["arc_snr"] - table["psfsize_r"] + generator.normal(size=1200)[host] + spread * (host % 400 < 100)
    return table.assign(logit=push + generator.logistic(size=len(host)))


def test_regions_that_differ_are_no_go_and_others_are_not():
    same, regions = realism.check_regions(make_pilot(0), 0.0, CONFIG)
    assert same["outcome"].iloc[0] == "GO" and 0.02 < regions["smallest"].max() < 0.10
    assert regions["n"].sum() == 3600 and regions["n_hosts"].sum() == 1200
    assert realism.check_regions(make_pilot(0, 1.5), 0.0, CONFIG)[0]["outcome"].iloc[0] == "NO-GO"
    few = make_pilot(1).head(300)
    assert realism.check_regions(few, 0.0, CONFIG)[0]["outcome"].iloc[0] in ("inconclusive", "NO-GO")


def test_regions_test_has_its_size_and_the_power_it_states():
    generator, p, seen = np.random.default_rng(7), [], []
    host = np.repeat(np.arange(400), 5)
    for _ in range(300):
        chance = expit(-1 + generator.normal(size=400))[host]
        flag = generator.random(2000) < chance
        table, test = rates.compare_regions(flag, np.full(2000, flag.mean()), host % 4, host)
        p.append(test["p"])
        moved = np.where(host % 4 == 0, generator.random(2000) < chance + table["smallest"][0], flag)
        seen.append(rates.compare_regions(moved, np.full(2000, moved.mean()), host % 4, host)[1]["p"] < 0.05)
    assert kstest(p, "uniform").pvalue > 0.01
    assert np.mean(seen) == pytest.approx(0.8, abs=0.07)
    assert ncx2.sf(chi2.isf(0.05, 3), 3, rates.find_noncentrality(3)) == pytest.approx(0.8)


def test_paired_ratio_covers():
    generator, inside = np.random.default_rng(8), []
    for _ in range(1500):
        pair = generator.choice(4, 300, p=(0.02, 0.02, 0.08, 0.88))  # both, before only, after only, none
        ratio, lower, upper = rates.paired_ratio(pair < 2, (pair == 0) | (pair == 2))
        inside.append(lower <= 2.5 <= upper)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)
    assert np.isnan(rates.paired_ratio([False] * 5, [False] * 5)[0])
    ratio, lower, upper = rates.paired_ratio([False] * 50, [True] * 5 + [False] * 45)
    assert ratio == np.inf and lower > 1.0 and upper == np.inf


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
    assert realism.summarise_realism(both, {"hash": "h"})["panel"] == "not graded"


def test_distances_against_closed_forms():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=4000), generator.normal(size=4000)
    assert two_sample.weighted_ks(a, a) < 1e-9
    half = np.where(b > 0, 1.0, 0.0)
    assert np.isclose(two_sample.weighted_ks(a, b, half), 0.5, atol=0.03)
    x, y = generator.normal(size=(4000, 3)), generator.normal(size=(4000, 3)) + 1.0
    assert np.isclose(two_sample.frechet_distance(x, y), 3.0, rtol=0.1)
    assert np.isclose(two_sample.frechet_distance(x, 2.0 * x), x.mean(axis=0) @ x.mean(axis=0) + np.trace(np.cov(x.T)))
    assert np.isclose(two_sample.frechet_distance(*two_sample.project_features(x, y)),
                      np.sum(1.0 / np.vstack([x, y]).std(axis=0) ** 2), rtol=0.1)  # fmt: skip


def test_derived_columns_are_those_of_their_definitions():
    """A disc of 25 mag / arcsec^2 over any number of pixels reads 25; dust and noise do not enter."""
    table = make_measurements(4, 22).drop(columns=[f"arc_brightness_{b}" for b in "grz"])
    table = table.assign(arc_area=[10, 40, 90, 3], arc_radius=[1.0, 1.2, 1.5, np.nan])
    for b in "grz":
        flux = 10.0 ** (-0.4 * (25.0 - 22.5)) * table["arc_area"] * 0.262**2
        table = table.assign(**{f"arc_flux_{b}": flux, f"sigma_pix_{b}": 0.01, f"psfdepth_{b}": 900.0,
                                f"psfsize_{b}": 1.3})  # fmt: skip
    table.loc[2, "arc_flux_z"] = -1.0
    hosts = pd.DataFrame({"host_index": [0, 1], "mag_g": [20.0, 21.0], "mag_r": [19.0, 20.5], "mag_z": [18.5, 19.0]})
    out = realism.add_derived(table, hosts)
    assert np.allclose(out["arc_brightness_r"].head(3), 25.0) and np.isnan(out["arc_brightness_r"].iloc[3])
    assert np.isnan(out["arc_brightness_z"].iloc[2])
    assert list(out["host_g_r"]) == [1.0, 1.0, 0.5, 0.5] and list(out["host_r_z"]) == [0.5, 0.5, 1.5, 1.5]
    own = realism.add_derived(table.assign(mag_g=20.0, mag_r=19.0, mag_z=18.0))
    assert set(own["host_r_z"]) == {1.0} and np.allclose(own["noise_ratio_r"], out["noise_ratio_r"])


def test_estimators_are_held_against_truth():
    table = make_measurements(500, 11)
    out = estimators.validate_estimator(table["arc_snr"], 2.0 * table["arc_snr"], estimators.SNR_EDGES)
    assert np.allclose(out["bias"], 0.5) and np.allclose(out["scatter"], 0.0, atol=1e-12)
    summary = estimators.summarise_snr(table, "x").iloc[0]
    assert np.isclose(summary["below_5"], (table["arc_snr"] < 5).mean())


def test_bias_and_scatter_of_a_noisy_estimator_come_back():
    generator = np.random.default_rng(23)
    true, noise = generator.uniform(0.0, 1.0, 8000), generator.normal(0.2, 0.3, 8000)
    blind = np.where(generator.random(8000) < 0.25, np.nan, true + noise)
    snr = generator.uniform(5.0, 20.0, 8000)
    out = estimators.validate_estimator(blind, true, estimators.SNR_EDGES, "difference", snr)
    assert list(out["low"]) == [5, 10] and out["n"].sum() + out["n_unmeasured"].sum() == 8000
    assert np.allclose(out["bias"], 0.2, atol=0.03) and np.allclose(out["scatter"], 0.3, atol=0.02)
    assert np.allclose(out["n_unmeasured"] / (out["n"] + out["n_unmeasured"]), 0.25, atol=0.02)


def make_validated(n=300):
    """Injections and lenses whose blind numbers are their truth seen through dust, and the truth table."""
    generator = np.random.default_rng(24)
    mag = {b: m + generator.normal(0, 0.3, n) for b, m in (("g", 23.4), ("r", 23.0), ("z", 22.6))}
    dust = {"g": 0.8, "r": 0.9, "z": 0.95}
    seen = {b: mag[b] - 2.5 * np.log10(dust[b]) for b in "grz"}
    snr, brightness = np.exp(generator.normal(3, 0.5, n)), generator.normal(25, 0.5, n)
    hosts = pd.DataFrame({"host_index": [7], **{f"mw_transmission_{b}": [dust[b]] for b in "grz"}})
    injections = make_measurements(n, 25).assign(
        host_index=7, arc_snr=snr, arc_snr_true=snr, arc_surface_brightness=brightness,
        arc_brightness_r=brightness - 2.5 * np.log10(0.9), arc_g_r=seen["g"] - seen["r"], arc_r_z=seen["r"] - seen["z"],
        **{f"mag_lensed_{b}": mag[b] for b in "grz"})  # fmt: skip
    depth, size = 2000.0, 1.2
    flux = {f"flux_lensed_{b}": 10 ** (-0.4 * (seen[b] - 22.5)) for b in "grz"}
    # White noise of sigma per pixel over a Gaussian PSF of this size: sigma^2 = 1 / (psfdepth A), A = 4 pi s^2.
    sigma = 1.0 / np.sqrt(depth * 4 * np.pi * (size / 2.3548 / 0.262) ** 2)
    blind = 22.5 - 2.5 * np.log10((snr * sigma) ** 2 / flux["flux_lensed_r"] / 0.262**2)
    lenses = injections.assign(psfdepth_r=depth, psfsize_r=size, arc_brightness_r=blind)
    truth = pd.DataFrame({"galaxy_id": lenses["galaxy_id"], "snr_true": snr} | flux)
    return injections, hosts, lenses, truth


def test_blind_numbers_that_are_the_truth_show_no_bias_on_either_side():
    injections, hosts, lenses, truth = make_validated()
    rendered = injections.assign(arc_width=1.0, arc_width_true=1.3)
    out = estimators.validate_populations(injections, hosts, lenses, truth.iloc[::-1], rendered)
    exact = out[~out["estimator"].isin(["arc_energy", "arc_width"])]
    right = exact["error"].map({"ratio": 1.0, "difference": 0.0})
    assert np.allclose(exact["bias"], right, atol=2e-3) and np.allclose(exact["scatter"], 0.0, atol=2e-3)
    assert set(exact["population"]) == {"injections", "lenses"} and set(out["binned_by"]) == {"truth", "arc_snr_true"}
    width = out[out["estimator"] == "arc_width"]
    assert np.allclose(width["bias"], -0.3) and set(width["population"]) == {"injections"}
    table = estimators.tabulate_bias(out)
    assert list(table.index.get_level_values(0).unique()) == list(estimators.ESTIMATORS)
    assert table.loc[("arc_g_r", "difference", "lenses")].str.contains(r"0.00 ± 0.00 \(\d+\)").any()
    alone = estimators.validate_populations(injections, hosts, lenses)
    assert "arc_width" not in set(alone["estimator"]) and set(alone["population"]) == {"injections"}
    figure = figures.plot_estimators(out)
    assert [axis.get_title() for axis in figure.axes] == [title for title, _ in figures.ESTIMATORS.values()]
    assert all(re.search(r"\[.+\]|S/N", axis.get_xlabel()) for axis in figure.axes)
    assert len(figures.plot_estimators(alone).axes) == 6


def test_the_true_width_is_that_of_a_ring_of_known_width(monkeypatch):
    """A Gaussian ring of radius R and scatter s, far from the centre, has the radial variance s^2 (1 - s^2/R^2)."""
    y, x = np.mgrid[-32:33, -32:33] * 0.262
    ring = np.exp(-0.5 * ((np.hypot(x, y) - 4.0) / 0.5) ** 2)[None, None]
    monkeypatch.setattr(estimators, "render_table", lambda *args: (ring, None))
    width = estimators.measure_widths(pd.DataFrame({"injection_id": [1]}), None, CONFIG)["arc_width_true"].iloc[0]
    assert width == pytest.approx(2.3548 * 0.5 * np.sqrt(1 - 0.5**2 / 4.0**2), rel=0.01)
