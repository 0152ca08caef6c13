"""Injections: determinism, nothing added where nothing is, the oracle, the right noise, hosts and grid."""

import numpy as np
import pandas as pd
import pytest
import torch

from lensaudit import photometry as ph
from lensaudit.artifacts import UserError
from lensaudit.config import CompletenessConfig, Config, InjectionConfig
from lensaudit.injection import cells, controls, inject, priors
from lensaudit.injection import hosts as host_module
from lensaudit.injection.forecast import forecast_arcs
from lensaudit.injection.noise import draw_noise, list_gains

BANDS = ("g", "r", "z")
CONFIG = Config(device="cpu")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_samples(n=1200, seed=5):
    """Galaxies with a red and a blue sequence and conditions over the whole grid."""
    rng = np.random.default_rng(seed)
    z = np.clip(rng.gamma(6, 0.07, n), 0.05, 0.9)
    red = rng.random(n) < 0.6
    g_r = np.where(red, np.interp(z, [0.05, 0.4, 0.9], [0.8, 1.6, 1.75]), np.interp(z, [0.05, 0.4], [0.45, 0.8]))
    r_z = np.where(red, np.interp(z, [0.05, 0.4, 0.75], [0.45, 0.8, 1.6]), np.interp(z, [0.05, 0.9], [0.3, 0.8]))
    mag_z = np.clip(20 - rng.exponential(1.2, n), 15, 20)
    psfsize, depth = rng.uniform(0.84, 1.86, n), rng.uniform(22.3, 25.7, n)
    table = pd.DataFrame({
        "galaxy_id": [f"10000-{i}-1" for i in range(n)], "brickname": [f"b{i % 40:03d}" for i in range(n)], "label": 0,
        "split": "test", "type": np.where(red, "SER", "REX"), "mag_z": mag_z, "mag_r": mag_z + r_z,
        "mag_g": mag_z + r_z + g_r, "z_phot": z, "footprint_weight": 1.0, "depth_r": depth,
        "inclusion_probability": rng.uniform(0.1, 1.0, n), "shape_r": rng.uniform(0.5, 2.0, n),
        "shape_e1": rng.normal(0, 0.1, n), "shape_e2": rng.normal(0, 0.1, n),
    })  # fmt: skip
    for band, offset, scale in (("g", 0.5, 1.1), ("r", 0.0, 1.0), ("z", -0.9, 0.95)):
        table[f"psfsize_{band}"], table[f"psfdepth_{band}"] = scale * psfsize, ph.depth_to_ivar(depth + offset)
        table[f"nobs_{band}"], table[f"mw_transmission_{band}"] = 4, 0.9
    stamps = pd.DataFrame({"galaxy_id": table["galaxy_id"], "quality_ok": True,
                           "cutout_path": [f"stamps/shard-0000.npy#{i}" for i in range(n)]})  # fmt: skip
    return table, stamps


@pytest.fixture(scope="module")
def hosts():
    return host_module.make_hosts(*make_samples())


@pytest.fixture(scope="module")
def table(hosts):
    return priors.draw_closure(hosts, 48, 9, config=CONFIG)


def boxes(table, seed=0):
    shape = (len(table), 3, 65, 65)
    return np.random.default_rng(seed).normal(0, 0.003, shape).astype(np.float32)


def test_rows_do_not_depend_on_batch_or_order(hosts, table):
    images = boxes(table)
    whole, arcs = inject.inject(table, hosts, images, CONFIG, 9)
    for size in (1, 7, 64):
        small = Config(device="cpu", injection=InjectionConfig(batch_size=size))
        again, _ = inject.inject(table, hosts, images, small, 9)
        assert np.array_equal(whole, again)
    torch.set_num_threads(2)
    threaded, _ = inject.inject(table, hosts, images, CONFIG, 9)
    torch.set_num_threads(1)
    assert np.array_equal(whole, threaded)
    order = np.random.default_rng(1).permutation(len(table))
    shuffled, _ = inject.inject(table.iloc[order], hosts, images[order], CONFIG, 9)
    assert np.array_equal(whole[order], shuffled)
    other, _ = inject.inject(table, hosts, images, CONFIG, 10)
    assert not np.array_equal(whole, other)
    assert np.isfinite(arcs).all() and (arcs.sum((1, 2, 3)) > 0).all()


def test_draws_do_not_depend_on_blocks(hosts, table):
    parts = [priors.draw_closure(hosts, 12, 9, config=CONFIG, first_id=first) for first in (0, 12, 24, 36)]
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), table)


def test_zero_flux_returns_the_hosts_bits(hosts, table):
    dark = table.assign(**{f"mag_source_{b}": np.inf for b in BANDS})
    images = boxes(table)
    images[0, 0, 0, 0], images[1, 1, 1, 1] = np.nan, -0.0
    out, arcs = inject.inject(dark, hosts, images, CONFIG, 9)
    assert out.tobytes() == images.tobytes()
    assert not arcs.any()


def test_table_describes_its_arcs(hosts, table):
    arcs, flux = inject.render_table(table, hosts, CONFIG, 9)
    own = inject.host_rows(table, hosts)
    mag = ph.flux_to_mag(flux[:, 1] / own["mw_transmission_r"])
    assert np.abs(mag - table["mag_lensed_r"]).max() < 0.05
    sigma = ph.depth_to_sigma(own["psfdepth_r"], own["psfsize_r"])
    snr = np.sqrt((arcs[:, 1].astype(float) ** 2).sum((1, 2))) / sigma
    assert np.abs(snr / table["arc_snr_true"] - 1).max() < 0.05
    assert (table["mu"] > 3).all() and (table["arc_snr_true"] > 5).all() and (table["multiplicity"] >= 2).all()
    sources = {b: ph.mag_to_flux(table[f"mag_source_{b}"]) * 0.9 for b in BANDS}
    assert np.allclose(flux / np.stack(list(sources.values()), 1), table["mu"].to_numpy()[:, None], rtol=0.25)


def test_theta_follows_from_sigma_and_host(hosts, table):
    own = inject.host_rows(table, hosts)
    assert (own["in_deflector"]).all() and not table["untied"].any()
    assert np.abs(np.log10(own["sigma_v"] / table["sigma_v"])).max() < 0.26
    assert np.abs((own["z_phot"] - table["z_lens"]) / (1 + table["z_lens"])).max() < 0.12
    # 4 pi (sigma/c)^2 D_ls/D_s: 250 km/s at 0.6 is 1.08 arcsec.
    assert 1.08 * (table["sigma_v"].max() / 250) ** 2 / 0.6 > table["theta_E"].max()


def test_predicted_snr_is_within_its_slack(hosts):
    """Without the precut on S/N: few accepted arcs are brighter than SLACK times the prediction."""
    loose = Config(device="cpu", injection=InjectionConfig(min_arc_snr_true=2.0))
    drawn = priors.draw_closure(hosts, 150, 3, config=loose)
    own = inject.host_rows(drawn, hosts)
    point = ph.mag_to_flux(drawn["mag_source_r"]) * 0.9 * np.sqrt(own["psfdepth_r"])
    predicted = forecast_arcs(drawn, own["psfsize_r"].to_numpy(), point.to_numpy())["snr"]
    bright = drawn["arc_snr_true"] > 5
    slack = np.where(drawn["n_clumps"] > 0, priors.ROUGH_SLACK, priors.SLACK)
    assert (predicted * slack < 5)[bright].mean() < 0.02


def test_shot_noise_is_the_arcs_own(hosts, table):
    """Variance = flux / gain through the Lanczos kernel, and nothing where there is no arc."""
    one = table.iloc[[int(table["arc_snr_true"].argmax())]]
    bright = one.assign(**{f"mag_source_{b}": one[f"mag_source_{b}"] - 5 for b in BANDS})
    many = pd.concat([bright] * 300).assign(injection_id=np.arange(300))
    zero = np.full((300, 3, 65, 65), 1e-37, np.float32)  # exact zeros are pixels without data
    smooth = many.assign(n_clumps=0)
    out, arcs = inject.inject(smooth, hosts, zero, CONFIG, 9)
    noise = (out - arcs)[:, 1].astype(float)
    own = inject.host_rows(bright, hosts)
    expected = 0.80 * arcs[0, 1] / list_gains(own)[0, 1]
    where = arcs[0, 1] > 0.3 * arcs[0, 1].max()
    # The kernel spreads noise from brighter to fainter pixels; summed over the arc it keeps its variance.
    assert noise.var(axis=0)[where].sum() / expected[where].sum() == pytest.approx(1.0, abs=0.12)
    loud, _ = inject.inject(smooth, hosts, zero, CONFIG, 9, gain_override=150.0)
    ratio = (loud - arcs)[:, 1].var() / noise.var()
    assert ratio == pytest.approx(list_gains(own)[0, 1] / 150.0, rel=0.02)
    silent, same = inject.inject(smooth[:3], hosts, zero[:3], CONFIG, 9, noise=False)
    assert np.array_equal(silent, same)


def test_drawn_noise_is_a_coadds():
    noise = draw_noise(np.arange(40), np.ones((40, 3, 65, 65)), 3)[..., 8:-8, 8:-8].astype(float)
    variance = noise.var()
    assert variance == pytest.approx(0.80, abs=0.01)
    for shift, expected in (((0, 1), 0.11), ((1, 1), 0.013), ((0, 2), -0.076)):
        a = noise[..., shift[0] :, shift[1] :]
        b = noise[..., : noise.shape[-2] - shift[0], : noise.shape[-1] - shift[1]]
        assert (a * b).mean() / variance == pytest.approx(expected, abs=0.012)


def test_gaussian_psfsize_is_another_psf(hosts, table):
    moffat, _ = inject.render_table(table[:4], hosts, CONFIG, 9)
    gauss, flux = inject.render_table(table[:4], hosts, CONFIG, 9, psf_mode="gaussian_psfsize")
    assert np.allclose(gauss.sum((2, 3)), flux, rtol=5e-3)
    assert (np.abs(gauss - moffat).max((2, 3)) > 0.005 * moffat.max((2, 3))).all()
    with pytest.raises(UserError, match="psf_mode"):
        inject.render_table(table[:1], hosts, CONFIG, 9, psf_mode="round")


@pytest.mark.parametrize("name, value", [("q", -0.1), ("source_R", 0.0), ("mag_source_r", np.nan), ("theta_E", np.inf),
                                         ("n_clumps", 9), ("host_index", -5)])  # fmt: skip
def test_bad_rows_are_refused_with_their_id(hosts, table, name, value):
    bad = table.copy()
    bad[name] = bad[name].astype(float)
    bad.loc[7, name] = value
    with pytest.raises(UserError, match=rf"injection {table['injection_id'][7]}: {name}"):
        inject.inject(bad, hosts, boxes(bad), CONFIG, 9)


def test_bad_hosts_and_columns_are_refused(hosts, table):
    own = hosts.copy()
    own.loc[own["host_index"] == table["host_index"][0], "psfsize_r"] = 12.0
    with pytest.raises(UserError, match="psfsize_r = 12"):
        inject.inject(table, own, boxes(table), CONFIG, 9)
    with pytest.raises(UserError, match="source_q"):
        inject.inject(table.drop(columns="source_q"), hosts, boxes(table), CONFIG, 9)
    with pytest.raises(UserError, match="prior 'nobody'"):
        priors.draw_closure(hosts, 1, 0, "nobody")


def test_hosts_are_test_negatives_only():
    samples, stamps = make_samples(60)
    samples.loc[:9, "split"], samples.loc[10:19, "label"] = "train", 1
    stamps.loc[20:24, "quality_ok"] = False
    hosts = host_module.make_hosts(samples, stamps)
    assert sorted(hosts["galaxy_id"]) == sorted(f"10000-{i}-1" for i in range(25, 60))
    again = host_module.make_hosts(samples.sample(frac=1, random_state=1), stamps)
    pd.testing.assert_frame_equal(hosts, again)
    with pytest.raises(UserError, match="test split"):
        host_module.make_hosts(samples.assign(split="train"), stamps)


def test_confusers_keep_the_parents_share_among_hosts():
    """N1 samples all galaxies, N2 the confusers once more; only N1 carries population weight."""
    samples, stamps = make_samples(900)
    confuser = np.random.default_rng(3).random(900) < 0.2
    first = np.arange(900) < 600
    drawn = samples[first | confuser].assign(inclusion_probability=np.where(first, 0.1, 0.4)[first | confuser],
                                             confuser=confuser[first | confuser],
                                             pool=np.where(first, "N1", "N2")[first | confuser])  # fmt: skip
    hosts = host_module.make_hosts(drawn, stamps).merge(drawn[["galaxy_id", "confuser"]], on="galaxy_id")
    share = np.average(hosts["confuser"], weights=hosts["deployment_weight"])
    assert abs(share - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 600)
    extra = hosts["pool"] == "N2"
    assert extra.any() and not hosts.loc[extra, ["in_deployment", "in_deflector"]].any().any()
    assert (hosts.loc[extra, ["deployment_weight", "deflector_weight"]] == 0).all().all()


def test_deflectors_are_massive_and_red(hosts):
    chosen = hosts[hosts["in_deflector"]]
    assert (chosen["sigma_v"] > 120).all() and (chosen["type"] == "SER").mean() > 0.95
    # Hyde & Bernardi 2009: a red galaxy of z = 19 mag at z = 0.5 is an L > L* early type.
    one = pd.DataFrame({"mag_r": [20.05], "mag_z": [19.0], "z_phot": [0.5]})
    one = one.assign(mw_transmission_r=1.0, mw_transmission_z=1.0)
    assert host_module.estimate_sigma(one)[0] == pytest.approx(215, abs=35)


def test_other_hosts_keep_the_arcs_and_conditions(hosts, table):
    for population in ("deployment", "random"):
        swapped = priors.draw_closure(hosts, 48, 9, config=CONFIG, population=population)
        assert np.array_equal(swapped["theta_E"], table["theta_E"]) and swapped["untied"].all()
        assert (swapped["host_index"].to_numpy() != table["host_index"].to_numpy()).mean() > 0.9
        a, b = inject.host_rows(swapped, hosts), inject.host_rows(table, hosts)
        assert np.median(np.abs(a["psfsize_r"] - b["psfsize_r"])) < 0.1
    assert (inject.host_rows(swapped, hosts)["type"] == "REX").mean() > 0.2


def test_grid_cells_hold_their_own_hosts(hosts):
    grid = CompletenessConfig(theta_E=(1.0, 1.25), seeing=(1.2, 1.35), depth=(24.0, 24.5, 25.0), n_per_cell=12)
    drawn = priors.draw_grid(hosts, grid, 4, config=CONFIG)
    own = inject.host_rows(drawn, hosts)
    theta, rest = np.divmod(drawn["cell"], 6)
    seeing, depth = np.divmod(rest, 3)
    for values, index, centres in ((drawn["theta_E"], theta, grid.theta_E), (own["psfsize_r"], seeing, grid.seeing),
                                   (own["depth_r"], depth, grid.depth)):  # fmt: skip
        assert (cells.assign_bins(values, centres) == index).all()
    assert drawn.groupby("cell").size().min() >= 11
    assert drawn.groupby(["cell", "host_index"]).size().max() <= CONFIG.injection.max_per_host
    assert drawn["injection_id"].is_unique
    assert (drawn["weight"] == np.where(drawn["untied"], 0.0, 1.0)).all()
    assert cells.assign_bins([1.124, 1.126, 1.426], grid.seeing).tolist() == [-1, 0, -1]


def test_untied_cells_say_so(hosts):
    light = hosts.assign(sigma_v=hosts["sigma_v"].clip(upper=150.0))
    grid = CompletenessConfig(theta_E=(2.5, 2.75), seeing=(1.2, 1.35), depth=(24.0, 24.5), n_per_cell=8)
    plan = cells.plan_grid(light, grid, 4, "collett", 4)
    assert plan["untied"].all() and len(plan) == 8 * 8


def test_twins_keep_the_lens_and_change_the_galaxy(hosts, table):
    own = inject.host_rows(table[:5], hosts)
    lenses = table[:5].drop(columns=["n_clumps", "clump_fraction", "psf_beta", "injection_id", "host_index"])
    lenses = lenses.assign(galaxy_id=[f"lens-{i}" for i in range(5)], slope=2.05, is_catalogued=True)
    for name in ("psfsize_r", "depth_r", *(f"mag_{b}" for b in BANDS), *(f"mw_transmission_{b}" for b in BANDS)):
        lenses[name] = own[name].to_numpy()
    twins = priors.make_twins(lenses, hosts, 20, 9, CONFIG)
    assert twins.groupby("lens_id").size().tolist() == [20] * 5
    assert twins.groupby("lens_id")["host_index"].nunique().min() == 20
    for name in ("theta_E", "q", "phi", "source_x", "mag_source_r", "source_R"):
        assert np.allclose(twins[name], np.repeat(lenses[name].to_numpy(), 20))
    matched = inject.host_rows(twins, hosts)
    offset = np.abs(matched["psfsize_r"].to_numpy() - np.repeat(lenses["psfsize_r"].to_numpy(), 20))
    anyone = np.abs(hosts["psfsize_r"].to_numpy()[:, None] - lenses["psfsize_r"].to_numpy())
    assert np.median(offset) < np.median(anyone)
    pd.testing.assert_frame_equal(twins, priors.make_twins(lenses, hosts, 20, 9, CONFIG))


@pytest.mark.parametrize("name", ["flat", "brief", "published_2026"])
def test_named_priors_draw(hosts, name):
    drawn = priors.draw_closure(hosts, 30, 2, name, config=CONFIG)
    assert len(drawn) == 30 and np.isfinite(drawn["log_q"]).all()
    if name == "published_2026":
        radius = np.hypot(drawn["source_x"], drawn["source_y"]) / drawn["theta_E"]
        assert radius.between(0.1, 0.4).all() and (drawn["n_clumps"] == 0).all()
        assert drawn["mag_source_r"].between(23, 26).all() and drawn["source_R"].between(0.15, 0.5).all()
        assert (drawn["mag_source_g"] - drawn["mag_source_r"]).mean() == pytest.approx(1.15, abs=0.2)


def test_contaminant_control_keeps_the_flux(hosts, table):
    plain = controls.remove_lens(table)
    _, lensed = inject.render_table(table, hosts, CONFIG, 9)
    _, unlensed = inject.render_table(plain, hosts, CONFIG, 9)
    assert np.allclose(unlensed[:, 1], lensed[:, 1], rtol=0.05)


def test_tilted_draws_weigh_back_to_the_prior(hosts):
    plain = priors.draw_closure(hosts, 400, 5, config=CONFIG)
    for n_fair in (0, 200):
        tilted = priors.draw_closure(hosts, 500, 6, config=CONFIG, tilt=(30.0, 1.0), n_fair=n_fair)
        log, own = np.log(plain["arc_snr_true"]), np.log(tilted["arc_snr_true"])
        weight = tilted["weight"] / tilted["weight"].sum()
        sigma = np.hypot(log.std() / np.sqrt(len(log)), own.std() * np.sqrt((weight**2).sum()))
        assert abs(weight @ own - log.mean()) < 4 * sigma
        bright = own[tilted["tilted"]]
        assert bright.mean() > log.mean() + 4 * sigma  # bright arcs are many
        assert (~tilted["tilted"]).sum() == n_fair
    fair = priors.draw_closure(hosts, 200, 6, config=CONFIG)
    # Fair rows are the draws that a prior without a tilt gives.
    assert np.array_equal(fair["arc_snr_true"], tilted["arc_snr_true"].head(200))
    assert (plain["weight"] == 1).all() and "tilted" not in plain
