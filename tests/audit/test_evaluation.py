"""Scores joined by key, thresholds under the count rule, metrics against scikit-learn, refusals, wrong labels."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit as to_logit
from sklearn import metrics

from lensaudit.artifacts import UserError, write_json
from lensaudit.audit import evaluation, robustness, thresholds
from lensaudit.audit import scores as scoring
from lensaudit.config import EvaluationConfig
from lensaudit.rng import make_stream

CONFIG = EvaluationConfig(n_bootstrap=200)


def make_sample(n_negatives=13000, n_lenses=400, seed=1, split="test"):
    """A joined table like that of notebook 05: N1 in two strata of very different inclusion probability."""
    rng = make_stream(seed, f"tests/evaluation/{split}")
    n = n_negatives + n_lenses
    label = np.r_[np.zeros(n_negatives, int), np.ones(n_lenses, int)]
    n2 = rng.random(n) < 0.15
    dense = rng.random(n) < 0.5
    table = pd.DataFrame({
        "galaxy_id": [f"{split}-{i}" for i in range(n)],
        "cutout_path": [f"stamps/shard-0000.npy#{i}" for i in range(n)], "label": label,
        "tier": np.where(label == 1, np.where(rng.random(n) < 0.6, "A", "B"), np.where(n2, "N2", "N1")),
        "pool": np.where(label == 1, "", np.where(n2, "N2", "N1")), "type": np.where(dense, "DEV", "REX"),
        "confuser_category": np.where((label == 0) & n2, rng.choice(["ring_proxy", "blue_clumpy"], n), ""),
        "inclusion_probability": np.where(label == 1, np.nan, np.where(dense, 0.5, 0.1)),
        "footprint_weight": rng.uniform(0.5, 2, n), "healpix_128": rng.integers(0, 196608, n),
        "ra": rng.uniform(0, 360, n), "dec": rng.uniform(-18, 32, n), "psfsize_r": rng.uniform(0.83, 1.9, n),
        "psfdepth_r": 25 * 10 ** (0.8 * (rng.uniform(22.5, 25.5, n) - 22.5)), "nobs_z_bin": "3-5",
        "arc_snr": rng.normal(3, 2, n), "arc_radius": rng.uniform(1, 3, n),
    })  # fmt: skip
    # Negatives of the dense stratum score higher, as galaxies like the deflectors do.
    return table, pd.DataFrame({
        "galaxy_id": table.galaxy_id, "cutout_path": table.cutout_path,
        "logit": rng.normal(size=n) + 2.5 * label + np.where((label == 0) & dense, 0.7, 0.0),
    })  # fmt: skip


@pytest.fixture(scope="module")
def joined():
    return tuple(scoring.join_scores(*make_sample(split=s)) for s in ("val", "test"))


def summarise(manifest, scores, cuts, draws):
    test = scoring.label_strata(scoring.join_scores(manifest, scores))
    strata = evaluation.measure_strata(test, cuts, "fpr_1e-2", CONFIG)
    return evaluation.summarise_evaluation(
        {"detector": "0"}, test, thresholds.measure_achieved(cuts, test), evaluation.measure_overall(test, CONFIG, 1),
        evaluation.measure_recall(test, cuts, draws, CONFIG, 1), strata, evaluation.measure_reliability(test, CONFIG),
        folds=robustness.cross_validate_regions(test, cuts, "fpr_1e-2", 1),
    )  # fmt: skip


def test_shuffling_changes_no_metric(joined, tmp_path):
    val, (manifest, scores) = joined[0], make_sample()
    cuts, draws = thresholds.set_thresholds(val, CONFIG, 1)
    straight = summarise(manifest, scores, cuts, draws)
    shuffled = [t.sample(frac=1, random_state=i) for i, t in enumerate((*make_sample(split="val"), manifest, scores))]
    cuts, draws = thresholds.set_thresholds(scoring.join_scores(*shuffled[:2]), CONFIG, 1)
    other = summarise(*shuffled[2:], cuts, draws)
    write_json(tmp_path / "a.json", straight)
    write_json(tmp_path / "b.json", other)
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    text = (tmp_path / "a.json").read_text()
    assert "stamps" not in text and "shard" not in text and '"/' not in text
    record = json.loads(text)
    assert record["counts"]["lenses"] == 400 and record["counts"]["galaxies"] == 13000


@pytest.mark.parametrize("spoil, words", [
    (lambda s: s.iloc[1:], "without a score"),
    (lambda s: pd.concat([s, s.iloc[:2]]), "duplicate key"),
    (lambda s: pd.concat([s, s.iloc[:1].assign(galaxy_id="alien")]), "not in the manifest"),
    (lambda s: s.assign(logit=s.logit.where(s.index > 0)), "not finite"),
    (lambda s: s.drop(columns="logit"), "logit or score"),
    (lambda s: s.drop(columns="cutout_path"), "cutout_path"),
])  # fmt: skip
def test_wrong_keys_are_refused(spoil, words):
    manifest, scores = make_sample(50, 5)
    with pytest.raises(UserError, match=words) as error:
        scoring.join_scores(manifest, spoil(scores))
    assert "\n" not in str(error.value)


def test_scores_from_csv(tmp_path):
    manifest, scores = make_sample(50, 5)
    probability = scores.assign(score=1 / (1 + np.exp(-scores.logit))).drop(columns="logit")
    probability.to_csv(tmp_path / "scores.csv", index=False)
    table = scoring.join_scores(manifest, scoring.read_scores(tmp_path / "scores.csv"))
    assert np.allclose(table.logit, scoring.join_scores(manifest, scores).logit)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match=r"empty\.csv"):
        scoring.read_scores(tmp_path / "empty.csv")


def test_threshold_is_the_parent_populations_quantile(joined):
    val, test = joined
    cuts, draws = thresholds.set_thresholds(val, CONFIG, 1)
    entry = cuts["fpr_1e-2"]
    parent = val[(val.label == 0) & (val.pool == "N1")]
    repeated = np.repeat(parent.logit.to_numpy(), np.where(parent.type == "DEV", 2, 10))
    assert np.mean(repeated > entry["threshold"]) == pytest.approx(0.01, abs=2e-4)
    # The unweighted quantile is another one: the stratum that scores high is sampled densely.
    assert np.quantile(parent.logit, 0.99) > entry["threshold"] + 0.1
    assert entry["lower"] < entry["threshold"] < entry["upper"] and entry["status"] == "headline"
    assert list(draws) == ["fpr_1e-2", "fpr_1e-3", "score_0.3", "score_0.5"]
    achieved = thresholds.measure_achieved(cuts, test)["fpr_1e-2"]
    assert achieved["achieved_test_fpr_lower"] < 0.0125 and achieved["achieved_test_fpr_upper"] > 0.008
    assert cuts["score_0.3"]["threshold"] == pytest.approx(to_logit(0.3))


def test_threshold_interval_covers_the_true_quantile():
    inside = []
    for seed in range(60):
        rng = make_stream(seed, "tests/coverage")
        draws = thresholds.draw_thresholds(rng.normal(size=3000), np.ones(3000), np.arange(3000), [0.01], 200, rng)
        inside.append(np.quantile(draws, 0.025) <= 2.3263 <= np.quantile(draws, 0.975))
    assert 0.85 <= np.mean(inside) <= 1.0


def test_count_rule(joined):
    cuts, _ = thresholds.set_thresholds(joined[0], CONFIG, 1)
    assert [cuts[n]["status"] for n in ("fpr_1e-2", "fpr_1e-3", "fpr_1e-4")] == ["headline", "reported",
                                                                                   "cannot be computed"]
    assert cuts["fpr_1e-4"]["threshold"] is None and "exceedances" in cuts["fpr_1e-4"]["reason"]
    assert thresholds.choose_points(cuts) == ["fpr_1e-2", "fpr_1e-3"]
    few, _ = thresholds.set_thresholds(scoring.join_scores(*make_sample(500, 20)), CONFIG, 1)
    assert few["fpr_1e-2"]["threshold"] is None and thresholds.choose_points(few) == ["score_0.5"]
    assert thresholds.grade_count(10000, 1e-2, CONFIG) == "headline"
    with pytest.raises(UserError, match="inclusion_probability"):
        thresholds.parent_weights(joined[0].assign(inclusion_probability=0.0))


def test_overall_metrics(joined):
    test = joined[1]
    overall = evaluation.measure_overall(test, CONFIG, 1).set_index("metric")
    weights = np.where(test.label == 1, 1.0, thresholds.parent_weights(test))
    auc = metrics.roc_auc_score(test.label, test.logit, sample_weight=weights)
    assert overall.value["auc"] == pytest.approx(auc)
    assert overall.value["average_precision"] == pytest.approx(metrics.average_precision_score(test.label, test.logit))
    assert (overall.lower < overall.lower_68).all() and (overall.lower <= overall.value).all()
    assert overall.value["tpr0"] == np.mean(test.logit[test.label == 1] > test.logit[test.label == 0].max())


def test_recall_by_tier_and_visibility(joined):
    cuts, draws = thresholds.set_thresholds(joined[0], CONFIG, 1)
    recall = evaluation.measure_recall(joined[1], cuts, draws, CONFIG, 1).set_index(["subset", "point"])
    row = recall.loc[("Tier A", "fpr_1e-2")]
    part = joined[1][joined[1].tier == "A"]
    assert row.k == (part.logit > cuts["fpr_1e-2"]["threshold"]).sum() and row.n == len(part)
    assert row.upper_total - row.lower_total > row.upper - row.lower  # the threshold's error adds
    both = recall.xs("fpr_1e-2", level="point")
    assert both.n["Tier A, visible"] + both.n["Tier A, invisible"] == row.n
    assert np.isnan(both.recall["Tier S"]) and both.lower["Tier S"] == 0


def test_strata_refuse_single_classes(joined):
    test = scoring.label_strata(joined[1])
    cuts, _ = thresholds.set_thresholds(joined[0], CONFIG, 1)
    strata = evaluation.measure_strata(test, cuts, "fpr_1e-2", CONFIG).set_index(["axis", "stratum"])
    assert strata.loc[("pool", "N2"), "refused"] == "auc: single class; ece: single class"
    assert strata.loc["TYPE"].n_positive.sum() == 400 and len(strata.loc["seeing x depth"]) == 9
    dev, rex = strata.loc[("TYPE", "DEV")], strata.loc[("TYPE", "REX")]
    assert dev.fpr_lower > rex.fpr_upper and dev.refused == ""
    reasons = evaluation.collect_refused(cuts, strata.reset_index())
    assert {"metric": "ece", "where": "pool: N2", "reason": "single class"} in reasons


def test_reliability_top(joined):
    reliability = evaluation.measure_reliability(joined[1], CONFIG)
    assert [t["n"] for t in reliability["top"]] == [13, 40, 134] and len(reliability["bins"]) == 15


def test_folds_keep_regions_together(joined):
    test = joined[1]
    fold = robustness.assign_folds(test.healpix_128, 5, 1)
    assert pd.Series(fold).groupby(test.healpix_128.to_numpy() >> 6).nunique().max() == 1
    assert np.bincount(fold).min() > 0.15 * len(test)
    order = np.random.default_rng(0).permutation(len(test))
    assert (robustness.assign_folds(test.healpix_128.to_numpy()[order], 5, 1) == fold[order]).all()
    cuts, _ = thresholds.set_thresholds(joined[0], CONFIG, 1)
    summary = robustness.summarise_folds(robustness.cross_validate_regions(test, cuts, "fpr_1e-2", 1))
    assert (summary.scatter < 3 * summary.expected).all()  # identical regions: counting noise only


def test_leak_buckets():
    cuts = {"fpr_1e-2": {"threshold": 0.0}}
    test = pd.DataFrame({"label": 1, "logit": [1.0, -1, 1, 1], "ra": [10.0, 10, 10, 200], "dec": [0.0, 1, 2, 3]})
    train = pd.DataFrame({"ra": [10.0, 10.0, 10.0], "dec": [0.005, 1.05, 2.2]})
    leaks = robustness.measure_leaks(test, train, cuts, "fpr_1e-2")
    assert leaks.n.tolist() == [1, 0, 1, 1, 1] and leaks.k.tolist() == [1, 0, 0, 1, 1]


def test_label_noise_recovers_the_true_recall():
    rng = make_stream(9, "tests/noise")
    n, wrong = 6000, 0.2
    is_lens = rng.random(n) > wrong
    flag = rng.random(n) < np.where(is_lens, 0.6, 0.1)
    labelled = pd.DataFrame({"galaxy_id": [f"p{i}" for i in range(n)], "label": 1, "tier": "B", "pool": "",
                             "logit": np.where(flag, 1.0, -1.0)})  # fmt: skip
    ring = pd.DataFrame({"galaxy_id": [f"n{i}" for i in range(3000)], "label": 0, "tier": "N2", "pool": "N2",
                         "logit": np.where(rng.random(3000) < 0.1, 1.0, -1.0)})  # fmt: skip
    table, cuts = pd.concat([labelled, ring], ignore_index=True), {"p": {"threshold": 0.0}}
    kinds = ring[["galaxy_id"]].assign(kind="ring")
    row = robustness.measure_label_noise(table, cuts, "p", truth=labelled[is_lens], truth_kinds=kinds).iloc[0]
    assert row.wrong_rate == pytest.approx(wrong, abs=0.02)
    assert row.corrected == pytest.approx(row.true_recall, abs=0.02)
    band = robustness.measure_label_noise(table, cuts, "p")
    assert len(band) == 5 and band.wrong_rate.max() == 0.4 and band.corrected.is_monotonic_increasing


def test_contaminants_are_counted_and_bounded():
    table = pd.DataFrame({"galaxy_id": ["a", "b", "c"], "label": 0, "pool": "N1", "inclusion_probability": 0.5,
                          "logit": [1.0, 1.0, -1.0]})  # fmt: skip
    row = robustness.count_contaminants(table, table[["galaxy_id"]].iloc[:1], {"p": {"threshold": 0.0}}).iloc[0]
    assert (row.n_lenses, row.n_above, row.n_exceedances, row.share) == (1, 1, 2, 0.5)
    recall = pd.DataFrame({"subset": "Tier A", "point": ["fpr_1e-2", "fpr_1e-3", "score_0.5"],
                           "upper_total": [0.9, 0.5, 0.1]})  # fmt: skip
    assert thresholds.bound_contamination(recall)["share"] == pytest.approx(0.8)
    assert thresholds.bound_contamination(recall.iloc[2:])["recall_upper"] == 1.0
    assert robustness.count_contaminants(table, None, {"p": {"threshold": 0.0}}).empty


def test_frozen_detector_changes_with_its_parts(tmp_path):
    (tmp_path / "w").write_bytes(b"weights")
    (tmp_path / "p").write_text("{}")
    cuts = {"fpr_1e-2": {"threshold": 1.0}}
    first = thresholds.freeze_detector("m", tmp_path / "w", tmp_path / "p", cuts)
    assert first == thresholds.freeze_detector("m", tmp_path / "w", tmp_path / "p", cuts)
    moved = thresholds.freeze_detector("m", tmp_path / "w", tmp_path / "p", {"fpr_1e-2": {"threshold": 1.1}})
    assert moved["detector"] != first["detector"] and moved["weights"] == first["weights"]


def test_curve_passes_through_the_operating_points(joined):
    test = scoring.label_strata(joined[1])
    cuts, draws = thresholds.set_thresholds(joined[0], CONFIG, 1)
    cuts = thresholds.measure_achieved(cuts, test)
    curve = evaluation.trace_recall(test, CONFIG)
    points = evaluation.list_rates(evaluation.measure_recall(test, cuts, draws, CONFIG, 1), cuts)
    row = points[(points.subset == "Tier A") & (points.point == "fpr_1e-2")].iloc[0]
    own = curve[curve.subset == "Tier A"]
    assert np.interp(row.achieved_fpr, own.fpr, own.recall) == pytest.approx(row.recall, abs=0.02)
    assert own.recall.is_monotonic_increasing and own.fpr.min() == pytest.approx(10 / 11000, rel=0.05)
    bins = evaluation.measure_recall_bins(test, cuts, ["fpr_1e-2"])
    assert bins.groupby("covariate").k.sum().eq(row.k).all() and len(bins) == 16


def test_confuser_labels_and_proxies_are_apart():
    table = pd.DataFrame({"psfsize_r": 1.2, "depth_r": 24.0, "confuser_category": ["labelled_ring", "ring_proxy", ""]})
    table = scoring.label_strata(table)
    assert table.confuser_label.tolist() == ["ring", "", ""] and table.confuser_proxy.tolist() == ["", "ring_proxy", ""]
    assert table.seeing_bin.tolist() == ["1.1-1.4 arcsec"] * 3


def test_comparison_names_the_groups(joined):
    test = joined[1]
    cuts, draws = thresholds.set_thresholds(joined[0], CONFIG, 1)
    recall = evaluation.measure_recall(test, cuts, draws, CONFIG, 1)
    folds = {"fpr_1e-2": robustness.cross_validate_regions(test, cuts, "fpr_1e-2", 1)}
    table = robustness.compare_recall(recall, folds, recall, ["fpr_1e-2"])
    assert table.groupby("group").size().to_dict() == {"folds": 5, "held-out": 4, "other channel": 1}
