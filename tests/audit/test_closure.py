"""Closure recovers a known selection function, notices planted errors, and follows its verdict's rule."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from lensaudit.artifacts import UserError
from lensaudit.audit import closure, held_out, recovery, verdict
from lensaudit.config import load_config

CONFIG = load_config("smoke")
CONFIG = dataclasses.replace(CONFIG, closure=dataclasses.replace(CONFIG.closure, n_bootstrap=150, n_injections=20000))
THRESHOLD = {"fpr_1e-2": 0.0}


def draw_world(n, n_hosts, seed, shift=0.0, first=0):
    """Injections (or lenses) whose logit follows a known function of their covariates plus the host's own offset."""
    generator = np.random.default_rng(seed)
    host = generator.integers(0, n_hosts, n)
    seeing, depth, mag = (generator.uniform(a, b, n_hosts)[host] for a, b in ((0.9, 1.8), (22.5, 25.5), (18, 20.5)))
    theta, snr = np.exp(generator.normal(0.2, 0.3, n)), np.exp(generator.normal(2.0, 0.7, n))
    colour = np.where(generator.random(n) < 0.1, np.nan, generator.normal(0.3, 0.4, n))
    logit = 2 * np.log(theta / seeing) + 1.2 * (np.log(snr) - 2) + 0.4 * (depth - 24) + shift
    logit = logit + generator.normal(0, 0.3, n_hosts)[host] + generator.logistic(size=n)
    return pd.DataFrame({
        "injection_id": np.arange(n), "galaxy_id": [f"{first}-{i}" for i in range(n)], "host_index": host,
        "brickname": (host // 6).astype(str), "theta_E": theta, "psfsize_r": seeing, "depth_r": depth, "mag_host": mag,
        "arc_snr": snr, "arc_energy": snr, "arc_g_r": colour, "logit": logit, "mu": 5.0, "arc_snr_true": snr + 6,
        "weight": 1.0, "untied": False,
    })  # fmt: skip


@pytest.fixture(scope="module")
def world():
    lenses = draw_world(220, 220, 2, first=1).assign(split="test", tier="A")
    return {"set": draw_world(4000, 900, 1), "lenses": held_out.join_lenses(lenses)}


@pytest.fixture(scope="module")
def choice(world):
    return closure.choose_models(world["set"], THRESHOLD, CONFIG)


def test_known_function_closes_and_the_choice_beats_the_constant(world, choice):
    row, table = closure.close_conditional(world["lenses"], world["set"], 0.0, choice["fpr_1e-2"], CONFIG, "main")
    assert row["inside"] and row["tertiles_inside"] and row["verdict"] == "closes"
    scores = choice["fpr_1e-2"]["scores"]
    assert choice["fpr_1e-2"]["score"] > scores["constant 0"] + 0.05
    assert row["n_lenses"] + row["n_unsupported"] == len(world["lenses"]) == len(table)


def test_planted_shift_is_caught(world, choice):
    wrong = draw_world(4000, 900, 3, shift=-1.2)
    row, _ = closure.close_conditional(world["lenses"], wrong, 0.0, choice["fpr_1e-2"], CONFIG, "wrong")
    assert row["verdict"] == "does not close" and row["predicted"] < row["recall"] - 0.1


def test_error_along_seeing_shows_in_the_tertiles(world, choice):
    """A wrong conversion of psfsize keeps the mean and tilts recovery along seeing."""
    wrong = draw_world(4000, 900, 4)
    wrong["logit"] += 4.0 * (wrong["psfsize_r"] - wrong["psfsize_r"].mean())
    row, _ = closure.close_conditional(world["lenses"], wrong, 0.0, choice["fpr_1e-2"], CONFIG, "tilt")
    assert not row["tertiles_inside"]


def test_labels_shuffled_give_the_mean(world):
    table = world["set"].assign(logit=np.random.default_rng(0).permutation(world["set"]["logit"]))
    chosen = recovery.choose_model(table, {"t": table["logit"] > 0}, CONFIG)["t"]
    assert chosen["score"] < chosen["scores"]["constant 0"] + 0.01
    model = recovery.fit_model(chosen, table, table["logit"] > 0, recovery.fit_scaler(table))
    assert abs(model.predict(world["lenses"]).mean() - (table["logit"] > 0).mean()) < 0.03


@pytest.mark.parametrize("kind", [("kernel", 0.7), ("spline", 3.0)])
def test_bootstrap_spread_is_that_of_new_worlds(kind, world):
    """The host bootstrap of mean p agrees with the scatter of mean p over independent injection sets."""
    lenses, means = world["lenses"], []
    for seed in range(12):
        table = draw_world(1500, 150, 100 + seed)
        model = recovery.fit_model(kind, table, table["logit"] > 0, recovery.fit_scaler(table))
        means.append(model.predict(lenses).mean())
    spread = model.draw(lenses, 200, np.random.default_rng(0)).mean(axis=1).std()
    assert 0.45 < spread / np.std(means, ddof=1) < 2.2


def test_unsupported_lenses_are_counted_and_left_out(world, choice):
    far = world["lenses"].head(7).assign(theta_E=30.0, galaxy_id=[f"far{i}" for i in range(7)])
    both = pd.concat([world["lenses"], far], ignore_index=True)
    row, table = closure.close_conditional(both, world["set"], 0.0, choice["fpr_1e-2"], CONFIG, "far")
    alone, _ = closure.close_conditional(world["lenses"], world["set"], 0.0, choice["fpr_1e-2"], CONFIG, "far")
    assert row["n_unsupported"] == alone["n_unsupported"] + 7 and row["n_lenses"] == alone["n_lenses"]
    assert table.loc[table["galaxy_id"].str.startswith("far"), "p"].isna().all()


@pytest.mark.parametrize(("n", "inside", "tertiles", "half", "expected"), [
    (200, True, True, 0.06, "closes"), (200, False, True, 0.06, "does not close"),
    (200, True, False, 0.06, "does not close"), (200, True, True, 0.12, "inconclusive"),
    (100, True, True, 0.06, "too few"), (100, False, True, 0.06, "does not close"),
])  # fmt: skip
def test_verdict_rule(n, inside, tertiles, half, expected):
    row = {"n_lenses": n, "inside": inside, "tertiles_inside": tertiles, "half_width": half}
    assert verdict.decide_verdict(row, CONFIG) == {"closes": expected == "closes", "verdict": expected}


def test_run_has_every_key_and_survives_a_missing_threshold(world, choice):
    lenses, table = world["lenses"], world["set"]
    twins = lenses.loc[lenses.index.repeat(4)].reset_index(drop=True).assign(
        lens_id=lambda t: t["galaxy_id"], host_index=np.arange(4 * len(lenses)) % 500)  # fmt: skip
    pair = (table.head(1500), twins)
    points, choices = THRESHOLD | {"fpr_1e-3": None}, choice | {"fpr_1e-3": None}
    out, rows = closure.run_closure(lenses, table, twins, table, {"unspoiled": pair, "faint": pair}, points, choices,
                                     CONFIG, "d")  # fmt: skip
    assert out["controls"]["faint"]["caught"] is False  # identical to the correct ones
    with pytest.raises(UserError, match="unspoiled"):
        closure.run_closure(lenses, table, twins, table, {"faint": pair}, points, choices, CONFIG, "d")
    keys = {"recall", "recall_lower", "recall_upper", "predicted", "predicted_lower", "predicted_upper", "n_lenses",
            "n_unsupported", "fpr", "closes", "tertiles", "twins", "grid", "controls", "verdict", "detector"}
    assert keys <= set(out) and keys <= set(out["fpr_1e-3"]) and "n_eff" in out["grid"]
    assert out["fpr_1e-3"]["verdict"] == "too few" and out["fpr_1e-3"]["n_unsupported"] == len(lenses)
    assert len(verdict.tabulate_closure(out)) == 2 * 10 and len(rows) == 2 * len(lenses)
    assert "recall" in verdict.describe_closure(out)


def test_a_selection_that_cannot_be_inferred_leaves_an_empty_row_and_the_rest_goes_on(world):
    lenses, table = world["lenses"], world["set"].assign(arc_snr_true=lambda t: t["arc_snr"])
    twins = lenses.loc[lenses.index.repeat(2)].reset_index(drop=True).assign(
        lens_id=lambda t: t["galaxy_id"], host_index=np.arange(2 * len(lenses)) % 300)  # fmt: skip
    log = [0.0, 0.3, 0.6, 0.9, 1.0, 1.0, 1.0, 0.0, 0.1, 0.2, 0.2]
    good = {"reason": "", "log_weights": log, "draws": [log, [1.1 * v for v in log], [0.9 * v for v in log]]}
    bad = {"reason": "12 lenses lie among the injections; unfolding needs 50", "n_lenses": 12}
    choices = closure.choose_models(table, THRESHOLD, CONFIG, good)
    pair = (table.head(1500), twins)
    controls = {"unspoiled": pair, "faint": pair, "red": pair}
    out, _ = closure.run_closure(lenses, table, twins, table, controls, THRESHOLD, choices, CONFIG, "d",
                                 {"main": good, "unspoiled": good, "faint": bad, "red": good})  # fmt: skip
    empty = out["controls"]["faint"]["calibrated"]
    assert empty["reason"] == bad["reason"] and np.isnan(empty["predicted"]) and not out["controls"]["faint"]["caught"]
    for row in (out, out["calibrated"], out["controls"]["red"]["calibrated"], out["controls"]["faint"]["twins"]):
        assert np.isfinite(row["predicted"]) and not row.get("reason")
    rows = verdict.tabulate_closure(out).set_index("row")
    assert rows.loc["faint / calibrated", "reason"] == bad["reason"] and rows.loc["main", "reason"] == ""
    none = closure.choose_models(table, THRESHOLD, CONFIG, bad)
    assert "calibrated" not in none["fpr_1e-2"]
    out, _ = closure.run_closure(lenses, table, twins, table, controls, THRESHOLD, none, CONFIG, "d",
                                 dict.fromkeys(("main", *controls), bad))  # fmt: skip
    assert out["calibrated"]["reason"] == bad["reason"] and np.isfinite(out["predicted"])


def test_truth_brings_theta_and_drops_wrong_entries():
    lenses = draw_world(5, 5, 9).drop(columns="theta_E").assign(split="test", tier="A")
    truth = pd.DataFrame({"galaxy_id": lenses["galaxy_id"][:3], "theta_E": [1.0, 1.1, 1.2]})
    assert list(held_out.join_lenses(lenses, truth)["theta_E"]) == [1.0, 1.1, 1.2]
    with pytest.raises(UserError, match="theta_E"):
        held_out.join_lenses(lenses)


def test_tertiles_of_twins_are_unbiased_where_the_truth_closes():
    """Lenses of very different recall, few twins each: the mean z of every bin is consistent with zero."""
    config, z = dataclasses.replace(CONFIG, closure=dataclasses.replace(CONFIG.closure, n_bootstrap=40)), []
    for seed in range(50):
        generator = np.random.default_rng(seed)
        lenses = draw_world(180, 180, seed).assign(theta_E=np.linspace(0.5, 3.0, 180))
        p = np.clip((lenses["theta_E"].to_numpy() - 0.4) / 2.7, 0.02, 0.98)
        lenses["logit"] = p - generator.random(180)
        twins = pd.DataFrame({"lens_id": np.repeat(lenses["galaxy_id"], 4), "host_index": np.arange(720),
                              "logit": np.repeat(p, 4) - generator.random(720)})  # fmt: skip
        row = closure.close_twins(lenses, twins, 0.0, config, "null")
        z.append([entry["z"] for entry in row["tertiles"]["bins"]] + [row["z"]])
    assert np.abs(np.mean(z, axis=0)).max() < 3.2 / np.sqrt(50)
    assert np.all(np.abs(np.std(z, axis=0) - 1) < 0.4)


def test_half_width_is_not_cut_with_the_interval():
    lenses = draw_world(40, 40, 5)
    row = verdict.compare_recall(lenses, np.ones(40, bool), np.full(40, 0.97), np.full((50, 40), 0.97), CONFIG, "edge")
    assert row["predicted_upper"] == 1.0
    assert np.isclose(row["half_width"], 1.96 * np.sqrt(0.97 * 0.03 / 40))


def test_a_control_is_caught_only_where_correct_injections_do_not_fail():
    def row(predicted, text):
        return verdict.make_empty_row(text) | {"predicted": predicted, "predicted_sigma": 0.02}

    wrong = {"conditional": row(0.3, "does not close"), "twins": row(0.3, "does not close")}
    right = {"conditional": row(0.31, "does not close"), "twins": row(0.5, "closes")}
    out = verdict.judge_controls({"unspoiled": right, "faint": wrong})
    assert out["faint"]["caught_by"] == ["twins"] and out["faint"]["must_fail"]
    assert out["faint"]["twins"]["z_unspoiled"] < -5 < out["faint"]["conditional"]["z_unspoiled"]
    assert not out["unspoiled"]["caught"] and not out["unspoiled"]["must_fail"]
    assert not verdict.judge_controls({"unspoiled": right, "faint": right})["faint"]["caught"]


@pytest.mark.parametrize(("n_eff", "weight", "precision", "good"), [
    (40, 0.04, 801, True), (29, 0.04, 801, False), (40, 0.06, 801, False), (40, 0.04, 799, False),
])  # fmt: skip
def test_a_guard_refuses_the_grid_row(n_eff, weight, precision, good):
    row = {"n_eff": n_eff, "max_weight": weight, "precision": precision, "n_lenses": 200, "verdict": "closes"}
    out = row | verdict.check_guard(row)
    assert out["guard_ok"] is good and out["verdict"] == ("closes" if good else "refused")


def test_scores_join_by_key_or_not_at_all():
    lenses = draw_world(4, 4, 6).drop(columns="logit").assign(split=["test"] * 3 + ["val"], cutout_path="a#0")
    scores = pd.DataFrame({"galaxy_id": ["other", *lenses["galaxy_id"][2::-1]], "cutout_path": "a#0",
                           "logit": [9.0, 2.0, 1.0, 0.0]})  # fmt: skip
    assert list(held_out.score_lenses(lenses, scores)["logit"]) == [0.0, 1.0, 2.0]
    with pytest.raises(UserError, match="without a score"):
        held_out.score_lenses(lenses, scores.tail(2))
    with pytest.raises(UserError, match="duplicate"):
        held_out.score_lenses(lenses, pd.concat([scores, scores.tail(1)]))
