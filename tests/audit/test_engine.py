"""Sheets show what they say, sampling converges, and a benchmark that has not been run is said to be so."""

import json

import numpy as np
import pandas as pd
import pytest

from lensaudit import photometry
from lensaudit.audit import engine
from lensaudit.config import Config

CONFIG = Config(device="cpu")


class Store:
    """Remembers what is read; every stamp is its own number."""

    def __init__(self):
        self.paths = []

    def read_box(self, paths, size):
        self.paths += paths
        return np.stack([np.full((3, size, size), float(path)) for path in paths])


def test_sheet_of_lenses_never_shows_a_test_lens():
    n = 300
    rng = np.random.default_rng(0)
    lenses = pd.DataFrame({
        "galaxy_id": [f"g{i}" for i in range(n)], "split": np.array(["train", "val", "test"])[np.arange(n) % 3],
        "psfsize_r": rng.uniform(0.9, 1.8, n), "arc_snr": rng.uniform(1, 50, n), "arc_radius": rng.uniform(0.5, 2.5, n),
        "cutout_path": [str(i) for i in range(n)],
    })  # fmt: skip
    truth = pd.DataFrame({"galaxy_id": lenses["galaxy_id"], "theta_E": rng.uniform(0.5, 2.5, n), "snr_true": 10.0})
    for given in (truth, None):
        store = Store()
        sheet = engine.compose_lenses(lenses, store, (0.75, 1.5), (1.0, 1.3, 1.6), given)
        shown = lenses.iloc[[int(path) for path in store.paths]]
        assert sheet.shape == (3, 2, 65, 65, 3) and len(shown) == 6
        assert set(shown["split"]) <= {"train", "val"} and shown["galaxy_id"].is_unique
        assert np.abs(shown["psfsize_r"] - np.repeat([1.0, 1.3, 1.6], 2)).max() < 0.3
    none = engine.compose_lenses(lenses[lenses["split"] == "test"], Store(), (0.75,), (1.0,), truth)
    assert not none.any()


def test_finer_sampling_is_closer():
    n = 4
    hosts = pd.DataFrame({"host_index": np.arange(n), "galaxy_id": [f"g{i}" for i in range(n)]})
    for band in "grz":
        depth = photometry.depth_to_ivar(24.0)
        hosts = hosts.assign(**{f"psfsize_{band}": 1.2, f"psfdepth_{band}": depth, f"mw_transmission_{band}": 0.9})
    row = {"theta_E": 1.3, "q": 0.7, "phi": 0.4, "gamma1": 0.02, "gamma2": 0.0, "source_x": 0.1, "source_R": 0.2,
           "source_n": 1.0, "source_q": 0.7, "source_phi": 1.0, "psf_beta": 3.5, "n_clumps": 0, "mag_source_g": 23.5,
           "mag_source_r": 23.0, "mag_source_z": 22.5}  # fmt: skip
    ids = np.arange(n)
    table = pd.DataFrame([row] * n).assign(injection_id=ids, host_index=ids, source_y=0.1 * ids)
    found = engine.measure_convergence(table, hosts, CONFIG, (0.05,), (1.0, 6.0), (2, 4), n=3)
    maxima = found.set_index(["method", "setting"])["maximum"]
    assert (found["n"] == 3).all() and ("engine", CONFIG.injection.panel_width) in maxima
    assert maxima["engine", 1.0] < maxima["engine", 6.0] < maxima["fixed grid", 2.0]
    assert maxima["fixed grid", 4.0] < maxima["fixed grid", 2.0]
    numbers = engine.summarise_engine(found, CONFIG)["convergence"]
    assert numbers["engine_maximum"] < engine.GOAL < numbers["grid_maximum"] and numbers["grid_setting"] == 4.0


def test_a_benchmark_that_has_not_been_run_is_said_to_be_so(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "find_root", lambda: tmp_path)
    assert engine.tabulate_speed()["remark"].tolist() == ["the benchmark has not been run"]
    found = {
        "stamps_per_s": 900.0, "ratio_imagemodel": 120.0, "ratio_best_use": 16.0, "residual_p99": 1e-3, "cores": 2,
        "device": "cpu", "way": "threads", "peak_memory_mb": 700.0, "rates": {"ImageModel": 7.5, "best use": 56.0},
        "imagemodel_supersampling": [4, 12], "imagemodel_rows_not_reached": 0, "best_use_residual_p99": 0.02,
    }  # fmt: skip
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "injection_speed.json").write_text(json.dumps(found))
    table = engine.tabulate_speed()
    assert len(table) == 3 and table["stamps_per_s"].tolist() == pytest.approx([900.0, 7.5, 56.0])
