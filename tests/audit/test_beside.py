"""Beside the map: further axes against counts by hand, columns of mode (ii) chosen and filled, drawn apart."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as sps

from lensaudit import photometry
from lensaudit.artifacts import UserError
from lensaudit.audit import beside
from lensaudit.config import CompletenessConfig, Config
from lensaudit.constants import BANDS
from lensaudit.figures.beside import plot_axes, plot_mode_two

GRID = {"theta_E": (0.75, 1.0, 1.25), "seeing": (1.0, 1.2, 1.4), "depth": (23.0, 23.5, 24.0)}
CONFIG = Config(device="cpu", completeness=CompletenessConfig(**GRID, n_per_cell=6))
N_HOSTS = 40


def make_hosts(n=400):
    generator = np.random.default_rng(1)
    psfsize, depth = generator.uniform(0.8, 1.2, n), generator.uniform(24.3, 25.2, n)
    hosts = pd.DataFrame({
        "host_index": np.arange(n), "galaxy_id": np.arange(n).astype(str), "brickname": (np.arange(n) % 40).astype(str),
        "z_phot": generator.uniform(0.2, 0.6, n), "sigma_v": generator.uniform(200, 320, n), "q_light": 0.8,
        "phi_light": 0.3, "in_deflector": True, "deflector_weight": 1.0, "deployment_weight": 1.0,
        "footprint_weight": 1.0, "depth_r": depth, "mag_r": 19.0, "type": "DEV", "healpix_128": 1,
    })  # fmt: skip
    for band, wider, deeper in zip(BANDS, (1.1, 1.0, 0.95), (0.5, 0.0, -0.8), strict=True):
        hosts[f"psfsize_{band}"], hosts[f"nobs_{band}"] = psfsize * wider, 5
        hosts[f"psfdepth_{band}"], hosts[f"mw_transmission_{band}"] = photometry.depth_to_ivar(depth + deeper), 0.95
    return hosts


def make_cells(lacking):
    """The grid's cells at one threshold, insufficient in the columns of `lacking`; a column's share is its seeing."""
    places = pd.MultiIndex.from_product(GRID.values(), names=GRID)
    cells = places.to_frame(index=False).assign(threshold_name="t", completeness=0.5, lower_95=0.4, upper_95=0.6)
    cells["footprint_weight"] = cells["seeing"] / 100
    cells["sufficient"] = [(s, d) not in lacking for s, d in zip(cells["seeing"], cells["depth"], strict=True)]
    return cells


class Detector:
    id = "fake"

    def score(self, images, ids=None):
        return images[:, 1, :16, :16].std(axis=(1, 2))  # a corner without an arc


def test_further_axes_count_what_a_hand_counts():
    n = 400
    table = pd.DataFrame({"host_index": np.arange(n), "brickname": np.arange(n).astype(str), "nobs_z": np.arange(n) % 4,
                          "type": np.where(np.arange(n) % 2, "DEV", "REX"), "logit": -1.0})  # fmt: skip
    table.loc[table["nobs_z"].isin([1, 2]), "logit"] = 1.0
    table.loc[:3, "logit"] = -1.0
    axes = {"nobs_z": (-0.5, 0.5, 1.5, 9.5), "type": ("DEV", "REX", "SER")}
    out = beside.tabulate_axes(table, {"loose": 0.0, "strict": 0.5}, axes)
    assert len(out) == 12 and list(dict.fromkeys(out["axis"])) == ["nobs_z", "type"]
    own = out[out["threshold_name"] == "strict"].set_index("bin")
    assert own.index.tolist() == ["-0.5 to 0.5", "0.5 to 1.5", "1.5 to 9.5", "DEV", "REX", "SER"]
    assert own["n"].tolist() == [100, 100, 200, 200, 200, 0] and own["k"].tolist() == [0, 99, 99, 99, 99, 0]
    assert own["n_hosts"].iloc[0] == own["n_eff"].iloc[0] == 100
    expected = sps.beta.ppf([0.025, 0.975], 99 + 0.5, 1 + 0.5)  # Jeffreys, all rows of their own
    assert own.loc["0.5 to 1.5", ["lower", "upper"]].tolist() == pytest.approx(expected, rel=1e-6)
    assert own.loc["SER", "reason"] == "no injection" and own.loc["DEV", "low"] != own.loc["DEV", "low"]
    assert len(plot_axes(out).axes) == 2
    with pytest.raises(UserError, match="arc_surface_brightness"):
        beside.tabulate_axes(table.assign(mag_source_r=24.0), {"t": 0.0})


def test_columns_are_those_the_survey_has_and_the_map_lacks(monkeypatch):
    monkeypatch.setattr(beside, "N_HOSTS", N_HOSTS)
    hosts = make_hosts()
    lacking = [(1.0, 23.0), (1.2, 23.0), (1.4, 23.0), (1.2, 23.5)]
    chosen = beside.choose_columns(make_cells(lacking), hosts, CONFIG, 2)
    assert chosen == [(1.4, 23.0), (1.2, 23.0), (1.4, 23.5)]  # the last is one that is filled
    assert beside.choose_columns(make_cells([]), hosts, CONFIG, 2) == [(1.4, 23.0)]
    poor = hosts.assign(**{f"psfsize_{band}": 3.0 for band in BANDS})
    assert beside.choose_columns(make_cells(lacking), poor, CONFIG) == []
    nothing = beside.run_mode_two(make_cells(lacking), poor, None, Detector(), CONFIG, None, {"t": 0.0})
    assert nothing.empty and "no column" in plot_mode_two(nothing, make_cells(lacking), "t").axes[0].texts[0].get_text()


def test_degraded_hosts_fill_a_column_and_are_counted_by_their_galaxy(monkeypatch, tmp_path):
    monkeypatch.setattr(beside, "N_HOSTS", N_HOSTS)
    hosts, cells = make_hosts(), make_cells([(1.4, 23.0)])
    sigma = np.stack([photometry.depth_to_sigma(hosts[f"psfdepth_{b}"], hosts[f"psfsize_{b}"]) for b in BANDS], axis=1)
    boxes = np.random.default_rng(2).normal(size=(len(hosts), 3, 65, 65)) * sigma[:, :, None, None]
    limit = 1.2 * sigma[:, 1].max()
    out = beside.run_mode_two(cells, hosts, boxes.astype(np.float32), Detector(), CONFIG, tmp_path, {"t": limit})
    places = set(zip(out["seeing"], out["depth"], strict=True))
    assert places == {(1.4, 23.0), (1.4, 23.5)} and set(out["mode"]) == {"ii"}
    assert sorted(out["theta_E"].unique()) == [0.75, 1.25] and len(out) == 4  # every second radius
    assert (out["n"] == 6).all() and (out["n_hosts"] > 1).all() and (out["n_hosts"] <= 6).all()
    assert (out["n_own"] == 0).all() and (out["n_better"] >= N_HOSTS).all() and not out["sufficient"].any()
    assert (out.loc[out["depth"] == 23.0, "k"] == 6).all()  # the noise is the target's; no host has so much of its own
    axes = plot_mode_two(out, cells, "t").axes
    assert len(axes) == 2 and {a.get_title() for a in axes} == {f"seeing {s:.2f}, depth {d:.1f}" for s, d in places}
    drawn = [c for c in axes[0].containers if len(c[0].get_xdata())]
    assert len(drawn) == 1  # mode (i) has no sufficient cell in the first column
