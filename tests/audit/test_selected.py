"""Selection applied to known parents: curves and quantiles against closed forms, parents back inside their bands."""

import io

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import norm

from lensaudit.__main__ import main
from lensaudit.artifacts import Stage, UserError
from lensaudit.audit import selected
from lensaudit.config import load_config

CONFIG = load_config("smoke")
CUT = {"fpr_1e-2": 0.0}


def make_injections(n=20000, seed=0, copies=1):
    """x uniform in (0, 1), found with probability x; `copies` equal rows of each stand in one host and brick."""
    draws = np.random.default_rng(seed)
    x, found = draws.uniform(size=n), draws.uniform(size=n)
    brick = draws.integers(0, 400, n)
    table = pd.DataFrame({"theta_E": x, "source_n": 1.0, "q": draws.uniform(size=n), "host_index": np.arange(n),
                          "brickname": brick.astype(str), "logit": np.where(found < x, 1.0, -1.0)})  # fmt: skip
    return table.loc[np.repeat(table.index, copies)].reset_index(drop=True)


def test_curves_are_the_selection_applied():
    out = selected.trace_curves(make_injections(), CUT, n_bins=20)
    assert set(out["variable"]) == {"theta_E", "q"}  # a constant is no axis
    own = out[out["variable"] == "theta_E"]
    inside = (own["lower"] <= own["x"]) & (own["x"] <= own["upper"])  # the mean of x over a bin is its centre
    assert inside.mean() >= 0.85
    for column in ("parents", "selected"):
        assert np.sum(own[column] * (own["right"] - own["left"])) == pytest.approx(1.0)
    assert own["selected"].to_numpy() == pytest.approx(2 * own["x"].to_numpy(), abs=0.25)
    flat = out[out["variable"] == "q"]
    assert ((flat["lower"] <= 0.5) & (flat["upper"] >= 0.5)).mean() >= 0.85
    assert own["n"].sum() == 20000  # the smallest and the largest value are in a bin


def test_quantiles_of_the_selected_have_their_closed_form():
    out = selected.measure_quantiles(make_injections(), CUT, CONFIG)
    own = out[out["variable"] == "theta_E"].set_index(["sample", "share"])
    for share in (0.9, 0.5, 0.1):
        parents, chosen = own.loc[("parents", share)], own.loc[("fpr_1e-2", share)]
        assert parents["value"] == pytest.approx(1 - share, abs=0.015)
        # P(x >= v | selected) = 1 - v^2
        assert chosen["value"] == pytest.approx(np.sqrt(1 - share), abs=0.015)
        # Asymptotic error of a quantile: sqrt(s (1 - s) / n) / density, density 2 v.
        sigma = np.sqrt(share * (1 - share) / chosen["n"]) / (2 * np.sqrt(1 - share))
        assert (chosen["upper"] - chosen["lower"]) / (2 * norm.ppf(0.975) * sigma) == pytest.approx(1.0, abs=0.25)
    assert (own.loc["parents"]["shift"] == 0).all()


def test_shift_between_parents_and_selected_is_covered():
    inside = {"theta_E": [], "q": []}
    for seed in range(40):
        own = selected.measure_quantiles(make_injections(3000, seed), CUT, CONFIG)
        own = own[own["sample"] != "parents"]
        # q has no part in the selection: its shift is zero.
        true = np.where(own["variable"] == "q", 0.0, np.sqrt(1 - own["share"]) - (1 - own["share"]))
        covered = (own["shift_lower"] <= true) & (true <= own["shift_upper"])
        for name, part in covered.groupby(own["variable"]):
            inside[name] += list(part)
    # 120 intervals at 0.95, three standard errors of as many independent ones
    assert all(0.89 <= np.mean(part) for part in inside.values())


def test_copies_in_a_brick_do_not_narrow_the_interval():
    one, four = (selected.measure_quantiles(make_injections(3000, 1, copies), CUT, CONFIG) for copies in (1, 4))
    assert four["lower"].to_numpy() == pytest.approx(one["lower"].to_numpy(), abs=1e-6)
    assert four["upper"].to_numpy() == pytest.approx(one["upper"].to_numpy(), abs=1e-6)


def test_quantiles_without_any_selected_are_not_made_up():
    out = selected.measure_quantiles(make_injections(300), {"high": 9.0}, CONFIG)
    assert out.loc[out["sample"] == "high", ["value", "lower", "shift"]].isna().all(axis=None)
    low = selected.measure_quantiles(make_injections(300), CUT | {"low": -9.0}, CONFIG).set_index("sample")
    assert low.loc["low", "value"].isna().all() and set(low.loc["low", "reason"]) == {"threshold below every score"}
    assert set(low.loc[["parents", *CUT], "reason"]) == {""} and low.loc[[*CUT], "value"].notna().all()
    with pytest.raises(UserError, match="threshold none is None"):
        selected.measure_quantiles(make_injections(300), {"none": None}, CONFIG)


EDGES = np.linspace(0.5, 2.5, 6)


def apply_selection(seed, n=800, n_eff=400.0, factor=1.0):
    """Parents falling with radius; cells of C with a known error; `factor` makes C wrong."""
    draws = np.random.default_rng(seed)
    number = draws.poisson(n)
    theta = 0.5 + draws.triangular(0, 0, 2.0, number)
    p = expit(3 * (np.digitize(theta, EDGES) / 2.5 - 1.3))
    found = draws.uniform(size=number) < p
    cell = np.digitize(theta, EDGES) - 1
    true = np.array([expit(3 * ((i + 1) / 2.5 - 1.3)) for i in range(5)])
    measured = draws.binomial(int(n_eff), true) / n_eff * factor
    parents = pd.DataFrame({"theta_E": theta})
    probability = pd.DataFrame({"p": measured[cell], "n_eff": n_eff, "in_support": True})
    expected = n * np.diff(1 - (1 - (EDGES - 0.5) / 2) ** 2)
    return parents[found], probability[found], parents, expected


def test_parents_come_back_inside_their_bands():
    inside = {"lower_68": [], "lower": []}
    for seed in range(60):
        found, probability, parents, expected = apply_selection(seed)
        out = selected.correct_distribution(found, "theta_E", EDGES, probability, parents, seed=seed)
        assert out["n_true"].sum() == len(parents) and out["n_found"].sum() == len(found)
        for low, high in (("lower_68", "upper_68"), ("lower", "upper")):
            inside[low].append((out[low] <= expected) & (expected <= out[high]))
    # 300 bins each: 2.5 standard errors of the nominal share below it, and not absurdly wide.
    assert 0.61 <= np.mean(inside["lower_68"]) <= 0.80
    assert np.mean(inside["lower"]) >= 0.92


def test_a_wrong_selection_function_does_not_bring_the_parents_back():
    found, probability, parents, expected = apply_selection(3, n=4000, factor=0.6)
    out = selected.correct_distribution(found, "theta_E", EDGES, probability, parents)
    assert (out["lower"] > expected).sum() >= 3


def test_errors_of_one_model_move_together():
    found, probability, _, _ = apply_selection(4, n=700, n_eff=60.0)
    probability["p"] = np.clip(probability["p"] + np.linspace(0, 1e-6, len(probability)), 0, 1)  # all differ
    apart = selected.correct_distribution(found, "theta_E", [0.5, 2.5], probability)
    one = selected.correct_distribution(found, "theta_E", [0.5, 2.5], probability, correlated=True)
    assert (one["upper"] - one["lower"]).item() > 1.3 * (apart["upper"] - apart["lower"]).item()


def test_without_probability_only_the_observed_is_given():
    found, probability, _, _ = apply_selection(5)
    out = selected.correct_distribution(found, "theta_E", EDGES)
    assert list(out) == ["left", "right", "n_found"]
    probability = probability.assign(in_support=np.arange(len(found)) % 2 == 0)
    out = selected.correct_distribution(found, "theta_E", EDGES, probability)
    assert out["n_used"].sum() == (np.arange(len(found)) % 2 == 0).sum() < out["n_found"].sum()


def test_classes_guards_and_empty_bins():
    found = pd.DataFrame({"type": ["DEV"] * 40 + ["SER"]})
    probability = pd.DataFrame({"p": [0.5] * 40 + [0.01], "n_eff": 1e6, "in_support": True})
    out = selected.correct_distribution(found, "type", ["DEV", "SER", "EXP"], probability).set_index("name")
    assert out.loc["DEV", "corrected"] == pytest.approx(80, rel=1e-4)
    assert out.loc["SER", "corrected"] == pytest.approx(100, rel=1e-2)
    assert out.loc["EXP", "corrected"] == 0 and np.isnan(out.loc["EXP", "upper"])
    assert not out["guard_ok"].any() and out["max_weight"].iloc[0] == pytest.approx(100 / 180, rel=1e-2)


def test_quads_against_doubles():
    lenses = pd.DataFrame({"n_images": [2] * 60 + [3] * 20 + [4] * 15 + [5] * 5 + [1] * 7})
    out = selected.compare_images({"all": lenses, "found": lenses.assign(weight=2.0)}).set_index("sample")
    assert out.loc["all", "quad_fraction"] == 0.2 and out.loc["all", "quad_to_double"] == 0.25
    assert out.loc["all", "n"] == 100 and out.loc["found", "n_quad"] == 40
    assert out.loc["all", "lower"] == out.loc["found", "lower"]  # equal weights add no information
    # Jeffreys interval of 20 of 100 (Brown, Cai & DasGupta 2001, by the Beta quantiles of scipy)
    assert out.loc["all", ["lower", "upper"]].tolist() == pytest.approx([0.1309, 0.2862], abs=5e-4)


class Product:
    """Knows systems above one arcsec only, each with C = 1/2; its operating points are 0 and 1."""

    description = {"thresholds": {"fpr_1e-2": 0.0, "fpr_1e-3": 1.0}}

    def query(self, theta_E, seeing, depth, threshold=None):
        out = pd.DataFrame({"p": 0.5, "n_eff": 1e6, "in_support": np.asarray(theta_E) > 1})
        out.attrs["threshold"] = threshold or "fpr_1e-2"
        return out


def test_a_catalogue_is_corrected_at_the_operating_point_asked_for():
    logit = np.tile([-1.0, 0.5, 2.0, 2.0], 30)
    theta = np.repeat([0.6, 1.6, 1.6], 40)
    table = pd.DataFrame({"galaxy_id": np.arange(120), "theta_E": theta, "z_lens": 0.5, "type": "DEV", "n_images": 2,
                          "psfsize_r": 1.2, "depth_r": 24.0, "logit": logit})  # fmt: skip
    out = selected.correct_catalogue(table, Product(), 0)
    assert list(out["variable"].unique()) == ["theta_E", "z_lens", "type"]
    own = out[(out["variable"] == "theta_E") & (out["n_found"] > 0)].set_index("left")
    assert own["n_found"].to_dict() == {0.5: 30, 1.5: 60} and own["n_true"].to_dict() == {0.5: 0, 1.5: 80}
    assert own["corrected"].to_dict() == pytest.approx({0.5: 0.0, 1.5: 120.0}, abs=1e-3)  # each counts twice
    strict = selected.correct_catalogue(table, Product(), 0, "fpr_1e-3")
    dev = strict[(strict["variable"] == "type") & (strict["name"] == "DEV")].iloc[0]
    assert (dev["n_found"], dev["n_used"], dev["n_true"]) == (60, 40, 80)
    assert dev["corrected"] == pytest.approx(80, abs=1e-3)  # half the scores lie above 1: C is right there


@pytest.fixture
def stored(scratch_root):
    """A profile with thresholds and injections, one copy of which is tilted and all found."""
    evaluation, realism = (Stage(name, CONFIG) for name in selected.SOURCES)
    limits = {"fpr_1e-3": {"fpr": 1e-3, "threshold": 0.5}, "fpr_1e-2": {"fpr": 1e-2, "threshold": 0.0},
              "score_0.3": {"fpr": None, "threshold": -0.8}}  # fmt: skip
    evaluation.write_json("thresholds.json", limits)
    fair = make_injections(2000)
    both = pd.concat([fair.assign(tilted=False), fair.assign(tilted=True, logit=9.0)], ignore_index=True)
    realism.write_table("closure_injections.parquet", both)
    evaluation.close(), realism.close()
    return Stage("09_summary", CONFIG, inputs=selected.SOURCES)


def test_one_command_prints_the_curves(stored, tmp_path, capsys):
    curves, _ = selected.collect_curves(stored)
    whole = curves[curves["variable"] == "theta_E"].groupby("threshold_name")[["n", "k"]].sum()
    assert list(whole.index) == ["fpr_1e-2", "fpr_1e-3"] and (whole["n"] == 2000).all()  # none of the tilted
    assert whole.loc["fpr_1e-2", "k"] == (make_injections(2000)["logit"] > 0).sum()
    path = tmp_path / "curves.png"
    assert main(["curves", "--profile", "smoke", "--csv", "--figure", str(path)]) == 0
    head, text = capsys.readouterr().out.split("\n", 1)
    assert head == "# simulated sky" and path.stat().st_size > 1000
    assert pd.read_csv(io.StringIO(text))["completeness"].to_numpy() == pytest.approx(curves["completeness"], abs=1e-5)
    assert main(["curves", "--profile", "smoke"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "simulated sky" in lines[0] and max(map(len, lines)) <= 120 and "parents" in " ".join(lines)
    assert main(["curves", "--profile", "smoke", "--figure", str(tmp_path / "absent" / "x.png")]) == 2
    assert "--figure" in capsys.readouterr().err


def test_what_is_not_stored_is_named(stored, capsys):
    assert main(["corrected", "--profile", "smoke"]) == 2
    assert "07_completeness of smoke is not made yet" in capsys.readouterr().err


def test_bad_input_is_refused():
    found, probability, _, _ = apply_selection(6)
    with pytest.raises(UserError, match="no column radius"):
        selected.correct_distribution(found, "radius", EDGES, probability)
    with pytest.raises(UserError, match="give one for each"):
        selected.correct_distribution(found, "theta_E", EDGES, probability[1:])
    with pytest.raises(UserError, match="do not rise"):
        selected.correct_distribution(found, "theta_E", [1, 1], probability)
    with pytest.raises(UserError, match="varies"):
        selected.trace_curves(make_injections(100)[["source_n", "logit"]], CUT)
    with pytest.raises(UserError, match="no column n_images"):
        selected.compare_images({"all": found})
