"""Rows that cannot be rendered are refused with their id; modes, quasars and hosts without data do what they say."""

import numpy as np
import pandas as pd
import pytest
import torch

from lensaudit import photometry
from lensaudit.artifacts import UserError
from lensaudit.config import Config
from lensaudit.injection import checks, density, inject
from lensaudit.injection.noise import list_gains
from lensaudit.injection.population import load_prior
from lensaudit.lensing import render, sample

CONFIG = Config(device="cpu")


def make_rows(n=4, **changes):
    """Return `n` like rows behind one host; columns may be changed or added."""
    row = {"host_index": 0, "theta_E": 1.2, "q": 0.7, "phi": 0.4, "gamma1": 0.02, "gamma2": 0.0, "source_x": 0.15,
           "source_y": -0.1, "source_R": 0.15, "source_n": 1.0, "source_q": 0.7, "source_phi": 0.3, "n_clumps": 0,
           "mag_source_g": 23.0, "mag_source_r": 22.8, "mag_source_z": 22.5, "psf_beta": 3.5}  # fmt: skip
    ids = {"injection_id": np.arange(40, 40 + n)}
    return pd.DataFrame(ids | {k: [v] * n for k, v in row.items()}).assign(**changes)


def make_host(**changes):
    host = {"host_index": [0], "galaxy_id": ["one"]}
    for band, psfsize in (("g", 1.6), ("r", 1.45), ("z", 1.35)):
        host |= {f"psfsize_{band}": psfsize, f"psfdepth_{band}": photometry.depth_to_ivar(24.0),
                 f"mw_transmission_{band}": 0.9, f"nobs_{band}": 4}  # fmt: skip
    return pd.DataFrame(host).assign(**changes)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"q": [0.7, -0.1, 0.7, 0.7]}, "injection 41: q = -0.1"),
        ({"mag_source_r": [22.0, 22.0, np.nan, 22.0]}, "injection 42: mag_source_r"),
        ({"clump_fraction": [0.3, np.nan, 0.3, 0.3]}, "injection 41: clump_fraction"),
        ({"n_clumps": [0, 2.5, 0, 0]}, "injection 41: n_clumps = 2.5 is not a whole number"),
        ({"source_R": "large"}, "injection 40: source_R = 'large' is not a number"),
        ({"source_R": [0.1, 0.1, "0.1", 0.1]}, "injection 42: source_R = '0.1' is not a number"),
        ({"theta_E": np.full(4, 1.2 + 0j)}, "injection 40: theta_E = .* is not a number"),
        ({"n_clumps": [True] * 4}, "injection 40: n_clumps = True is not a number"),
        ({"theta_E": [1.2, 1.2, None, 1.2]}, "injection 42: theta_E = nan"),
        ({"theta_E": [1.2, 500.0, 1.2, 1.2]}, "injection 41: theta_E = 500"),
        ({"q": [0.7, 1.3, 0.7, 0.7]}, "injection 41: q = 1.3"),
        ({"source_q": [0.7, 0.0, 0.7, 0.7]}, "injection 41: source_q = 0 "),
        ({"mag_source_g": [22.0, -np.inf, 22.0, 22.0]}, "injection 41: mag_source_g = -inf"),
        ({"psf_beta": [3.5, 3.5, 3.5, 1.0]}, "injection 43: psf_beta = 1 "),
        ({"a3": [0.0, 0.01, 0.0, 0.0]}, "injection 41: a3 without column.* phi3"),
        ({"subhalo_theta_E": [0.0, 0.0, 0.1, 0.0]}, "injection 42: subhalo_theta_E without column.* subhalo_x"),
        ({"injection_id": [1, 2, 2, 3]}, "injection 2 appears twice"),
        ({"injection_id": [1.0, 1.5, 2.0, 3.0]}, "injection 1.5: injection_id is not a whole number"),
        ({"injection_id": [1.0, np.inf, 2.0, 3.0]}, "injection inf: injection_id is not a whole number"),
        ({"injection_id": [1.0, np.nan, 2.0, 3.0]}, "row 1: no injection_id"),
        ({"injection_id": [3, -1, 2, 4]}, "injection -1: injection_id is not a whole number"),
        ({"injection_id": list("abcd")}, "injection a: injection_id is not a whole number"),
        ({"psf_wings": [True, np.nan, True, True]}, "injection 41: column psf_wings holds nan"),
        ({"bank_index": [-1, -1, 3, -1]}, "injection 42: bank_index = 3"),
        ({"source_mode": ["sersic", "bogus", "sersic", "sersic"]}, "injection 41: source_mode 'bogus' is unknown"),
        ({"source_mode": ["sersic", "sersic", "sersic", "point"]}, "injection 43: source_mode 'point' is without"),
        ({"source_mode": ["clumpy"] * 4}, "injection 40: source_mode 'clumpy' is without clumps"),
        ({"host_index": [0, 0, 7, 0]}, "injection 42: host_index 7"),
    ],
)
def test_bad_rows_are_refused_by_id(changes, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        checks.check_table(make_rows(**changes), make_host())


def test_tables_as_a_whole():
    rows = make_rows()
    with pytest.raises(UserError, match="injection table lacks .* theta_E"):
        checks.check_table(pd.DataFrame(), make_host())
    with pytest.raises(UserError, match="column q twice"):
        checks.check_table(pd.concat([rows, rows[["q"]]], axis=1), make_host())
    with pytest.raises(UserError, match="injection 40: host_index 0 is not in the host table"):
        checks.check_table(rows, make_host().iloc[:0])
    with pytest.raises(UserError, match="host_index 0 stands twice"):
        checks.check_table(rows, pd.concat([make_host(), make_host(psfsize_r=1.1)]))
    checks.check_table(rows, pd.concat([make_host(), make_host()]))  # the same twice is the same
    checks.check_table(rows.astype({"injection_id": float, "n_clumps": "int8"}), make_host())
    empty, arcs = inject.inject(make_rows(0), make_host(), np.zeros((0, 3, 65, 65)), CONFIG, 1)
    assert empty.shape == arcs.shape == (0, 3, 65, 65)


@pytest.mark.parametrize("changes", [{"exptime_r": 0.0}, {"psfdepth_r": np.nan}, {"psfdepth_r": np.inf},
                                     {"psfsize_g": 0.05}, {"psfsize_r": "wide"}, {"nobs_r": np.nan}, {"nobs_z": 0},
                                     {"mw_transmission_z": 1.5}])  # fmt: skip
def test_bad_hosts_are_refused_by_name(changes):
    with pytest.raises(UserError, match="host one: " + next(iter(changes))):
        checks.check_table(make_rows(), make_host(**changes))
    with pytest.raises(UserError, match="gain_override"):
        list_gains(make_host(), 0.0)


def test_a_mode_switches_off_what_it_does_not_use():
    quasar = {f"quasar_fraction_{band}": 0.5 for band in "grz"}
    rows = make_rows(n_clumps=4, clump_fraction=0.4, **quasar)
    plain, _ = inject.render_table(make_rows(), make_host(), CONFIG, 1)
    moded, _ = inject.render_table(rows.assign(source_mode="sersic"), make_host(), CONFIG, 1)
    assert np.array_equal(plain, moded)
    clumpy, _ = inject.render_table(rows.assign(source_mode="clumpy"), make_host(), CONFIG, 1)
    point, _ = inject.render_table(rows.assign(source_mode="point"), make_host(), CONFIG, 1)
    assert not np.array_equal(clumpy, plain) and not np.array_equal(point, clumpy)


def test_quasars_leave_their_neighbours_alone():
    rows = make_rows(quasar_fraction_r=[0.0, 0.0, 0.0, 0.5])
    together, _ = inject.render_table(rows, make_host(), CONFIG, 1)
    alone = np.concatenate([inject.render_table(rows.iloc[i : i + 1], make_host(), CONFIG, 1)[0] for i in range(4)])
    assert np.array_equal(together, alone)


def test_point_images_beyond_the_stamp_do_not_come_back():
    rows = make_rows(1, theta_E=6.0, source_x=9.0, quasar_fraction_r=1.0, quasar_fraction_g=1.0, quasar_fraction_z=1.0)
    image, flux = inject.render_table(rows, make_host(), CONFIG, 1)  # its only image is 24 pixels right of the stamp
    assert flux[0, 1] == 0.0 and np.abs(image).max() < 1e-6 * photometry.mag_to_flux(22.8)


@pytest.mark.parametrize("size", [65, 99, 101])
def test_torch_renders_every_size(size, monkeypatch):
    rows = make_rows(2, psf_e1=0.05)
    compiled, _ = inject.render_table(rows, make_host(), CONFIG, 1, size=size, dtype=torch.float64)
    monkeypatch.setattr(sample, "compiled_sample", None)
    monkeypatch.setattr(render, "compiled_fold", None)
    plain, _ = inject.render_table(rows, make_host(), CONFIG, 1, size=size, dtype=torch.float64)
    assert np.abs(plain - compiled).max() < 5e-5 * compiled.max()
    start = (size - 65) // 2
    small, _ = inject.render_table(rows, make_host(), CONFIG, 1, dtype=torch.float64)
    assert np.abs(plain[..., start : start + 65, start : start + 65] - small).max() < 2e-4 * small.max()


def test_pixels_without_data_stay_so():
    host = np.random.default_rng(2).normal(0, 0.01, (4, 3, 65, 65)).astype(np.float32)
    host[..., :20] = 0.0
    out, arcs = inject.inject(make_rows(), make_host(), host, CONFIG, 1)
    assert (out[..., :20] == 0).all() and (out[..., 20:] != host[..., 20:]).any() and arcs[..., 19].max() > 0


def test_cells_of_the_grid_are_weighed_apart():
    with pytest.raises(UserError, match="injection 40: rows of the grid"):
        density.weigh_prior(make_rows(cell=[3, 3, 3, 3], log_q=0.0), load_prior("flat"))
    with pytest.raises(UserError, match="injection 41: rows of the grid"):
        density.weigh_prior(make_rows(cell=[3, -1, -1, -1], log_q=0.0, log_acceptance=0.0), load_prior("flat"))


def test_rendering_alone_refuses_what_injecting_refuses():
    rows, host = make_rows(), make_host()
    with pytest.raises(UserError, match=f"injection {rows['injection_id'].iloc[1]}: q = "):
        inject.render_table(rows.assign(q=[0.7, -0.2] + [0.7] * (len(rows) - 2)), host, CONFIG, 1)
    with pytest.raises(UserError, match="band 'y' unknown; use g, r, z"):
        inject.render_table(rows, host, CONFIG, 1, bands=("r", "y"))
    stamps = np.zeros((len(rows), 3, 65, 65), dtype=np.float32)
    with pytest.raises(UserError, match="one per injection and band"):
        inject.inject(rows, host, stamps, CONFIG, 1, psf_images=np.ones((1, 3, 9, 9)))
    with pytest.raises(UserError, match="type complex64"):
        inject.inject(rows, host, stamps.astype(np.complex64), CONFIG, 1)
    bare = host.drop(columns=[c for c in host if c.startswith(("nobs_", "exptime_"))])
    with pytest.raises(UserError, match="lacks column"):
        inject.inject(rows, bare, stamps, CONFIG, 1)
