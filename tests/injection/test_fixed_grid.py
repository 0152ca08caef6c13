"""The plain grid that the engine is shown beside is right where a plain grid can be: against lenstronomy."""

import numpy as np
import pytest

from lensaudit.artifacts import UserError
from lensaudit.injection import fixed_grid, oracle


@pytest.fixture(scope="module")
def scene():
    from test_determinism import make_scene

    table, hosts, _ = make_scene()
    plain = {"a3": 0.0, "a4": 0.0, "subhalo_theta_E": 0.0, "slope": 2.0, "gradient": 0.0, "n_clumps": 0}
    kinds = ["bank_index", "inner_images", "psf_wings", "psf_e1", "psf_e2",
             *(f"quasar_fraction_{band}" for band in "grz")]  # fmt: skip
    return table.iloc[:3].assign(source_R=0.5, source_n=0.7, **plain).drop(columns=kinds), hosts


def test_fine_grid_of_a_wide_source_is_lenstronomys(scene):
    table, hosts = scene
    own = hosts.set_index("host_index", drop=False).loc[table["host_index"]].reset_index(drop=True)
    expected, _ = oracle.render_rows(table, own, None, 9, bands=("r",), dtype=np.float64)
    peak = expected.max(axis=(1, 2, 3))
    coarse, fine = (np.abs(fixed_grid.render_on_grid(table, hosts, 9, s) - expected) for s in (2, 8))
    coarse, fine = (difference.max(axis=(1, 2, 3)) / peak for difference in (coarse, fine))
    assert (fine < 1e-3).all() and (fine < coarse).all()


def test_too_coarse_a_grid_is_refused(scene):
    with pytest.raises(UserError, match="samples = 1"):
        fixed_grid.render_on_grid(*scene, 9, 1)
