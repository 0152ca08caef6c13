"""Splits are a function of the sky, reach their fractions, and a planted leak is found."""

import dataclasses
import hashlib

import healpy
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensaudit.artifacts import UserError
from lensaudit.catalogs import sphere, splits
from lensaudit.config import SamplingConfig

CONFIG = SamplingConfig()
POSITION = st.tuples(st.floats(0, 360, exclude_max=True), st.floats(-90, 90))


@settings(max_examples=60, deadline=None)
@given(positions=st.lists(POSITION, min_size=1, max_size=60), seed=st.integers(0, 2**31), shift=st.randoms())
def test_splits_are_disjoint_on_the_sky(positions, seed, shift):
    """One pixel, one split, whatever else is in the list and in whatever order."""
    ra, dec = np.array(positions).T
    names = splits.assign_splits(ra, dec, seed, CONFIG)
    pixels = sphere.index_sky(ra, dec, 128)
    assert pd.Series(names).groupby(pixels).nunique().max() == 1
    order = list(range(len(ra)))
    shift.shuffle(order)
    assert list(splits.assign_splits(ra[order], dec[order], seed, CONFIG)) == list(names[order])
    assert splits.assign_splits(ra[:1], dec[:1], seed, CONFIG)[0] == names[0]
    assert splits.assign_splits(ra[:1] - 360, dec[:1], seed, CONFIG)[0] == names[0]


def test_hash_is_sha256_of_pixel_and_seed():
    digest = int.from_bytes(hashlib.sha256(b"17,20261").digest()[:8], "big")
    assert splits.hash_pixels([17, 4, 17], 20261)[2] == pytest.approx(digest / 2**64, abs=1e-15)


def test_fractions_are_reached_and_seeds_differ():
    pixels = np.arange(healpy.nside2npix(64))
    ra, dec = healpy.pix2ang(64, pixels, nest=True, lonlat=True)
    names = splits.assign_splits(ra, dec, 1, CONFIG)
    for name, fraction in zip(CONFIG.split_names, CONFIG.split_fractions, strict=True):
        assert abs((names == name).mean() - fraction) < 5 * np.sqrt(fraction * (1 - fraction) / len(pixels))
    other = splits.assign_splits(ra, dec, 2, CONFIG)
    assert abs((names == other).mean() - (0.7**2 + 2 * 0.15**2)) < 0.01


def test_two_way_split_and_wrong_fractions():
    two = dataclasses.replace(CONFIG, split_names=("train", "test"), split_fractions=(0.7, 0.3))
    assert set(splits.assign_splits(np.arange(0, 90, 0.5), np.zeros(180), 1, two)) == {"train", "test"}
    for wrong in ((0.7, 0.2), (0.7, 0.2, 0.2), (1.2, -0.1, -0.1)):
        with pytest.raises(UserError, match="split_fractions"):
            splits.assign_splits([0.0], [0.0], 1, dataclasses.replace(CONFIG, split_fractions=wrong))


def make_samples():
    ra = np.array([10.0, 11.0, 12.0, 13.0])
    return pd.DataFrame({
        "galaxy_id": list("abcd"), "system_id": ["", "", "s1", "s2"], "ra": ra, "dec": 0.0,
        "split": ["train", "val", "test", "silver"], "healpix_128": sphere.index_sky(ra, np.zeros(4), 128),
        "label": [0, 0, 1, 1], "type_bin": "DEV", "psfsize_r": [1.0, 1.2, 1.1, 1.3],
    })  # fmt: skip


def test_clean_samples_pass():
    checks = splits.verify_splits(make_samples())
    assert checks["is_disjoint"]
    assert sum(row["n"] for row in checks["leak_buckets"]) == 3


@pytest.mark.parametrize(("column", "row", "value", "finding"), [
    ("galaxy_id", 1, "a", "galaxy_id"), ("system_id", 0, "s1", "system_id"), ("healpix_128", 2, None, "healpix_128"),
    ("ra", 2, 10.0 + 37.0 / 3600, "overlapping_pairs"), ("ra", 3, 10.0 + 37.0 / 3600, "overlapping_pairs"),
])  # fmt: skip
def test_planted_leaks_are_found(column, row, value, finding):
    samples = make_samples()
    samples.loc[row, column] = samples.loc[0, column] if value is None else value
    checks = splits.verify_splits(samples)
    assert not checks["is_disjoint"]
    assert (checks["overlapping_pairs"] if finding == "overlapping_pairs" else checks["shared"][finding]) == 1


def test_stamps_beyond_reach_share_nothing():
    """Two 101-pixel stamps turned by 45 degrees touch at 101 sqrt(2) pixels."""
    assert splits.STAMP_REACH == pytest.approx(37.42, abs=0.01)
    samples = make_samples()
    samples.loc[1, "ra"] = 10.0 + 37.5 / 3600
    assert splits.verify_splits(samples)["is_disjoint"]


def test_shared_cutouts_are_found():
    samples = make_samples().assign(cutout_path=["p#1", "p#1", "p#2", "p#3"])
    assert splits.verify_splits(samples)["shared"]["cutout_path"] == 1


def test_balance_sees_a_shift():
    rng = np.random.default_rng(0)
    n = 400
    samples = pd.DataFrame({"label": 0, "split": np.resize(["train", "test"], n), "type_bin": "DEV",
                            "psfsize_r": rng.normal(1.2, 0.1, n)})  # fmt: skip
    assert splits.measure_balance(samples)["max_shift"].max() < 0.3
    samples.loc[samples["split"] == "test", "psfsize_r"] += 0.1
    assert splits.measure_balance(samples).set_index("split").loc["test", "max_shift"] == pytest.approx(1.0, abs=0.3)
