"""The smooth model of P(recovered): known functions come back inside its bands, and held-out bricks judge it."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, ndtri
from sklearn.linear_model import LogisticRegression

from lensaudit.artifacts import UserError
from lensaudit.audit import completeness, smooth, smooth_checks
from lensaudit.config import load_config
from lensaudit.figures.smooth import plot_smooth

CONFIG = load_config("demo")
GRID = {"theta_E": (0.75, 1.25, 1.75, 2.25, 2.75), "seeing": (1.0, 1.2, 1.4, 1.6), "depth": (23.0, 24.0, 25.0)}
LATENT = 0.3  # correlation of the normal deviates of one host's rows


def known(theta_E, seeing, depth):
    """A smooth completeness that rises and falls in theta_E, with an interaction."""
    logit = -1.0 + 1.6 * np.sin(1.5 * (theta_E - 1.3)) - 2.0 * (seeing - 1.3) - 1.5 * (seeing - 1.3) ** 2
    return expit(logit + 0.8 * (depth - 24.0) + 0.8 * (seeing - 1.3) * (theta_E - 1.5))


def make_table(n_hosts, per_host, seed, function=known):
    """Injections whose flags have exactly the given marginal probability and share a normal deviate per host."""
    generator = np.random.default_rng(seed)
    host = np.repeat(np.arange(n_hosts), per_host)
    seeing, depth = generator.uniform(0.9, 1.7, n_hosts)[host], generator.uniform(22.5, 25.5, n_hosts)[host]
    theta = generator.uniform(0.5, 3.0, len(host))
    shared = generator.standard_normal(n_hosts)[host]
    deviate = np.sqrt(LATENT) * shared + np.sqrt(1.0 - LATENT) * generator.standard_normal(len(host))
    truth = np.broadcast_to(function(theta, seeing, depth), host.shape)
    return pd.DataFrame({"theta_E": theta, "psfsize_r": seeing, "depth_r": depth, "host_index": host, "untied": False,
                         "brickname": (host // 5).astype(str), "footprint_weight": 1.0, "truth": truth,
                         "logit": np.where(deviate < ndtri(truth), 1.0, -1.0)})  # fmt: skip


def list_centres():
    parts = np.meshgrid(*GRID.values(), indexing="ij")
    return pd.DataFrame({name: part.ravel() for name, part in zip(smooth.SMOOTH_AXES, parts, strict=True)})


def cover(tables, query, truth, by_host=True):
    """Return the share of cells whose truth lies inside the 68 and 95 % bands, over all tables."""
    hits = []
    for table in tables:
        own = table if by_host else table.assign(host_index=np.arange(len(table)))
        draws = smooth.fit_smooth(own, own["logit"] > 0).draw(query, 300, np.random.default_rng(1))
        low, inner, outer, high = np.quantile(draws, [0.025, 0.16, 0.84, 0.975], axis=0)
        hits.append([np.mean((inner < truth) & (truth < outer)), np.mean((low < truth) & (truth < high))])
    return np.mean(hits, axis=0)


def test_a_known_function_comes_back_inside_its_bands():
    tables, query = [make_table(300, 16, seed) for seed in range(16)], list_centres()
    truth = known(query["theta_E"], query["psfsize_r"], query["depth_r"]).to_numpy()
    inner, outer = cover(tables, query, truth)
    assert 0.62 < inner < 0.76 and 0.92 < outer < 0.985
    # Without the hosts the bands are too narrow: the test can fail.
    assert cover(tables[:6], query, truth, by_host=False)[1] < 0.88


def test_a_constant_gives_a_flat_model():
    query = list_centres()
    tables = [make_table(400, 16, seed, lambda *_: 0.3) for seed in range(6)]
    fits = [smooth.fit_smooth(table, table["logit"] > 0) for table in tables]
    assert np.mean([fit.predict(query).std() for fit in fits]) < 0.04
    assert cover(tables, query, np.full(len(query), 0.3))[1] > 0.93


def test_the_fall_at_large_radius_is_kept():
    table = make_table(600, 20, 3)
    model = smooth.fit_smooth(table, table["logit"] > 0)
    line = pd.DataFrame({"theta_E": np.linspace(0.6, 2.9, 12), "psfsize_r": 1.2, "depth_r": 24.5})
    p = model.predict(line)
    assert 0.3 < line["theta_E"][p.argmax()] < 2.7 and p.max() - p[-1] > 0.05
    assert np.abs(p - known(line["theta_E"], 1.2, 24.5)).max() < 0.08


def test_the_maximum_is_that_of_another_solver():
    """At the penalties found, scikit-learn's logistic regression gives the same probabilities."""
    table = make_table(200, 15, 5)
    flag = table["logit"] > 0
    model = smooth.fit_smooth(table, flag)
    assert model.converged
    blocks, design = model.basis.blocks, model.basis.transform(table)
    penalty = (model.penalties * model.dispersions)[blocks] * model.basis.weights
    peer = LogisticRegression(C=1.0, fit_intercept=False, solver="newton-cholesky", tol=1e-10, max_iter=300)
    peer.fit(design / np.sqrt(penalty), flag)
    assert np.abs(peer.predict_proba(design / np.sqrt(penalty))[:, 1] - model.predict(table)).max() < 2e-3


def test_rows_may_come_in_any_order():
    table = make_table(150, 12, 6)
    mixed = table.sample(frac=1.0, random_state=0)
    first, second = (smooth.fit_smooth(t, t["logit"] > 0).predict(list_centres()) for t in (table, mixed))
    assert np.allclose(first, second, atol=1e-7)


def run_audit(table):
    hosts = table.drop_duplicates("host_index").assign(deflector_weight=1.0, deployment_weight=1.0)
    cells = completeness.count_cells(table, GRID, {"t": 0.0}, CONFIG, hosts)
    return smooth_checks.audit_smooth(table, cells, GRID, {"t": 0.0}, CONFIG)


@pytest.fixture(scope="module")
def judged():
    table = make_table(700, 20, 7)
    return table, run_audit(table)


def test_a_smooth_truth_is_predicted_better_than_by_cells(judged):
    scores = judged[1]["scores"].set_index("model")
    assert scores.loc["cells", "gain_lower"] > 0 and scores.loc["constant", "gain_lower"] > 0.05
    assert scores.loc["smooth", "gain"] == 0.0


def test_calibration_and_checks_pass_where_the_model_is_right(judged):
    table, found = judged
    bins, checks = found["calibration"], found["checks"].set_index("check")
    assert bins["n"].sum() == (completeness.assign_cells(table, GRID) >= 0).sum()
    assert np.sum((bins["predicted"] > bins["observed_lower"]) & (bins["predicted"] < bins["observed_upper"])) >= 8
    assert (checks["p"] > 0.01).all()
    assert checks["latent_host"].iloc[0] == pytest.approx(LATENT, abs=0.06)
    assert checks["latent_brick"].iloc[0] < 0.05


def test_cells_that_are_not_smooth_are_noticed():
    """A chessboard over the cells: the raw cells predict better, and the predictive checks say so."""

    def chessboard(theta_E, seeing, depth):
        steps = [np.digitize(v, completeness.make_edges(c)) for v, c in
                 zip((theta_E, seeing, depth), GRID.values(), strict=True)]  # fmt: skip
        return np.where(sum(steps) % 2 == 0, 0.2, 0.6)

    found = run_audit(make_table(500, 20, 8, chessboard))
    checks = found["checks"].set_index("check")
    assert found["scores"].set_index("model").loc["cells", "gain_upper"] < 0
    assert checks.loc["chi-squared, cells", "p"] < 0.01 and checks.loc["cells outside", "p"] < 0.01


def test_the_model_stands_beside_the_cells_and_does_not_extrapolate(judged):
    table, found = judged
    cells = found["cells"]
    number = completeness.assign_cells(table, GRID)
    truth = table[number >= 0].groupby(number[number >= 0])["truth"].mean()
    inside = (cells["smooth_lower_95"] < truth) & (truth < cells["smooth_upper_95"])
    assert inside.mean() > 0.85
    width = (cells["smooth_upper_95"] - cells["smooth_lower_95"]).mean()
    assert width < 0.8 * (cells["upper_95"] - cells["lower_95"]).mean()
    some = table[number != 7]
    hosts = some.assign(deflector_weight=1.0, deployment_weight=1.0)
    counted = completeness.count_cells(some, GRID, {"t": 0.0}, CONFIG, hosts)
    model = smooth.fit_smooth(some, some["logit"] > 0)
    out = smooth_checks.tabulate_cells(model, some, counted, GRID, 1, n_draws=20)
    assert list(np.flatnonzero(out["smooth"].isna())) == [7] and out.loc[7, "n"] == 0
    assert np.array_equal(out["completeness"], counted["completeness"], equal_nan=True)
    figure = plot_smooth(cells, found["calibration"], "t", verdict="realism: inconclusive")
    assert any("realism: inconclusive" in text.get_text() for text in figure.texts)
    assert len(figure.axes) == 4


def test_nothing_recovered_is_no_error():
    table = make_table(60, 10, 9)
    model = smooth.fit_smooth(table, np.zeros(len(table), dtype=bool))
    assert model.predict(table).max() < 0.02
    found = run_audit(table.assign(logit=-1.0))
    assert found["scores"]["log_score"].max() < 0 and (found["calibration"]["observed_upper"] > 0).all()
    assert len(plot_smooth(found["cells"], found["calibration"], "t").axes) == 4


def test_bad_input_is_refused_by_name():
    table = make_table(30, 10, 10)
    flag = table["logit"] > 0
    with pytest.raises(UserError, match="psfsize_r does not vary"):
        smooth.fit_smooth(table.assign(psfsize_r=1.2), flag)
    with pytest.raises(UserError, match="mag_source_r missing"):
        smooth.fit_smooth(table, flag, ("theta_E", "mag_source_r"))
    with pytest.raises(UserError, match="depth_r is not finite in 1 injection.*first 3"):
        smooth.fit_smooth(table.assign(depth_r=table["depth_r"].where(table.index != 3)), flag)
    with pytest.raises(UserError, match="host_index has fewer"):
        smooth.fit_smooth(table.assign(host_index=0), flag)
    with pytest.raises(UserError, match="two folds"):
        smooth_checks.cross_validate(table.assign(brickname="one"), flag, GRID, 1)
