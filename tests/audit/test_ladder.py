"""The ladder: shared random numbers, a null rung, a detector of one ingredient, the published light, weights."""

import dataclasses
import importlib.util

import numpy as np
import pandas as pd
import pytest
from astropy.modeling.models import Gaussian2D
from scipy.stats import ttest_rel

from lensaudit import photometry
from lensaudit.artifacts import UserError, load_dataset
from lensaudit.audit import campaign, ladder
from lensaudit.config import CompletenessConfig, Config, InjectionConfig, LadderConfig
from lensaudit.constants import BANDS, PIXEL_SCALE
from lensaudit.figures.ladder import plot_ladder
from lensaudit.injection import bank, inject, rungs
from lensaudit.injection import light as light_module
from lensaudit.injection.noise import list_gains
from lensaudit.injection.population import load_prior, theta_to_sigma

CONFIG = Config(device="cpu", seed=3, completeness=CompletenessConfig(seeing=(1.0, 1.3), depth=(24.0, 25.0)),
                ladder=LadderConfig(n_injections=200, n_bootstrap=200))  # fmt: skip
PRIORS = tuple(load_prior(name) for name in ladder.ENDS)
POINTS = {"score 0.3": 0.0, "fpr_1e-2": 0.4, "fpr_1e-4": None}
N_HOSTS = 1200


@pytest.fixture(scope="module")
def hosts():
    generator = np.random.default_rng(1)
    n = N_HOSTS
    table = pd.DataFrame({
        "host_index": np.arange(n), "galaxy_id": [f"g{i}" for i in range(n)],
        "brickname": [f"b{i % 50}" for i in range(n)],
        "z_phot": generator.uniform(0.1, 0.7, n), "sigma_v": generator.uniform(130, 380, n), "q_light": 0.7,
        "phi_light": generator.uniform(0, np.pi, n), "in_deployment": True, "in_deflector": np.arange(n) % 2 == 0,
        "footprint_weight": 1.0, "depth_r": generator.uniform(23.5, 25.5, n), "mag_r": 19.0,
    })  # fmt: skip
    table["deflector_weight"] = table["in_deflector"].astype(float)
    table["deployment_weight"], seeing = 1.0, generator.uniform(0.9, 1.4, n)
    for band, scale in zip(BANDS, (1.12, 1.0, 0.9), strict=True):
        table[f"psfsize_{band}"] = scale * seeing * generator.uniform(0.97, 1.03, n) if band != "r" else seeing
        table[f"psfdepth_{band}"] = photometry.depth_to_ivar(table["depth_r"])
        table[f"nobs_{band}"], table[f"mw_transmission_{band}"] = 4, 0.9
    return table


@pytest.fixture(scope="module")
def plan(hosts):
    return rungs.plan_rungs(hosts, CONFIG.completeness, 200, CONFIG.seed, PRIORS[1])


class Detector:
    id = "fake"

    def score(self, images, ids=None):
        return images.sum(axis=(1, 2, 3))


def draw(plan, hosts, *names):
    return rungs.draw_rung(plan, hosts, frozenset(names), PRIORS, CONFIG, CONFIG.seed)


def test_ingredients_share_random_numbers_and_change_nothing_else(hosts, plan):
    part = plan.head(30)
    old = draw(part, hosts)
    assert old.equals(draw(part.iloc[::-1].reset_index(drop=True), hosts))
    changed = {
        "colours": {"mag_source_g", "mag_source_z", "mag_lensed_g", "mag_lensed_z"}, "index": {"source_n"},
        "radius": {"source_R"}, "axis_ratio": {"source_q"}, "clumps": {"n_clumps", "clump_fraction"},
        "position": {"source_x", "source_y"}, "mass": {"q", "phi", "gamma1", "gamma2"},
    }  # fmt: skip
    measured = {"mu", "arc_snr_true", "multiplicity", "mag_lensed_g", "mag_lensed_r", "mag_lensed_z"}
    for name, columns in changed.items():
        new = draw(part, hosts, name)
        differs = {c for c in old if not old[c].equals(new[c])}
        assert columns <= differs and differs - columns <= measured, name
    # The same quantile of either prior: U(0.5, 2) against U(0.85, 1.15) in n, angles alike, areas alike in position.
    new = draw(part, hosts, "index", "position")
    assert np.allclose((old["source_n"] - 0.5) / 1.5, (new["source_n"] - 0.85) / 0.3)
    angles = [np.arctan2(t["source_y"], t["source_x"]) for t in (old, new)]
    assert np.allclose(*angles)
    area = [(t["source_x"] ** 2 + t["source_y"] ** 2) / t["theta_E"] ** 2 for t in (old, new)]
    assert np.allclose((area[0] - 0.1**2) / (0.4**2 - 0.1**2), area[1] / 1.2**2)


def test_hosts_are_matched_in_conditions_and_tied_in_velocity_dispersion(hosts, plan):
    anchor = hosts.iloc[plan["anchor"]]
    for kind in rungs.HOSTS.values():
        own = hosts.iloc[plan[f"row_{kind}"]]
        for name, spread in (("psfsize_r", 0.5), ("depth_r", 2.0)):
            difference = np.abs(own[name].to_numpy() - anchor[name].to_numpy()).mean()
            assert difference < 0.5 * spread / 3, (kind, name)  # a third of the spread without any matching
        assert own["in_deflector"].all() == kind.startswith("deflectors")
    tied, free = (hosts.iloc[plan[f"row_{k}"]]["sigma_v"].to_numpy() for k in ("deflectors_tied", "deflectors"))
    needed = np.log(theta_to_sigma(plan["theta_E"], 0.4, 2.0, PRIORS[1]))  # what a source at z = 2 asks for
    assert np.corrcoef(np.log(tied), needed)[0, 1] > 0.5
    assert abs(np.corrcoef(np.log(free), needed)[0, 1]) < 0.25
    # Some source redshift makes the arc with the dispersion of a tied host; of a free one, often none does.
    own, z = hosts.iloc[plan["row_deflectors_tied"]], np.arange(0.8, 5.0, 0.1)
    asked = theta_to_sigma(plan["theta_E"].to_numpy()[:, None], own["z_phot"].to_numpy()[:, None], z, PRIORS[1])
    off = np.abs(np.log10(asked / own["sigma_v"].to_numpy()[:, None])).min(axis=1)
    assert ((off < 3 * 0.08 + 0.01) | plan["untied_deflectors_tied"].to_numpy()).all()
    assert plan["untied_deflectors_tied"].mean() < 0.3 and plan["untied_deflectors"].all()


def test_cuts_hold_and_the_source_fits_the_deflector(hosts, plan):
    table = draw(plan.head(40), hosts, *rungs.DRAWN)
    assert len(table) > 30 and (table["multiplicity"] >= 2).all()
    assert (table["mu"] > CONFIG.injection.min_mu).all()
    assert (table["arc_snr_true"] > CONFIG.injection.min_arc_snr_true).all()
    own = inject.host_rows(table, hosts)
    tied = ~table["untied"]
    assert (np.abs(np.log10(own["sigma_v"] / table["sigma_v"]))[tied] < 0.3).all()


def test_weights_turn_the_plan_into_the_grid_and_into_the_population(hosts):
    plan = rungs.plan_rungs(hosts, CONFIG.completeness, 500, 1, PRIORS[1])
    assert plan[["flat_weight", "population_weight"]].max(axis=None) <= 2
    anchor = hosts.iloc[plan["anchor"]]
    # Cells are 0.375 to 3.125 arcsec wide in all: mean 1.75, standard deviation 2.75 / sqrt(12).
    w = plan["flat_weight"] / plan["flat_weight"].sum()
    error = 2.75 / np.sqrt(12) / np.sqrt(1 / (w**2).sum())
    assert abs((w * plan["theta_E"]).sum() - 1.75) < 4 * error
    shares = w.groupby((anchor["psfsize_r"] > 1.15).to_numpy()).sum()
    assert np.allclose(shares, 0.5, atol=4 * 0.5 * np.sqrt((w**2).sum()))
    w = plan["population_weight"] / plan["population_weight"].sum()
    deflectors = hosts[hosts["in_deflector"]]
    inside = deflectors["psfsize_r"].between(0.85, 1.45) & deflectors["depth_r"].between(23.5, 25.5)
    share = (w * (anchor["depth_r"] > 24.5).to_numpy()).sum()
    assert abs(share - (deflectors["depth_r"] > 24.5)[inside].mean()) < 4 * 0.5 * np.sqrt((w**2).sum())


def test_published_light_has_the_widths_of_a_gaussian_and_no_noise(hosts):
    own = hosts.iloc[:3]
    table = pd.DataFrame({
        "injection_id": [1, 2, 3], "host_index": own["host_index"], "theta_E": 0.0, "q": 1.0, "phi": 0.0, "gamma1": 0.0,
        "gamma2": 0.0, "source_x": 0.0, "source_y": 0.0, "source_R": 0.006, "source_n": 1.0, "source_q": 1.0,
        "source_phi": 0.0, "mag_source_g": 20.0, "mag_source_r": 20.0, "mag_source_z": 20.0, "n_clumps": 0,
        "psf_beta": 2.5,
    })  # fmt: skip
    light = light_module.read_light(PRIORS[0], own)
    images = np.full((3, 3, 65, 65), 1.0, dtype=np.float32)
    out, arcs = inject.inject(table, hosts, images, CONFIG, 1, **light)
    assert np.array_equal(out, images + arcs)
    y, x = np.mgrid[:65, :65] - 32.0
    for row in range(3):
        for band, scale in enumerate((1.05, 1.0, 0.94)):
            sigma = own["psfsize_r"].iloc[row] * scale / np.sqrt(8 * np.log(2)) / PIXEL_SCALE
            expected = Gaussian2D(0.9 * 10.0 / (2 * np.pi * sigma**2), 0, 0, sigma, sigma)(x, y)
            assert np.abs(arcs[row, band] - expected).max() < 2e-3 * expected.max()
    assert light_module.read_light(PRIORS[1], own) == {}
    with pytest.raises(UserError, match="light.psf"):
        light_module.read_light({"name": "x", "light": {"psf": "airy"}}, own)
    with pytest.raises(UserError, match="injection 2: psfsize"):
        inject.inject(table, hosts, images, CONFIG, 1, psfsize=np.array([[1.0] * 3, [np.nan] * 3, [1.0] * 3]))


def test_a_campaign_obeys_the_light_of_its_prior(hosts, plan, tmp_path, monkeypatch):
    seen = []

    def note(table, own, images, config, seed, **variants):
        seen.append(variants)
        return images, images

    monkeypatch.setattr(campaign, "inject", note)
    table, boxes = draw(plan.head(6), hosts), np.zeros((N_HOSTS, 3, 65, 65), np.float32)
    config = dataclasses.replace(CONFIG, injection=InjectionConfig(prior="published_2026"))
    done = campaign.run_injections(table, hosts, boxes, Detector(), config, tmp_path, block_rows=4, measure=False)
    own = inject.host_rows(table, hosts)
    widths = np.concatenate([v["psfsize"] for v in seen])
    assert np.allclose(np.sort(widths[:, 2]), np.sort(0.94 * own["psfsize_r"]))
    assert all(v["psf_mode"] == "gaussian_psfsize" and v["noise"] is False for v in seen)
    assert "arc_snr" not in done and len(done) == 6
    seen.clear()
    campaign.run_injections(table, hosts, boxes, Detector(), config, tmp_path, measure=False, noise=True)
    assert seen[0]["noise"] is True


def test_uncorrelated_noise_is_white(hosts, plan):
    table = draw(plan.head(4), hosts).assign(mag_source_r=18.0)
    images = np.zeros((4, 3, 65, 65), np.float32) + 1.0
    gain = list_gains(inject.host_rows(table, hosts))[:, 1]
    variance, neighbour = {}, {}
    for correlated in (True, False):
        out, arcs = inject.inject(table, hosts, images, CONFIG, 1, correlated=correlated)
        bright = arcs[:, 1] > 0.02 * arcs[:, 1].max(axis=(1, 2), keepdims=True)
        z = (out - images - arcs)[:, 1] / np.sqrt(np.maximum(arcs[:, 1], 1e-12) / gain[:, None, None])
        pairs = bright[:, :, 1:] & bright[:, :, :-1]
        variance[correlated], neighbour[correlated] = z[bright].var(), (z[:, :, 1:] * z[:, :, :-1])[pairs].mean()
    error = 4 * np.sqrt(2 / bright.sum())
    assert abs(variance[False] - 1) < error and abs(neighbour[False]) < error
    assert abs(variance[True] - 0.80) < error + 0.05 and neighbour[True] > 0.02


def make_scored(score, names=("colours", "radius", "clumps"), n=200):
    """Sets of a detector that is a function of the fiducial ingredients and the injection's own number."""
    generator = np.random.default_rng(4)
    base = pd.DataFrame({
        "injection_id": np.arange(n), "host_index": np.arange(n), "brickname": [f"b{i}" for i in range(n)],
        "theta_E": generator.uniform(0.4, 3, n), "psfsize_r": generator.uniform(0.9, 1.4, n),
        "depth_r": generator.uniform(23.5, 25.5, n), "arc_snr_true": generator.uniform(1, 30, n), "mu": 4.0,
        "flat_weight": 1.0, "population_weight": 1.0,
    })  # fmt: skip
    u = generator.random(n)
    wanted = (*names, *ladder.ENDS)
    used = [rung for rung in ladder.list_rungs() if not rung.added and rung.name.split("/")[0] in wanted]
    return pd.concat([base.assign(run=r.name, logit=score(r.fiducial, u)) for r in used], ignore_index=True)


def make_lenses(n=60):
    generator = np.random.default_rng(8)
    return pd.DataFrame({"galaxy_id": range(n), "theta_E": generator.uniform(0.8, 2, n), "logit": 1.0,
                         "psfsize_r": generator.uniform(1.0, 1.3, n), "depth_r": generator.uniform(24, 25, n),
                         "arc_snr_true": generator.uniform(5, 25, n)})  # fmt: skip


def test_one_ingredient_takes_all_of_the_gap():
    scored = make_scored(lambda fiducial, u: u - 0.3 if "colours" in fiducial else u - 0.9)
    table = ladder.tabulate_ladder(scored, make_lenses(), POINTS, CONFIG)
    assert set(table["weighting"].dropna()) == set(ladder.WEIGHTINGS)
    path = table[table["kind"] == "path"].set_index("rung")
    ends = table[table["kind"] == "end"].set_index(["rung", "weighting", "threshold_name"])["completeness"]
    for _, row in path.loc["colours"].iterrows():
        where = (row["weighting"], row["threshold_name"])
        gap = ends["collett", *where] - ends["published_2026", *where]
        assert gap > 0.2 and row["first_in"] == gap == row["last_out"]
        assert row["first_in_lower"] < gap < row["first_in_upper"]
    for name in ("radius", "clumps"):
        columns = [f"{c}{s}" for c in ("first_in", "last_out") for s in ("", "_lower", "_upper")]
        assert (path.loc[name, columns] == 0).all(axis=None)


def test_intervals_know_the_number_of_bricks_and_pairs():
    p = 0.3
    scored = make_scored(lambda fiducial, u: p - u if "radius" in fiducial else p - 0.02 - u, n=1500)
    table = ladder.tabulate_ladder(scored, make_lenses(), {"a": 0.0}, CONFIG).query("weighting == 'flat'")
    end = table[table["rung"] == "collett"].iloc[0]
    assert end["lower"] < p < end["upper"]
    assert (end["upper"] - end["lower"]) / (2 * 1.96 * np.sqrt(p * (1 - p) / 1500)) == pytest.approx(1, abs=0.2)
    # Shared numbers: the difference is that of 2 per cent of the rows, far sharper than two independent sets.
    row = table[(table["rung"] == "radius") & (table["kind"] == "path")].iloc[0]
    assert 0 < row["first_in_lower"] < 0.02 < row["first_in_upper"] < 0.04


def test_a_rung_that_found_no_difference_does_not_claim_a_sharp_zero():
    scored = make_scored(lambda fiducial, u: u - 0.5 + (1e-9 if "clumps" in fiducial else 0.0), n=300)
    table = ladder.tabulate_ladder(scored, make_lenses(), {"a": 0.0}, CONFIG).query("weighting == 'flat'")
    row = table[(table["rung"] == "clumps") & (table["kind"] == "path")].iloc[0]
    # The largest chance that leaves no event in 300 at 95 per cent: 1 - 0.05^(1/300).
    assert row["first_in"] == 0 and row["first_in_upper"] == pytest.approx(1 - 0.05 ** (1 / 300), rel=0.01)
    same = table[(table["rung"] == "radius") & (table["kind"] == "path")].iloc[0]
    assert same["first_in_lower"] == same["first_in_upper"] == 0


def test_lens_weights_find_a_completeness_that_depends_on_the_radius():
    scored = make_scored(lambda fiducial, u: u, n=2000)
    scored["logit"] = np.where(scored["theta_E"] > 1.4, 1.0, -1.0)
    lenses = make_lenses(200)
    table = ladder.tabulate_ladder(scored, lenses, {"a": 0.0}, CONFIG)
    found = table[(table["rung"] == "collett")].set_index("weighting")["completeness"]
    assert found["flat"] == pytest.approx(1.6 / 2.6, abs=0.04)
    assert found["lenses"] == pytest.approx((lenses["theta_E"] > 1.4).mean(), abs=0.08)
    few = ladder.tabulate_ladder(scored, lenses, {"a": 0.0}, dataclasses.replace(CONFIG, ladder=LadderConfig(
        n_bootstrap=20, min_n_eff=1e6)))  # fmt: skip
    assert few[few["rung"] == "collett"]["completeness"].isna().all()
    assert set(few["status"]) == {"too few", "not run", "run", "published"}


def test_what_was_not_run_says_so_and_an_end_that_lacks_is_refused():
    scored = make_scored(lambda fiducial, u: u - 0.5)
    table = ladder.tabulate_ladder(scored, make_lenses(), POINTS, CONFIG)
    assert set(table.loc[table["status"] == "not run", "rung"]) == {*ladder.RETRAINED, "bank"}
    known = pd.DataFrame({"rung": ["clip_20"], "weighting": "flat", "threshold_name": "score 0.3", "first_in": 0.02,
                          "first_in_lower": -0.01, "first_in_upper": 0.05})  # fmt: skip
    table = ladder.tabulate_ladder(scored, make_lenses(), POINTS, CONFIG, known)
    assert set(table.loc[table["status"] == "not run", "rung"]) == {"seeds", "bank"}
    fig = plot_ladder(table, points=("score 0.3", "fpr_1e-2", "fpr_1e-4"))  # nobody set a threshold at the last
    assert len(fig.axes) == 6
    texts = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert texts[0] == "published set-up" and "source colours" in texts and "clip 20, retrained" in texts
    assert "real galaxies as sources (no bank given)" in fig.axes[2].texts[0].get_text()
    published = table[table["kind"] == "published"].set_index(["rung", "threshold_name"])["completeness"]
    assert (published["completeness", "score_0.3"], published["recall", "score_0.3"]) == (0.0518, 0.893)
    fig = plot_ladder(table.replace({"threshold_name": {"score 0.3": "score_0.3"}}))
    lines = {line.get_label(): line.get_xdata()[0] for line in fig.axes[2].lines}
    assert lines["published completeness, Balaji & Johnson 2026"] == 0.0518
    with pytest.raises(UserError, match="collett"):
        ladder.tabulate_ladder(scored[scored["run"] != "collett"], make_lenses(), POINTS, CONFIG)


def test_a_run_of_every_kind_of_set(hosts, tmp_path):
    config = dataclasses.replace(CONFIG, ladder=LadderConfig(n_injections=6, ends_factor=2))
    boxes = np.random.default_rng(0).normal(size=(N_HOSTS, 3, 65, 65)).astype(np.float32)
    names = (*ladder.ENDS, *(f"{name}/last" for name in (*ladder.ADDED, "psf_shape", "psf_band", "arc_noise")))
    y, x = np.mgrid[:61, :61] - 30.0
    real = bank.make_bank([np.exp(-np.hypot(x / 8, y / 4)), np.exp(-np.hypot(x, y - x / 2) / 5)], ["count/s"] * 2,
                          [0.03] * 2).images  # fmt: skip
    wanted = [rung for rung in ladder.list_rungs(real) if rung.name in names]
    assert not any(rung.added == "bank" for rung in ladder.list_rungs())
    scored = ladder.run_ladder(hosts, boxes, Detector(), config, tmp_path, wanted, bank=real)
    whole = scored[scored["run"].str.endswith("/whole")]
    scored = scored.drop(whole.index)
    assert set(scored["run"]) == set(names)
    for end in ladder.ENDS:  # the pairs are rows of the larger set
        large = whole[whole["run"] == f"{end}/whole"].set_index("injection_id")
        small = scored[scored["run"] == end].set_index("injection_id")
        assert len(large) > len(small) > 0 and np.array_equal(large.loc[small.index, "logit"], small["logit"])
    logits = scored.pivot(index="injection_id", columns="run", values="logit")
    fiducial = logits.pop("collett").dropna()
    assert all((logits[name].loc[fiducial.index] != fiducial).any() for name in logits)
    again = ladder.run_ladder(hosts, boxes, Detector(), config, tmp_path, wanted[::-1], bank=real)
    both = (t.sort_values(["run", "injection_id"], ignore_index=True) for t in (pd.concat([scored, whole]), again))
    pd.testing.assert_frame_equal(*both)


def test_a_real_galaxy_keeps_the_flux_of_the_disc_it_replaces(hosts, plan):
    """Without a lens: one plain disc as the image of itself gives the same light, and any image the same sum."""
    table = draw(plan.head(4), hosts).assign(theta_E=0.0, gamma1=0.0, gamma2=0.0, source_x=0.0, source_y=0.0,
                                             source_R=0.4, source_n=1.0, source_q=1.0, mag_source_r=20.0)  # fmt: skip
    y, x = np.mgrid[:201, :201] - 100.0
    disc, two = np.exp(-np.hypot(x, y) / 9), np.exp(-np.hypot(x - 9, y) / 7) + np.exp(-np.hypot(x + 9, y) / 7)
    images = bank.make_bank([disc, two], ["count/s"] * 2, [0.03] * 2, resolution=15.0).images
    rung = ladder.Rung("bank/first", added="bank")
    filled = ladder.add_structure(rung, table, CONFIG.seed, images)
    assert set(filled["bank_index"]) <= {0, 1} and ladder.choose_light(rung, table, hosts, PRIORS[0], images)["bank"]
    plain, _ = inject.render_table(table, hosts, CONFIG, 1)
    same, _ = inject.render_table(filled.assign(bank_index=0), hosts, CONFIG, 1, bank=images)
    other, _ = inject.render_table(filled.assign(bank_index=1), hosts, CONFIG, 1, bank=images)
    assert np.abs(same - plain)[:, 1].max() < 0.02 * plain[:, 1].max()
    assert np.allclose(other.sum(axis=(2, 3)), plain.sum(axis=(2, 3)), rtol=0.02)
    assert np.abs(other - plain)[:, 1].max() > 0.05 * plain[:, 1].max()


def test_a_bank_is_found_under_the_data_root_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(ladder, "read_catalogue", lambda path, unit: type("Bank", (), {"images": (path, unit)}))
    config = dataclasses.replace(CONFIG, data_root=str(tmp_path))
    assert ladder.find_bank(CONFIG) is None and ladder.find_bank(config) is None
    path = tmp_path / load_dataset("hst_cosmos_stamps")["files"][0]["path"]
    path.parent.mkdir(parents=True)
    path.touch()
    assert ladder.find_bank(config) == (path, "count/s")


def test_retrained_rungs_are_paired_by_seed(root):
    spec = importlib.util.spec_from_file_location("ladder_retrained", root / "benchmarks" / "ladder_retrained.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    seeds, gain = np.array([1, 2, 3]), np.array([0.04, 0.06, 0.05])
    base = np.array([0.2, 0.5, 0.8])  # what seeds scatter is far more than what the clip changes
    levels = pd.concat([
        pd.DataFrame({"clip": clip, "seed": seeds, "rung": end, "weighting": "flat", "threshold_name": "score_0.3",
                      "completeness": base + (gain if clip == 20 else 0.0) * (1 if end == "collett" else -1)})
        for clip in (10.0, 20.0) for end in ladder.ENDS
    ])  # fmt: skip
    rows = benchmark.summarise(levels).set_index("rung")
    expected = ttest_rel(base + gain, base).confidence_interval(0.95)
    assert rows.loc["clip_20", ["last_out", "last_out_lower", "last_out_upper"]].to_list() == pytest.approx(
        [0.05, expected.low, expected.high])  # fmt: skip
    assert rows.loc["clip_20", "first_in"] == pytest.approx(-0.05)
    assert rows.loc["seeds", ["first_in_lower", "first_in_upper"]].to_list() == pytest.approx([-0.3, 0.3])


def test_stored_trainings_are_those_of_their_profile(tmp_path, monkeypatch):
    monkeypatch.setenv("LENSAUDIT_ROOT", str(tmp_path))
    assert ladder.read_retrained("demo") is None
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    table = pd.DataFrame({"rung": ["clip_20"], "first_in": [0.1], "profile": ["demo"], "manifest": ["0"]})
    table.to_csv(tmp_path / "benchmarks" / "results" / "ladder_retrained.csv", index=False)
    assert list(ladder.read_retrained("demo")) == ["rung", "first_in"] and ladder.read_retrained("dr10") is None
