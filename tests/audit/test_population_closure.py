"""Population closure on a toy sky: the area, the lenses that count, the three comparisons, and the power of each."""

import numpy as np
import pandas as pd
import pytest

from lensaudit import photometry
from lensaudit.audit import population
from lensaudit.config import load_config
from lensaudit.constants import MASKBITS

CONFIG = load_config("demo")
N_BRICKS, N_PER_BRICK, CUT = 40, 25, 0.0


class Pixels:
    """A source whose stamps say which object they show."""

    def __init__(self, names):
        self.place = {name: i for i, name in enumerate(names)}

    def read(self, galaxies):
        images = np.zeros((len(galaxies), 3, 5, 5), dtype=np.float32)
        images[:] = np.array([self.place[g] for g in galaxies["galaxy_id"]])[:, None, None, None]
        return images, [""] * len(galaxies)


class Detector:
    """Finds every object whose number is even."""

    def score(self, images, ids=None):
        return np.where(images[:, 0, 0, 0] % 2 == 0, 1.0, -1.0)


@pytest.fixture
def sky():
    """40 blank bricks and 10 others of 25 galaxies each, 4 of them lenses; a fifth of all galaxies is masked."""
    n = (N_BRICKS + 10) * N_PER_BRICK
    i = np.arange(n)
    parent = pd.DataFrame({
        "galaxy_id": [f"g{k}" for k in i], "brickid": i // N_PER_BRICK, "type": "DEV", "ra": 0.01 * i,
        "dec": 5.0, "maskbits": np.where(i % 5 == 4, 1 << MASKBITS["BRIGHT"], 0), "flux_z": 20.0, "mag_z": 19.2,
        "psfsize_r": 1.2,
        "psfdepth_r": photometry.depth_to_ivar(np.full(n, 24.0)), "nobs_g": 4, "nobs_r": 4, "nobs_z": 4,
    })  # fmt: skip
    lens = parent[i % N_PER_BRICK < 4]
    truth = pd.DataFrame({"galaxy_id": lens["galaxy_id"], "theta_E": 1.0, "mu": 5.0, "snr_true": 20.0, "n_images": 2})
    quarters = pd.DataFrame({"brickid": np.repeat(np.arange(N_BRICKS + 10), 4)})
    return parent, truth, quarters.assign(is_blank=quarters["brickid"] < N_BRICKS)


class Product:
    """A selection function of one value everywhere."""

    def __init__(self, p):
        self.p = p

    def query(self, theta_E, seeing, depth, threshold=None):
        return pd.DataFrame({"in_support": np.asarray(theta_E) > 0.6, "p": self.p})

    def draw(self, theta_E, seeing, depth, threshold=None):
        return np.full((400, len(theta_E)), self.p)

    def expected_counts(self, rate, footprint, threshold=None, max_missing=None):
        assert max_missing == 1.0 and footprint["weight"].sum() > 0
        out, total = rate[["theta_E", "rate"]].copy(), self.p * float(rate["rate"].sum())
        out.attrs = {"total": total, "total_lower": 0.9 * total, "total_upper": 1.1 * total, "share_missing": 0.0}
        return out


def score(sky, trained=(), **changes):
    parent, truth, quarters = sky
    names = list(parent["galaxy_id"])
    return population.score_blank(truth.assign(**changes), quarters, parent, Pixels(names), Detector(), trained, CONFIG)


def close(blank, p, per_area):
    def make_rate(selection, prior, n):
        assert prior["deflector"]["theta_E"][0] == population.MIN_THETA
        return pd.DataFrame({"theta_E": [1.0], "seeing": [1.2], "depth": [24.0], "rate": [per_area],
                             "sigma": [0.01 * per_area]})  # fmt: skip

    return population.close_population(Product(p), make_rate, blank, {"fpr_1e-2": CUT}, CONFIG).set_index("comparison")


def test_lenses_and_area_are_those_of_unmasked_blank_bricks(sky):
    blank = score(sky)
    assert blank["footprint"]["weight"].sum() == pytest.approx(N_BRICKS * 0.0625 * 0.8)
    n = sum(k % 5 != 4 for k in range(N_BRICKS * N_PER_BRICK) if k % N_PER_BRICK < 4)
    assert len(blank["lenses"]) == n == 160 and blank["kept"] == 1.0
    assert set(blank["lenses"]["depth_r"].round(6)) == {24.0}
    for change in ({"mu": 2.9}, {"snr_true": 4.9}, {"n_images": 1}, {"theta_E": 0.45}):
        assert score(sky, **change)["lenses"].empty
    trained = [f"g{k * N_PER_BRICK}" for k in range(N_BRICKS + 10)]  # one lens of each brick
    left = score(sky, trained)
    assert len(left["lenses"]) == 120 and left["kept"] == pytest.approx(0.75) and left["n_trained"] == 40


def test_what_agrees_and_what_does_not(sky):
    blank = score(sky)
    assert (blank["lenses"]["logit"] > CUT).sum() == 80  # half of them, as C below says
    out = close(blank, 0.5, 160 / 2.0)
    assert out["agrees"].all()
    assert out["expected"].to_dict() == pytest.approx({"rate": 160, "C": 80, "C x rate": 80}, rel=0.02)
    assert out["observed"].to_dict() == {"rate": 160, "C": 80, "C x rate": 80}
    assert out.loc["C x rate", "observed_lower"] == pytest.approx(63.4, abs=0.1)  # Poisson, exact
    assert out.loc["C x rate", "observed_upper"] == pytest.approx(99.6, abs=0.1)
    # Two errors that cancel: half as many are found as C says, twice as many are there as the rate says.
    out = close(blank, 0.25, 2 * 160 / 2.0)
    assert out["agrees"].to_dict() == {"rate": False, "C": False, "C x rate": True}
    out = close(blank, 0.5, 2 * 160 / 2.0)
    assert not out.loc["C x rate", "agrees"]


def test_the_factor_noticed_is_noticed(sky):
    """At the factors the table names, about four of five samples lie outside what is predicted."""
    out = close(score(sky), 0.1, 160 / 2.0).loc["C x rate"]
    rng = np.random.default_rng(0)
    for factor in (out["factor_up"], out["factor_down"]):
        numbers = rng.poisson(factor * out["expected"], 20000)
        noticed = np.mean((numbers < out["predicted_lower"]) | (numbers > out["predicted_upper"]))
        assert noticed == pytest.approx(population.POWER, abs=0.02)
    assert np.isnan(close(score(sky), 0.001, 160 / 2.0).loc["C x rate", "factor_down"])


def test_real_data_have_no_such_row():
    assert population.score_blank(None, None, None, None, None, (), CONFIG) is None
    assert list(population.close_population(None, None, None, {}, CONFIG)) == list(population.COLUMNS)
