"""Gates pass on clean samples, fail on planted faults, and say when they cannot tell."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as sps

from lensaudit.artifacts import UserError
from lensaudit.audit import gates
from lensaudit.rng import make_stream


def make_manifest(n=3000, seed=1, share=0.25, **shifts):
    """Rows whose features tell nothing but what `shifts` adds to the lenses (in standard deviations)."""
    rng = make_stream(seed, "tests/gates")
    label = (rng.random(n) < share).astype(int)
    names = sorted({c for columns in gates.PROBES.values() for c in columns} | set(gates.QUALITY))
    table = pd.DataFrame({name: rng.normal(size=n) + shifts.get(name, 0.0) * label for name in names})
    mag = rng.uniform(16, 20, n)
    return table.assign(
        label=label, mag_r=mag, mag_g=mag + rng.uniform(0.5, 1.5, n), shape_r=rng.uniform(0.5, 3, n),
        depth_r=rng.uniform(23, 25, n), bands_requested="grz", has_g=True, has_r=True, has_z=True, quality_ok=True,
    )  # fmt: skip


def outcomes(rows):
    return {row["gate"]: row["outcome"] for row in rows}


def test_probes_pass_on_nothing_and_on_an_annulus_signal():
    clean = outcomes(gates.check_probes(*gates.score_probes(make_manifest(), make_manifest(seed=2), 1)))
    assert [clean[f"{n} probe"] for n in ("core only", "colour only", "noise only")] == ["pass"] * 3
    assert clean["annulus against core"] == "cannot be computed"
    arcs = {"annulus_std_r": 1.5, "ridge_r": 1.0}
    rows = gates.check_probes(*gates.score_probes(make_manifest(**arcs), make_manifest(seed=2, **arcs), 1))
    assert outcomes(rows)["annulus against core"] == "pass"


def test_probes_catch_planted_shortcuts():
    spoilt = {"background_r": 1.5, "core_max_r": 1.5}
    rows = gates.check_probes(*gates.score_probes(make_manifest(**spoilt), make_manifest(seed=2, **spoilt), 1))
    found = outcomes(rows)
    assert found["noise only probe"] == "fail" and found["core only probe"] == "fail"
    assert found["colour only probe"] == "pass" and found["annulus against core"] == "fail"
    few = gates.check_probes(*gates.score_probes(make_manifest(60), make_manifest(60, seed=2), 1))
    assert set(outcomes(few).values()) == {"cannot be computed"}
    with pytest.raises(UserError, match="core_max_r"):
        gates.score_probes(make_manifest().drop(columns="core_max_r"), make_manifest(), 1)


def test_quality_distance():
    found = outcomes(gates.check_quality(make_manifest(12000, share=0.5, saturation_r=0.5), 1))
    assert found["quality: saturation_r"] == "fail" and found["quality: background_r"] == "pass"
    assert set(outcomes(gates.check_quality(make_manifest(400), 1)).values()) == {"cannot be computed"}


def test_bootstrap_ks_agrees_with_scipy():
    rng = make_stream(3, "tests/ks")
    values = np.round(rng.normal(size=400), 1)
    times = rng.integers(0, 3, 400)
    expected = sps.ks_2samp(np.repeat(values[:200], times[:200]), np.repeat(values[200:], times[200:])).statistic
    assert gates.bootstrap_ks(values, times[None])[0] == pytest.approx(expected)


def test_centre_mask():
    rng = make_stream(4, "tests/mask")
    images = rng.normal(0, 0.1, (5, 3, 101, 101)).astype(np.float32) + 3.0
    images[:, :, 50, 50] += 40.0
    images[:, :, 50, 59] += 20.0
    masked = gates.mask_centres(images, 8)
    assert np.allclose(masked[:, :, 50, 50], 3.0, atol=0.05) and masked.dtype == np.float32
    assert (masked[:, :, 50, 59] == images[:, :, 50, 59]).all() and (masked[:, :, 0] == images[:, :, 0]).all()

    class Detector:
        def score(self, stamps):
            return stamps.max(axis=(1, 2, 3)) - 10.0

    curve = gates.measure_centre_mask(images, Detector(), 0.0)
    assert curve.radius.tolist() == [0, 8, 10, 12] and curve.recall.tolist() == [1, 1, 0, 0]
    assert curve["drop"].tolist() == [0, 0, 1, 1]


def test_exact_gates():
    assert gates.check_null([1.0, 2.0], [1.0, 2.0])["outcome"] == "pass"
    assert gates.check_null([1.0, 2.0], [1.0, 2.0 + 1e-7])["outcome"] == "fail"
    assert gates.check_null([], [])["outcome"] == "cannot be computed"
    assert gates.check_repeat([1.0], [1.02])["outcome"] == "pass"
    assert gates.check_controls(np.full(50, 0.3))["outcome"] == "fail"
    assert gates.check_controls(np.r_[np.zeros(99), 1.0])["note"].startswith("fraction > 0.5: 0.0100")
    assert gates.check_preprocessing("aa", "aa")["outcome"] == "pass"
    assert gates.check_preprocessing("", "aa")["outcome"] == "cannot be computed"
    table = make_manifest(50)
    assert gates.check_bandset(table)["outcome"] == "pass"
    assert gates.check_bandset(table.assign(bands_requested="girz"))["value"] == 50
    assert gates.check_bandset(table.assign(has_z=False))["outcome"] == "fail"
    report = {"shared": {"galaxy_id": 0, "system_id": 1}, "overlapping_pairs": 0}
    assert gates.check_splits(report, 50)["outcome"] == "fail"
    together = gates.tabulate_gates(gates.check_bandset(table), gates.check_quality(table, 1))
    assert len(together) == 1 + len(gates.QUALITY)
