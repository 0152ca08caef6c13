"""Null and control sets: each takes one thing away and nothing else."""

import numpy as np
import pandas as pd
import pytest

from lensaudit.artifacts import UserError
from lensaudit.config import Config
from lensaudit.constants import BANDS
from lensaudit.injection import controls, inject

CONFIG = Config(device="cpu")


@pytest.fixture(scope="module")
def hosts():
    rng, n = np.random.default_rng(1), 40
    table = pd.DataFrame({"host_index": np.arange(n), "galaxy_id": [f"g{i}" for i in range(n)],
                          "brickname": [f"b{i % 7}" for i in range(n)], "depth_r": rng.uniform(23.5, 24.5, n),
                          "deployment_weight": rng.uniform(0.5, 2.0, n)})  # fmt: skip
    for b in BANDS:
        table[f"psfsize_{b}"], table[f"psfdepth_{b}"] = rng.uniform(1.0, 1.5, n), 2000.0
        table[f"mw_transmission_{b}"], table[f"nobs_{b}"] = 0.9, 4
    return table


@pytest.fixture(scope="module")
def table(hosts):
    rng, n = np.random.default_rng(2), 24
    angle = rng.uniform(0, 2 * np.pi, n)
    out = pd.DataFrame({
        "injection_id": np.arange(n), "host_index": rng.integers(0, 40, n), "theta_E": rng.uniform(0.8, 2.0, n),
        "q": rng.uniform(0.6, 0.95, n), "phi": rng.uniform(0, np.pi, n), "gamma1": rng.normal(0, 0.03, n),
        "gamma2": rng.normal(0, 0.03, n), "source_x": 0.3 * np.cos(angle), "source_y": 0.3 * np.sin(angle),
        "source_R": rng.uniform(0.15, 0.4, n), "source_n": 1.0, "source_q": rng.uniform(0.5, 1.0, n),
        "source_phi": rng.uniform(0, np.pi, n), "mag_source_g": 24.0, "mag_source_r": 23.8, "mag_source_z": 23.5,
        "n_clumps": 0, "clump_fraction": 0.0, "psf_beta": 3.5, "multiplicity": 2, "untied": False,
    })  # fmt: skip
    own = hosts.iloc[out["host_index"]]
    out["galaxy_id"], out["brickname"] = own["galaxy_id"].to_numpy(), own["brickname"].to_numpy()
    return inject.measure_injections(out, hosts, CONFIG, 3)


def boxes(n):
    return np.random.default_rng(4).normal(0, 0.01, (n, 3, 65, 65)).astype(np.float32)


def test_zero_flux_returns_the_hosts_bits(hosts, table):
    images = boxes(len(table))
    out, arcs = inject.inject(controls.remove_flux(table), hosts, images, CONFIG, 3)
    assert out.tobytes() == images.tobytes() and not arcs.any()


def test_unlensed_source_keeps_the_flux(hosts, table):
    _, lensed = inject.render_table(table, hosts, CONFIG, 3)
    _, plain = inject.render_table(controls.remove_lens(table), hosts, CONFIG, 3)
    assert np.allclose(plain[:, 1], lensed[:, 1], rtol=0.05)


def test_rotated_arcs_are_the_arcs_turned(hosts, table):
    """A quarter turn of lens and source is a quarter turn of the pixels; x runs along columns, y along rows."""
    arcs, _ = inject.render_table(table, hosts, CONFIG, 3)
    turned, _ = inject.render_table(controls.rotate_arcs(table), hosts, CONFIG, 3)
    back = np.rot90(turned, axes=(-2, -1))  # rows grow with y, so that rot90 turns clockwise on the sky
    assert np.abs(back - arcs).max() < 5e-3 * arcs.max()
    assert np.abs(turned - arcs).max() > 0.1 * arcs.max()
    again = controls.rotate_arcs(controls.rotate_arcs(table, 0.7), -0.7)
    assert np.allclose(again["gamma1"], table["gamma1"]) and np.allclose(again["source_x"], table["source_x"])


def test_shuffled_hosts_are_the_same_hosts_in_other_rows(hosts, table):
    many = pd.concat([table] * 10, ignore_index=True).assign(injection_id=np.arange(240))
    many["host_index"] = np.random.default_rng(5).integers(0, 40, 240)
    for name in ("galaxy_id", "brickname"):
        many[name] = hosts[name].to_numpy()[many["host_index"]]
    shuffled = controls.shuffle_hosts(many, hosts, 5)
    assert sorted(shuffled["host_index"]) == sorted(many["host_index"]) and shuffled["untied"].all()
    assert (shuffled["host_index"] != many["host_index"]).mean() > 0.9
    own, other = (hosts.set_index("host_index").loc[t["host_index"], "psfsize_r"].to_numpy() for t in (many, shuffled))
    assert np.abs(own - other).mean() < 0.6 * np.abs(own - np.random.default_rng(6).permutation(own)).mean()
    names = [c for c in many if c not in (*controls.HOST_NAMES, "untied")]
    pd.testing.assert_frame_equal(shuffled[names], many[names])
    assert (hosts.set_index("host_index").loc[shuffled["host_index"], "galaxy_id"].to_numpy()
            == shuffled["galaxy_id"]).all()  # fmt: skip


def test_named_controls(hosts, table):
    assert not controls.make_control("no_inner_images", table, hosts, 1)["inner_images"].any()
    for name in ("deployment_hosts", "random_hosts"):
        swapped = controls.make_control(name, table, hosts, 1)
        assert np.array_equal(swapped["theta_E"], table["theta_E"]) and swapped["untied"].all()
    with pytest.raises(UserError, match="zero_flux"):
        controls.make_control("nothing", table, hosts, 1)
