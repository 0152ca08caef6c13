"""Other priors: weights against a direct draw, the effective size against its definition, the guards."""

import tomllib

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from lensaudit import photometry, stats
from lensaudit.artifacts import UserError
from lensaudit.audit.completeness import AXES
from lensaudit.config import Config
from lensaudit.injection.density import measure_density
from lensaudit.injection.priors import draw_closure
from lensaudit.selection import SelectionFunction
from lensaudit.selection.product import take_columns
from lensaudit.selection.reweighting import read_prior, weigh_cells

N = 1500
GRID = {"theta_E": (0.75, 1.25, 1.75), "seeing": (1.1, 1.3), "depth": (24.0, 24.5)}
# The fiducial prior's lines that the other one changes: brighter, narrower in size, fewer clumps.
CHANGES = {"mag_limit = 28.0": "mag_limit = 24.5", "size_scatter = 0.35": "size_scatter = 0.25",
           "clumpy_fraction = 0.6": "clumpy_fraction = 0.3", "axis_ratio_scale = 0.3 ": "axis_ratio_scale = 0.25 "}


@pytest.fixture(scope="module")
def hosts():
    rng, n = np.random.default_rng(1), 400
    table = pd.DataFrame({
        "host_index": np.arange(n), "galaxy_id": [f"g{i}" for i in range(n)],
        "brickname": [f"b{i % 40}" for i in range(n)],
        "z_phot": rng.uniform(0.15, 0.8, n), "sigma_v": rng.uniform(180, 330, n), "depth_r": rng.uniform(23.8, 24.7, n),
        "q_light": rng.uniform(0.6, 0.95, n), "phi_light": rng.uniform(0, np.pi, n), "in_deflector": True,
        "deployment_weight": 1.0, "deflector_weight": 1.0,
    })  # fmt: skip
    seeing = rng.uniform(1.02, 1.38, n)
    for band in "grz":
        table[f"psfsize_{band}"], table[f"psfdepth_{band}"] = seeing, photometry.depth_to_ivar(table["depth_r"])
        table[f"mw_transmission_{band}"], table[f"nobs_{band}"] = 0.92, 4
    return table


@pytest.fixture(scope="module")
def other(root_of_project, tmp_path_factory):
    """Path of a prior inside the support of the fiducial one."""
    text = (root_of_project / "data_manifests" / "priors" / "collett.toml").read_text()
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path_factory.mktemp("priors") / "brighter.toml"
    path.write_text(text.replace('name = "collett"', 'name = "brighter"', 1))
    return path


@pytest.fixture(scope="module")
def root_of_project(request):
    return request.config.rootpath


def draw_scored(hosts, prior, seed):
    """Draw injections that a known function of S/N and Einstein radius recovers."""
    table = draw_closure(hosts, N, seed, prior, config=Config(device="cpu"))
    own = hosts.iloc[table["host_index"]]
    chance = expit(3.0 * np.log(table["arc_snr_true"] / 12.0) + (table["theta_E"] - 1.2))
    found = np.random.default_rng(seed).random(len(table)) < chance
    return table.assign(psfsize_r=own["psfsize_r"].to_numpy(), depth_r=own["depth_r"].to_numpy(),
                        logit=np.where(found, 1.0, -1.0))  # fmt: skip


@pytest.mark.slow
def test_weights_give_what_a_direct_run_gives(hosts, other):
    old, new = draw_scored(hosts, "collett", 11), draw_scored(hosts, read_prior(other), 12)
    whole = {"theta_E": (1.0, 11.0), "seeing": (1.2, 2.4), "depth": (24.0, 34.0)}  # all rows lie in its first cell
    halves = whole | {"theta_E": (0.8, 1.6)}
    for cells_of, least in ((whole, 1), (halves, 2)):
        weighted, direct, plain = (
            weigh_cells(take_columns(table), cells_of, 0.0, prior, (0.0, 0.0))
            for table, prior in ((old, read_prior(other)), (new, read_prior(other)), (old, read_prior("collett")))
        )
        use = weighted["sufficient"] & direct["sufficient"]
        assert use.sum() >= least
        a, b = weighted[use], direct[use]
        error = np.sqrt(a["p"] * (1 - a["p"]) / a["n_eff"] + b["p"] * (1 - b["p"]) / b["n_eff"])
        z = (a["p"] - b["p"]) / error
        assert np.abs(z).max() < 3.5 and (z**2).sum() < 3.5 * use.sum() + 4, z
        if least == 1:  # and the weights matter: without them the answer is another one
            assert abs(plain["p"][0] - b["p"][0]) > 3 * error[0]


@pytest.fixture(autouse=True)
def frozen_priors(root, monkeypatch):
    monkeypatch.setenv("LENSAUDIT_ROOT", str(root))


def make_rows(n=400, n_hosts=200):
    """Injections all alike, drawn from the flat prior, in one cell of `GRID`."""
    rng = np.random.default_rng(3)
    table = pd.DataFrame({
        "injection_id": np.arange(n), "host_index": np.arange(n) % n_hosts, "cell": -1, "theta_E": 1.25, "z_lens": 0.4,
        "z_source": 2.0, "mag_source_g": 24.2, "mag_source_r": 24.0, "mag_source_z": 23.7, "source_R": 0.3,
        "source_q": 0.7, "source_n": 1.0, "n_clumps": 0, "clump_fraction": 0.0, "source_x": 0.1, "source_y": 0.2,
        "psfsize_r": 1.1, "depth_r": 24.0, "untied": True, "weight": 1.0, "logit": rng.normal(size=n),
    })  # fmt: skip
    table["brickname"] = [f"b{i % 20}" for i in table["host_index"]]
    table["log_q"] = measure_density(table, read_prior("flat"))
    return take_columns(table)


def look(table, prior="flat", rho=(0.0, 0.0)):
    out = weigh_cells(table, GRID, 0.0, read_prior(prior), rho)
    return out.iloc[1 * 4], out.drop(index=4)  # the cell at theta_E 1.25, seeing 1.1, depth 24


def test_equal_weights_are_the_counts_of_the_cells():
    table = make_rows()
    own, rest = look(table, rho=(0.4, 0.1))
    assert own["p"] == pytest.approx((table["logit"] > 0).mean()) and own["sufficient"]
    assert own["n_eff"] == pytest.approx(stats.effective_n(table["host_index"], table["brickname"], 0.4, 0.1))
    assert own["untied_fraction"] == 1.0 and own["kish"] == pytest.approx(200.0)
    assert own["max_weight"] == pytest.approx(1 / 400)
    assert not rest["sufficient"].any() and (rest["reason"] == "prior flat: no injection carries weight").all()


def test_weights_are_ratios_of_densities():
    table = make_rows()
    heavy = np.arange(400) % 2 == 0
    own, _ = look(table.assign(log_q=table["log_q"] - np.log(3.0) * heavy))
    assert own["p"] == pytest.approx(np.average(table["logit"] > 0, weights=np.where(heavy, 3.0, 1.0)))
    assert own["n_eff"] == pytest.approx(800**2 / (200 * 9 + 200))


def test_guards_refuse_with_the_size():
    one = make_rows()
    one.loc[0, "log_q"] -= 6.0  # one row counts as 403
    own, _ = look(one)
    assert not own["sufficient"] and "effective size 3.9 below 30" in own["reason"]
    own, _ = look(make_rows().assign(log_q=lambda t: t["log_q"] - 3.6 * (t["injection_id"] == 0)))
    assert own["kish"] > 30 and own["max_weight"] > 0.05 and "one injection has 8.4%" in own["reason"]
    own, _ = look(make_rows(n_hosts=25))
    assert not own["sufficient"] and "effective size 25.0" in own["reason"]  # 400 rows of 25 galaxies
    own, _ = look(make_rows().assign(brickname="b0"))
    assert not own["sufficient"] and "fewer than 3 bricks" in own["reason"]
    own, _ = look(make_rows().assign(weight=0.0))
    assert "no injection carries weight" in own["reason"]
    own, _ = look(make_rows().assign(mag_source_g=20.2, mag_source_r=20.0, mag_source_z=19.7))
    assert "no injection carries weight" in own["reason"]  # outside the prior


def test_priors_that_weights_cannot_reach_are_refused(tmp_path, other):
    with pytest.raises(UserError, match="published_2026: light, hosts cannot be reached"):
        read_prior("published_2026")
    with pytest.raises(UserError, match="nothing.toml: no such file"):
        read_prior(tmp_path / "nothing.toml")
    (tmp_path / "bad.toml").write_text("[source\n")
    with pytest.raises(UserError, match="bad.toml: not valid TOML"):
        read_prior(str(tmp_path / "bad.toml"))
    (tmp_path / "half.toml").write_text("[source]\n")
    with pytest.raises(UserError, match="cosmology"):
        read_prior(tmp_path / "half.toml")
    short = tomllib.loads(other.read_text())
    del short["source"]["clumps"]
    with pytest.raises(UserError, match="clumps.*missing"):
        weigh_cells(make_rows(), GRID, 0.0, read_prior(short), (0.0, 0.0))


def test_mixed_sets_and_lacking_columns_are_refused():
    table = make_rows()
    with pytest.raises(UserError, match="mixed"):
        take_columns(table.assign(cell=np.where(table["injection_id"] < 9, 3, -1)))
    with pytest.raises(UserError, match="log_q"):
        take_columns(table.drop(columns="log_q"))


def test_band_spans_the_priors(make_product, root, monkeypatch, tmp_path):
    monkeypatch.setenv("LENSAUDIT_ROOT", str(root))  # for the frozen priors
    table = make_rows(n=1200, n_hosts=600).assign(theta_E=1.0, psfsize_r=1.0, depth_r=23.0)
    monkeypatch.setenv("LENSAUDIT_ROOT", str(tmp_path))
    stage, _ = make_product(injections=table)
    with pytest.warns(UserWarning):
        product = SelectionFunction.load(stage.folder / "selection")
    monkeypatch.setenv("LENSAUDIT_ROOT", str(root))
    point = (1.0, 1.0, [23.0, 24.0])
    band = product.prior_band(*point, priors=("flat", "brief", "collett"))
    each = {name: product.query(*point, prior=name) for name in ("flat", "brief")}
    assert list(band["in_support"]) == [True, False] and band["n_priors"][0] >= 2
    found = [f["p"][0] for f in each.values()]
    assert band["p_min"][0] <= min(found) and band["p_max"][0] >= max(found) and band["lower"][0] <= band["p_min"][0]
    assert band["missing"][1] == "flat, brief, collett" and np.isnan(band["p_min"][1])
    assert each["flat"].attrs["prior"] == "flat" and set(AXES) <= set(band)
