"""Products against closed forms, averages and counts against sums by hand, rates against another integration."""

import math

import numpy as np
import pandas as pd
import pytest
from astropy.cosmology import FlatLambdaCDM
from scipy import integrate, stats

from lensaudit.artifacts import UserError
from lensaudit.injection.population import load_prior, source_density, visible_fraction
from lensaudit.selection import Factor, SelectionFunction, make_rate
from lensaudit.selection.footprint import grid_conditions
from lensaudit.selection.rates import count_parents

POINT = (1.0, 1.0, 23.0)


def beta_of(product, point=POINT):
    own = product.query(*point).iloc[0]
    k = own["n_eff"] * own["p"]
    return own["p"], stats.beta(k + 0.5, own["n_eff"] - k + 0.5)


def test_an_exact_factor_scales_the_interval(product):
    own, half = product.query(*POINT).iloc[0], (product * 0.5).query(*POINT).iloc[0]
    assert half["p"] == own["p"] / 2
    for name in ("lower", "upper"):
        assert half[name] == pytest.approx(own[name] / 2, abs=0.1 * (own["upper"] - own["lower"]))
    assert (0.5 * product).query(*POINT).equals((product * 0.5).query(*POINT))


def test_interval_of_a_product_is_that_of_two_beta_variables(product):
    p, first = beta_of(product)
    second = stats.beta(0.7 * 83, 0.3 * 83)  # mean 0.7, variance 0.7 * 0.3 / 84
    composed = product * Factor(0.7, np.sqrt(0.21 / 84), "spectroscopy")
    out = composed.query(*POINT).iloc[0]
    assert out["p"] == pytest.approx(0.7 * p)

    def share_below(t):
        return integrate.quad(lambda y: first.cdf(t / y) * second.pdf(y), 0.0, 1.0)[0]

    own, many = composed.draw(*POINT)[:, 0], composed.draw(*POINT, n=40000)[:, 0]
    for name, share in (("lower", 0.025), ("upper", 0.975)):
        assert out[name] == pytest.approx(np.quantile(own, share))
        assert share_below(np.quantile(many, share)) == pytest.approx(share, abs=0.004)  # five times its own scatter
    variance = (first.var() + first.mean() ** 2) * (second.var() + 0.49) - (first.mean() * 0.7) ** 2
    assert many.var() == pytest.approx(variance, rel=0.03)
    assert composed.query(*POINT).attrs["assumption"] == "factors are independent"


def test_one_quantity_twice_is_not_two_independent_ones(product):
    factor = Factor(0.5, 0.1, "a")
    same = (product * factor * factor).draw(*POINT, n=20000).std()
    apart = (product * factor * Factor(0.5, 0.1, "b")).draw(*POINT, n=20000).std()
    assert same > 1.2 * apart


def test_a_table_is_a_factor_on_its_own_axes(product):
    table = pd.DataFrame({"depth": [23.0, 24.0], "p": [0.4, 0.9], "lower": [0.3, 0.85], "upper": [0.5, 0.95]})
    composed = product * Factor(table, name="follow-up")
    own, out = (s.query(1.0, 1.0, [23.0, 24.0, 26.0]) for s in (product, composed))
    assert out["p"][:2].to_numpy() == pytest.approx(own["p"][:2].to_numpy() * [0.4, 0.9])
    assert list(out["in_support"]) == [True, True, False] and "depth outside" in out["reason"][2]
    only = product * Factor(table[:1].drop(columns="depth"), name="follow-up")
    assert only.query(*POINT)["p"][0] == pytest.approx(0.4 * own["p"][0])


@pytest.mark.parametrize("bad, text", [
    ({"p": 1.3}, "0 to 1"), ({"p": 0.5, "sigma": 0.6}, "lower sigma"), ({"p": "often"}, "no such|unreadable"),
    ({"p": pd.DataFrame({"p": [0.1, 0.2], "colour": [1, 2]})}, "colour"),
    ({"p": pd.DataFrame({"p": [0.1, 0.2], "depth": [23.0, 23.0]})}, "once"),
])  # fmt: skip
def test_factors_that_are_none_are_refused(bad, text):
    with pytest.raises(UserError, match=text):
        Factor(**bad)


def test_only_what_is_known_multiplies(product):
    with pytest.raises(UserError, match="str"):
        product * "0.5"


def test_average_is_the_weighted_mean_over_the_support(product):
    footprint = pd.DataFrame({"seeing": [1.0, 1.0, 1.2, 3.0], "depth": [23.0, 24.0, 23.0, 23.0],
                              "weight": [3.0, 1.0, 2.0, 4.0]})  # fmt: skip
    out = product.average(footprint, max_missing=0.6)
    for row in out.itertuples():
        (p, a), (q, b) = (beta_of(product, (row.theta_E, 1.0, depth)) for depth in (23.0, 24.0))
        assert row.p == pytest.approx(0.75 * p + 0.25 * q)
        assert row.share_outside == pytest.approx(0.6)  # seeing 1.2 has no host, 3.0 is off the grid
        half = 1.96 * np.sqrt(0.75**2 * a.var() + 0.25**2 * b.var())
        assert 0.5 * (row.upper - row.lower) == pytest.approx(half, rel=0.08)
    halved = (product * 0.5).average(footprint, max_missing=0.6)
    assert halved["p"].to_numpy() == pytest.approx(out["p"].to_numpy() / 2)


def test_the_error_of_the_threshold_does_not_average_out(product):
    """All cells find less at a higher threshold, so that the error of their mean is the mean of their errors."""
    footprint = pd.DataFrame({"seeing": 1.0, "depth": [23.0, 24.0]})
    table = product.parts(None, None, True)[0].table.set_index(["theta_E", "seeing", "depth"])
    sigma = [table.loc[(theta, 1.0), "sigma_threshold"].mean() for theta in (1.0, 1.5)]
    halves = [[0.5 * (t["upper"] - t["lower"]) for t in (f(product, False), f(product, True))] for f in (
        lambda s, flag: s.average(footprint, threshold_error=flag),
        lambda s, flag: (s * 1.0).average(footprint, threshold_error=flag))]  # fmt: skip
    for counting, total in halves:
        assert total.to_numpy() == pytest.approx(np.hypot(counting, 1.96 * np.array(sigma)).to_numpy(), rel=0.06)
    rate = pd.DataFrame({"theta_E": [1.0, 1.5], "rate": [2.0, 1.0]})
    found = [product.expected_counts(rate, footprint, threshold_error=flag).attrs for flag in (False, True)]
    counting, total = (0.5 * (own["total_upper"] - own["total_lower"]) for own in found)
    assert total == pytest.approx(np.hypot(counting, 1.96 * (2 * sigma[0] + sigma[1])), rel=0.06)
    one, many = (product * 1.0).query(*POINT, threshold_error=True), product.query(*POINT, threshold_error=True)
    for name in ("lower", "upper"):
        assert one[name][0] == pytest.approx(many[name][0], abs=0.012)


def test_a_lopsided_threshold_moves_an_average_as_it_moves_the_cells(product):
    """Scores are normal: the drawn thresholds' quantiles give the completeness at the ends in closed form."""
    low, high = (1.0 + 0.3 * (stats.expon.ppf(share) - np.log(2.0)) for share in (0.025, 0.975))
    down, up = stats.norm.sf(1.0) - stats.norm.sf(high), stats.norm.sf(low) - stats.norm.sf(1.0)
    assert down > 2 * up
    footprint = pd.DataFrame({"seeing": 1.0, "depth": [23.0, 24.0]})
    for selection in (product, product * 1.0):
        counting, total = (selection.average(footprint, "fpr_1e-3", threshold_error=flag) for flag in (False, True))
        for side, expected in (("lower", down), ("upper", up)):
            moved = (total[side] - total["p"]) ** 2 - (counting[side] - counting["p"]) ** 2
            assert np.sqrt(moved.mean()) == pytest.approx(expected, rel=0.15)
    half = (product * 0.5).query(*POINT, threshold="fpr_1e-3", threshold_error=True).iloc[0]
    own = product.query(*POINT, threshold="fpr_1e-3", threshold_error=True).iloc[0]
    assert [half["lower"], half["upper"]] == pytest.approx([own["lower"] / 2, own["upper"] / 2], abs=0.004)
    assert (product.draw(*POINT, threshold="fpr_1e-3", threshold_error=True) >= 0).all()


def test_an_average_does_not_extrapolate(product):
    rows = {"inside": (1.0, 23.0), "no host": (1.2, 23.0), "far": (3.0, 23.0), "unknown": (np.nan, np.nan)}
    table = pd.DataFrame(rows.values(), index=list(rows), columns=["seeing", "depth"]).assign(weight=1.0)
    with pytest.raises(UserError, match="50% of the footprint.*mostly: no host.*10% allowed by max_missing"):
        product.average(table.loc[["inside", "no host"]])
    with pytest.raises(UserError, match="mostly: seeing or depth outside the grid"):
        product.average(table.loc[["inside", "no host", "far", "unknown"]])
    for own in (["far"], ["unknown"]):
        for allowed in (0.1, 1.0):
            with pytest.raises(UserError, match="100% of the footprint or more lies outside the support"):
                product.average(table.loc[own], max_missing=allowed)
    within = table.assign(weight=[19.0, 1.0, 0.0, 0.0])
    assert product.average(within)["share_outside"].to_numpy() == pytest.approx(0.05)
    assert product.average(table, max_missing=0.75)["p"].notna().all()


def test_a_radius_without_support_gets_no_average(product):
    product.cells.loc[(product.cells["theta_E"] == 1.5) & (product.cells["depth"] == 24.0), "sufficient"] = False
    footprint = pd.DataFrame({"seeing": 1.0, "depth": [23.0, 24.0]})
    out = product.average(footprint)
    assert list(out["p"].notna()) == [True, False] and list(out["share_outside"]) == [0.0, 0.5]
    assert product.average(footprint, max_missing=0.5)["p"].notna().all()


def test_means_of_many_small_cells_are_not_drawn_towards_a_half():
    seeing = np.arange(50) * 0.01 + 1.0
    cells = pd.DataFrame({"theta_E": np.repeat([1.0, 1.5], 100), "seeing": np.tile(np.repeat(seeing, 2), 2),
                          "depth": np.tile([23.0, 24.0], 100)})  # fmt: skip
    cells = cells.assign(threshold_name="t", n_eff=60.0, completeness=1 / 60, reason="", sufficient=True,
                         untied_fraction=0.0, lower_95=0.0, upper_95=1.0)  # fmt: skip
    axes = {"theta_E": [1.0, 1.5], "seeing": list(seeing), "depth": [23.0, 24.0]}
    product = SelectionFunction(cells, {
        "axes": axes, "thresholds": {"t": 0.0}, "default": "t", "version": "", "blocked_by": [], "simulated": True,
        "prior_name": "", "realism": {"outcome": "GO"}, "closure": {"closes": None, "verdict": "not tested"},
    })  # fmt: skip
    whole = pd.DataFrame({"seeing": np.repeat(seeing, 2), "depth": np.tile([23.0, 24.0], 50)})
    half = 1.96 * np.sqrt(stats.beta(1.5, 59.5).var() / 100)
    out = product.average(whole).iloc[0]
    counts = product.expected_counts(pd.DataFrame({"theta_E": [1.0], "rate": [3.0]}), whole)
    for scale, row, p in ((1.0, out, out["p"]), (3.0, counts.iloc[0], counts["counts"][0])):
        assert p == pytest.approx(scale / 60)
        assert row["lower"] == pytest.approx(p - scale * half, abs=0.15 * scale * half)
        assert row["upper"] == pytest.approx(p + scale * half, abs=0.15 * scale * half)


def test_randoms_in_the_surveys_columns(product):
    def invert(depth):
        return 25.0 / 10.0 ** (0.8 * (22.5 - depth))  # (5 sigma at that magnitude) ^ -2

    ivar = [*invert(np.array([23.1, 23.9, 24.0])), 0.0]
    randoms = pd.DataFrame({"PSFSIZE_R": [1.0, 1.0, 1.2, 0.0], "PSFDEPTH_R": ivar})
    out = grid_conditions(randoms, product.axes)
    assert list(out["weight"]) == [0.25, 0.25, 0.0, 0.25, 0.25] and out["seeing"].isna().sum() == 1
    with pytest.raises(UserError, match="magnitudes"):
        product.average(pd.DataFrame({"PSFSIZE_R": [1.0, 1.1], "PSFDEPTH_R": [23.4, 24.0]}))
    with pytest.raises(UserError, match="PSFSIZE_R"):
        product.average(pd.DataFrame({"RA": [1.0]}))
    stored = product.average()
    assert stored["share_outside"].to_numpy() == pytest.approx(0.0)


def test_counts_are_rate_times_completeness(product):
    footprint = pd.DataFrame({"seeing": [1.0, 1.0], "depth": [23.0, 24.0], "weight": [3.0, 1.0]})
    rate = pd.DataFrame({"theta_E": [1.0, 1.5], "rate": [0.4, 0.2]})
    out = product.expected_counts(rate, footprint)
    mean = product.average(footprint)["p"].to_numpy()
    assert out["counts"].to_numpy() == pytest.approx(mean * [0.4, 0.2])
    assert out.attrs["total"] == pytest.approx(mean @ [0.4, 0.2])
    assert out.attrs["total_lower"] < out.attrs["total"] < out.attrs["total_upper"]
    loose = product.expected_counts(rate.assign(sigma=0.1), footprint)
    assert (loose["upper"] - loose["lower"] > 1.5 * (out["upper"] - out["lower"])).all()
    wide = rate.assign(theta_E=[1.0, 2.5])
    with pytest.raises(UserError, match="33% of the rate.*theta_E outside"):
        product.expected_counts(wide, footprint)
    allowed = product.expected_counts(wide, footprint, max_missing=0.5)
    assert allowed.attrs["share_missing"] == pytest.approx(1 / 3) and allowed["counts"].iloc[1] == 0.0
    by_column = pd.DataFrame({"theta_E": 1.0, "seeing": 1.0, "depth": [23.0, 24.0], "rate": [1.0, 2.0]})
    p = product.query(1.0, 1.0, [23.0, 24.0])["p"].to_numpy()
    assert product.expected_counts(by_column, footprint).attrs["total"] == pytest.approx(p @ [0.75, 0.5])


def test_a_rate_may_be_a_function_of_the_radius(product):
    footprint = pd.DataFrame({"seeing": 1.0, "depth": [23.0, 24.0]})

    def rate(theta_E):
        return 7.0 * theta_E * np.exp(-((theta_E / 0.4) ** 2))

    inside = -0.56 * np.diff(np.exp(-((np.array([0.75, 1.25, 1.75]) / 0.4) ** 2)))
    out = product.expected_counts(rate, footprint, max_missing=1.0)
    assert out["rate"].sum() == pytest.approx(0.56, rel=1e-6)  # of all radii
    own = out[np.isclose(out["theta_E"], 1.0) | np.isclose(out["theta_E"], 1.5)]
    assert own["rate"].to_numpy() == pytest.approx(inside, rel=1e-6)
    assert out.attrs["total"] == pytest.approx(product.average(footprint)["p"] @ inside)
    assert out.attrs["share_missing"] == pytest.approx(1 - inside.sum() / 0.56)
    with pytest.raises(UserError, match="theta_E outside 0.75 to 1.75"):
        product.expected_counts(rate, footprint)
    assert product.expected_counts(lambda theta_E: 0.1, footprint, max_missing=1.0)["rate"].sum() == pytest.approx(1.0)


@pytest.mark.parametrize("rate, text", [
    (make_rate, "fails as a function"), (lambda a, b: a, "fails as a function"), (lambda a: a[:3], "fails as a func"),
    (lambda a: "many", "fails as a function"), (lambda a: -a, "0 or more"), (lambda a: a * np.nan, "0 or more"),
    (5.0, "float is none"), ([1.0], "list is none"), (pd.DataFrame({"theta_E": [1.0]}), "column rate"),
])  # fmt: skip
def test_rates_that_are_none_are_refused(product, rate, text):
    with pytest.raises(UserError, match=text):
        product.expected_counts(rate)


@pytest.fixture
def real_root(root, monkeypatch):
    monkeypatch.setenv("LENSAUDIT_ROOT", str(root))  # for the frozen priors


def test_number_of_parents_against_another_integration(real_root):
    """Angular diameter distances of astropy, Simpson's rule over sigma and z_lens; sources and visibility in common."""
    prior = load_prior("collett")
    cosmology = FlatLambdaCDM(70.0, 0.3)
    sigma, z = np.linspace(120.0, 450.0, 67), np.linspace(0.05, 1.2, 47)
    x = sigma / 161.0
    vdf = 8e-3 * 0.7**3 * x**2.32 * np.exp(-(x**2.67)) * 2.67 / math.gamma(2.32 / 2.67) / sigma
    z_source, sources = source_density(prior)
    total = np.zeros((len(sigma), len(z)))
    for number, redshift in zip(sources, z_source, strict=True):
        front = z < redshift
        ratio = np.zeros(len(z))
        d_ls = cosmology.angular_diameter_distance(z[front], redshift)
        ratio[front] = d_ls / cosmology.angular_diameter_distance(redshift)
        theta = 4 * np.pi * (sigma[:, None] / 299792.458) ** 2 * ratio
        wide = (theta > 0.4 / 206265) & (theta < 3.2 / 206265)
        total += number * np.pi * 1.2**2 * theta**2 * wide
    volume = cosmology.differential_comoving_volume(z).value
    integrand = vdf[:, None] * volume * visible_fraction(sigma[:, None], z, prior) * total
    expected = integrate.simpson(integrate.simpson(integrand, x=z, axis=1), x=sigma) * (np.pi / 180) ** 2
    assert count_parents(prior) == pytest.approx(expected, rel=0.02)


def test_rate_of_round_lenses_without_cuts_is_the_area_of_the_ring(product, real_root):
    prior = load_prior("collett")
    round_ones = prior | {"deflector": prior["deflector"] | {"axis_ratio": [0.0, 0.0], "shear": 0.0}}
    product.description["cuts"] = {"min_mu": 0.0, "min_arc_snr_true": 0.0}
    rate = make_rate(product, round_ones, n=6000, seed=3)
    column = rate[(rate["seeing"] == 1.0) & (rate["depth"] == 23.0)]
    share = column["rate"].sum() / count_parents(round_ones)
    assert share == pytest.approx(1 / 1.2**2, abs=4 * np.sqrt(0.7 * 0.3 / 6000))  # two images inside theta_E, SIS
    product.description["cuts"] = {"min_mu": 3.0, "min_arc_snr_true": 5.0}
    rate = make_rate(product, "collett", n=6000, seed=3)
    deep = rate.groupby("depth")["rate"].sum()
    assert 0 < deep[23.0] < deep[24.0] < count_parents(prior)
    with pytest.raises(UserError, match="vdf"):
        make_rate(product, "flat")
