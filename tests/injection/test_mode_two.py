"""Who fills the columns of a mode (ii) map, and that their stamps have the target's noise."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from lensaudit import photometry
from lensaudit.artifacts import UserError
from lensaudit.config import Config
from lensaudit.constants import BANDS
from lensaudit.injection import mode_two
from lensaudit.injection.noise import resampling_matrix

GRID = dataclasses.replace(Config().completeness, seeing=(1.0, 1.2, 1.4), depth=(23.0, 23.5, 24.0))


def make_hosts(n=400, seed=0):
    generator = np.random.default_rng(seed)
    psfsize, depth = generator.uniform(0.8, 1.5, n), generator.uniform(22.8, 24.6, n)
    hosts = pd.DataFrame({"host_index": np.arange(n) + 7, "in_deflector": generator.random(n) < 0.8,
                          "deflector_weight": 1.0, "depth_r": depth})  # fmt: skip
    for band, wider, deeper in zip(BANDS, (1.1, 1.0, 0.95), (0.5, 0.0, -0.8), strict=True):
        hosts[f"psfsize_{band}"] = psfsize * wider
        hosts[f"psfdepth_{band}"] = photometry.depth_to_ivar(depth + deeper)
        hosts[f"exptime_{band}"] = 100.0
    return hosts


def test_only_hosts_better_in_seeing_and_noise_fill_a_column():
    hosts = make_hosts()
    made, plan = mode_two.plan_columns(hosts, GRID, [(1.2, 23.5), (1.4, 23.0)], 30, 1)
    assert plan["n_used"].tolist() == [30, 30] and len(made) == 60 and not made["host_index"].duplicated().any()
    first, parents = made.iloc[:30], hosts.set_index("host_index").loc[made["parent_index"][:30]]
    assert first["psfsize_r"].between(1.1, 1.3).all() and first["depth_r"].between(23.25, 23.75).all()
    assert parents["in_deflector"].all()
    for band in BANDS:
        before = photometry.depth_to_sigma(parents[f"psfdepth_{band}"], parents[f"psfsize_{band}"])
        after = photometry.depth_to_sigma(first[f"psfdepth_{band}"], first[f"psfsize_{band}"])
        assert np.all(after >= before) and np.all(first[f"psfsize_{band}"].to_numpy() >= parents[f"psfsize_{band}"])
        ratio = first[f"psfsize_{band}"].to_numpy() / parents[f"psfsize_{band}"].to_numpy()
        assert np.allclose(ratio, first["psfsize_r"].to_numpy() / parents["psfsize_r"].to_numpy())
    # Counted by hand for a target in the middle: sharper, and less noise per pixel in r.
    sharp = hosts[hosts["in_deflector"] & (hosts["psfsize_r"] < 1.1)]
    noise = photometry.depth_to_sigma(sharp["psfdepth_r"], sharp["psfsize_r"])
    certain = np.sum(noise <= photometry.depth_to_sigma(photometry.depth_to_ivar(23.75), 1.1) / 1.2)
    assert certain <= plan["n_better"][0] <= hosts["in_deflector"].sum()


def test_plans_follow_host_and_column_alone():
    hosts = make_hosts()
    columns = [(1.2, 23.5), (1.4, 23.0)]
    made, _ = mode_two.plan_columns(hosts, GRID, columns, 1000, 1)
    other, _ = mode_two.plan_columns(hosts.iloc[100:], GRID, columns[::-1], 1000, 1)
    joint = made.merge(other, on="host_index", suffixes=("", "_other"))
    assert len(joint) == len(other) > 50
    assert np.array_equal(joint["psfsize_r"], joint["psfsize_r_other"])
    assert np.array_equal(joint["depth_r"], joint["depth_r_other"])
    assert ((made["host_index"] - made["parent_index"]) % mode_two.COLUMN_STEP == 0).all()


def test_boxes_get_the_targets_noise():
    """Sky of a coadd's own correlation: its variance over that of white noise is the same before and after."""
    hosts = make_hosts(150)
    made, _ = mode_two.plan_columns(hosts, GRID, [(1.4, 23.0)], 40, 2)
    sigma = photometry.depth_to_sigma(np.stack([hosts[f"psfdepth_{b}"] for b in BANDS], axis=1),
                                      np.stack([hosts[f"psfsize_{b}"] for b in BANDS], axis=1))  # fmt: skip
    lanczos = resampling_matrix(113)
    white = np.random.default_rng(5).normal(size=(150, 3, 113, 113)) * sigma[:, :, None, None]
    sky = (lanczos @ white @ lanczos.T)[:, :, 24:89, 24:89].astype(np.float32)
    out = mode_two.degrade_columns(made, hosts, sky, 3)
    target = np.stack([photometry.depth_to_sigma(made[f"psfdepth_{b}"], made[f"psfsize_{b}"]) for b in BANDS], axis=1)
    before, after = (np.mean(x[..., 8:-8, 8:-8].var(axis=(2, 3)) / s**2) for x, s in ((sky, sigma), (out, target)))
    assert len(made) > 30 and after == pytest.approx(before, rel=0.02)


def test_what_cannot_be_filled_is_said():
    hosts = make_hosts()
    _, plan = mode_two.plan_columns(hosts.assign(depth_r=hosts["depth_r"].clip(upper=23.9)), GRID, [(1.4, 23.0)], 5, 1)
    assert plan["reason"].tolist() == [""]
    poor = make_hosts().assign(psfsize_r=2.0, psfsize_g=2.0, psfsize_z=2.0)
    with pytest.raises(UserError, match="no host can be brought"):
        mode_two.plan_columns(poor, GRID, [(1.2, 23.5)], 5, 1)
    with pytest.raises(UserError, match="seeing 1.3, depth 23.5 is not one of the grid"):
        mode_two.plan_columns(hosts, GRID, [(1.3, 23.5)], 5, 1)
