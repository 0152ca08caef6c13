"""Campaigns: blocks, resumption, controls; the engine itself is tested elsewhere and replaced here."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lensaudit.artifacts import UserError
from lensaudit.audit import campaign
from lensaudit.audit.thresholds import freeze_detector
from lensaudit.config import load_config

CONFIG = load_config("smoke")
N_HOSTS = 12


class Detector:
    id = "fake"

    def score(self, images, ids=None):
        return images.sum(axis=(1, 2, 3))


@pytest.fixture
def scene(monkeypatch):
    calls = []

    def fake_inject(table, hosts, images, config, seed, **variants):
        calls.append(len(table))
        arcs = np.zeros_like(images)
        arcs[:, :, 40, 32] = 10 ** (-0.4 * (table["mag_source_r"].to_numpy()[:, None] - 22.5))
        return images + arcs, arcs

    monkeypatch.setattr(campaign, "inject", fake_inject)
    generator = np.random.default_rng(0)
    hosts = pd.DataFrame({
        "host_index": np.arange(N_HOSTS) * 3, "galaxy_id": [f"g{i}" for i in range(N_HOSTS)], "psfsize_r": 1.2,
        "depth_r": 24.0, "mag_r": 19.0,
    })  # fmt: skip
    boxes = generator.normal(size=(N_HOSTS, 3, 65, 65)).astype(np.float32)
    table = pd.DataFrame({
        "injection_id": np.arange(50), "host_index": generator.integers(0, N_HOSTS, 50) * 3, "theta_E": 1.0,
        "mag_source_g": 23.3, "mag_source_r": 23.0, "mag_source_z": 22.5, "mag_lensed_g": 21.3, "mag_lensed_r": 21.0,
        "arc_snr_true": 10.0,
    })  # fmt: skip
    return hosts, boxes, table, calls


def test_result_does_not_depend_on_blocks_or_workers(scene, tmp_path):
    hosts, boxes, table, _ = scene
    whole = campaign.run_injections(table, hosts, boxes, Detector(), CONFIG, tmp_path / "a")
    cut = campaign.run_injections(table, hosts, boxes, Detector(), CONFIG, tmp_path / "b", block_rows=7, workers=2)
    pd.testing.assert_frame_equal(whole, cut, check_exact=False, rtol=1e-6)
    assert np.array_equal(whole["injection_id"], cut["injection_id"])
    assert (whole["psfsize_r"] == 1.2).all() and "arc_snr" in whole


def test_finished_blocks_are_kept_and_a_broken_one_is_made_again(scene, tmp_path):
    hosts, boxes, table, calls = scene
    first = campaign.run_injections(table, hosts, boxes, Detector(), CONFIG, tmp_path, block_rows=20)
    n = len(calls)
    again = campaign.run_injections(table, hosts, boxes, Detector(), CONFIG, tmp_path, block_rows=20)
    assert len(calls) == n and first.equals(again)
    broken = sorted(tmp_path.glob("*.parquet"))[0]
    broken.write_bytes(broken.read_bytes()[:100])
    assert campaign.run_injections(table, hosts, boxes, Detector(), CONFIG, tmp_path, block_rows=20).equals(first)
    assert len(calls) == n + 1
    changed = table.assign(mag_source_r=22.0)
    campaign.run_injections(changed, hosts, boxes, Detector(), CONFIG, tmp_path, block_rows=20)
    assert len(calls) == n + 4


def test_mistakes_are_named(scene, tmp_path):
    hosts, boxes, table, _ = scene
    with pytest.raises(UserError, match="host_index 99"):
        campaign.run_injections(table.assign(host_index=99), hosts, boxes, Detector(), CONFIG, tmp_path)
    with pytest.raises(UserError, match="twice"):
        campaign.run_injections(table.assign(injection_id=1), hosts, boxes, Detector(), CONFIG, tmp_path)
    with pytest.raises(UserError, match="unknown"):
        campaign.make_control(table, "blue")


def test_controls_change_what_they_say(scene):
    hosts, _, table, _ = scene
    faint, red = campaign.make_control(table, "faint"), campaign.make_control(table, "red")
    assert np.allclose(faint["mag_source_z"], 23.5) and np.allclose(faint["arc_snr_true"], 3.981, atol=1e-3)
    assert np.allclose(red["mag_source_g"] - red["mag_source_r"], 1.15) and np.allclose(red["mag_source_r"], 23.0)
    spoiled = campaign.spoil_psfsize(hosts)
    assert np.allclose(spoiled["psfsize_r"], 1.44)
    back = campaign.restore_conditions(table.assign(psfsize_r=1.44), hosts)
    assert np.allclose(back["psfsize_r"], 1.2)


def test_unspoiled_rows_are_the_spoiled_ones_before_the_mistake(scene, tmp_path):
    hosts, boxes, table, _ = scene
    config = dataclasses.replace(CONFIG, closure=dataclasses.replace(CONFIG.closure, n_control=20, n_twins=4))
    twins = table.assign(injection_id=table["injection_id"] + 1000, lens_id=np.arange(50) // 5)
    done = [campaign.run_injections(t, hosts, boxes, Detector(), config, tmp_path) for t in (table, twins)]
    kinds, campaign.CONTROLS = campaign.CONTROLS, ("faint",)
    try:
        controls = campaign.run_controls(table, twins, hosts, boxes, Detector(), config, tmp_path, scored=done)
    finally:
        campaign.CONTROLS = kinds
    for right, wrong in zip(controls["unspoiled"], controls["faint"], strict=True):
        assert list(right["injection_id"]) == list(wrong["injection_id"]) and len(right) == 20
        assert np.allclose(wrong["mag_source_r"] - right["mag_source_r"], 1.0)
    assert set(campaign.stack_controls(controls)["control"]) == {"faint"}


def test_a_detector_that_was_not_frozen_is_refused(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"w")
    (tmp_path / "preprocessing.json").write_text("{}")
    limits = {"fpr_1e-2": {"threshold": 1.0}}
    frozen = freeze_detector("fake", tmp_path / "weights.safetensors", tmp_path / "preprocessing.json", limits)

    class FakeStage:
        def input(self, upstream, filename):
            return tmp_path / Path(filename).name

        def read_json(self, upstream, filename):
            return {"thresholds.json": limits, "frozen_detector.json": frozen}[filename]

    assert campaign.check_frozen(FakeStage(), Detector()) == frozen
    (tmp_path / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="weights differ"):
        campaign.check_frozen(FakeStage(), Detector())


def test_parts_of_controls_keep_the_shares_of_a_mixture():
    rng = np.random.default_rng(3)
    table = pd.DataFrame({"injection_id": np.arange(2000), "tilted": np.arange(2000) >= 800})
    table["arc_snr_true"] = rng.lognormal(2.0 + table["tilted"], 0.5)
    table["weight"] = np.where(table["tilted"], 0.5, 1.0)
    config = dataclasses.replace(CONFIG, closure=dataclasses.replace(CONFIG.closure, n_control=400))
    part, _ = campaign._take_parts(table, pd.DataFrame({"lens_id": ["a"] * 4}), config)
    assert len(part) == 400 and part["tilted"].mean() == table["tilted"].mean()
    whole = np.average(table["arc_snr_true"], weights=table["weight"])
    assert np.average(part["arc_snr_true"], weights=part["weight"]) == pytest.approx(whole, rel=0.1)
