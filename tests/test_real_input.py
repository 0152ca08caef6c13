"""Real input: described files, quoted numbers recounted, refusals kept, arcs into real pixels."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from lensaudit.artifacts import UserError
from lensaudit.audit.detectability import crop_box
from lensaudit.catalogs.lenses import group_systems
from lensaudit.config import load_config
from lensaudit.constants import PIXEL_SCALE
from lensaudit.figures import real as figures
from lensaudit.injection.noise import list_gains
from lensaudit.pixels.formats import Stamp
from lensaudit.real_input import injections, overview, stamps, tables


class MeanDetector:
    """Scores the mean r-band light of the centre, blind to everything else."""

    def score(self, images, ids=None):
        centre = images.shape[-1] // 2
        return images[:, 1, centre - 10 : centre + 11, centre - 10 : centre + 11].mean(axis=(1, 2)) * 100


@pytest.fixture
def real_config(real_data):
    return load_config("real", "cpu", str(real_data))


def fake_stamps(tmp_path, monkeypatch):
    """A data root with one DR10 stamp and two cutouts, one of them cut short."""
    described = pd.DataFrame({
        "file": ["a/one.npz", "b/two.fits", "b/three.fits", "b/four.fits"],
        "dataset": ["dr10_lens_stamps", "decals_cutouts", "decals_cutouts", "decals_cutouts"], "sha256": "0" * 64,
    })  # fmt: skip
    monkeypatch.setattr(stamps, "list_files", lambda: described)
    stream = np.random.default_rng(3)
    y, x = np.indices((121, 121)) - 60
    galaxy = 0.3 * np.exp(-np.hypot(x, y) / 4)
    image = (galaxy + stream.normal(0, 0.01, (3, 121, 121))).astype(np.float32)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    np.savez(tmp_path / "a/one.npz", cutout=np.moveaxis(image[:, 10:111, 10:111], 0, -1), meta_bands_requested="grz",
             meta_ra=10.0, meta_dec=1.0)  # fmt: skip
    header = fits.Header({"BANDS": "grz", "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 20.0, "CRVAL2": 2.0,
                          "CRPIX1": 61.0, "CRPIX2": 61.0, "CD1_1": -PIXEL_SCALE / 3600, "CD2_2": PIXEL_SCALE / 3600,
                          "CD1_2": 0.0, "CD2_1": 0.0})  # fmt: skip
    fits.PrimaryHDU(image, header).writeto(tmp_path / "b/two.fits")
    fits.PrimaryHDU(image, header).writeto(tmp_path / "b/three.fits")
    (tmp_path / "b/three.fits").write_bytes((tmp_path / "b/three.fits").read_bytes()[:9000])
    return dataclasses.replace(load_config("real", "cpu"), data_root=str(tmp_path))


# Without the folder -------------------------------------------------------------------------------------------------


def test_no_folder_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.delenv("LENSAUDIT_DATA", raising=False)
    with pytest.raises(UserError, match="make real REAL_DATA=folder"):
        tables.check_files(load_config("real", "cpu"))
    with pytest.raises(UserError, match="no such folder"):
        tables.check_files(load_config("real", "cpu", str(tmp_path / "absent")))
    with pytest.raises(UserError, match="holds none of the described files"):
        tables.check_files(load_config("real", "cpu", str(tmp_path)))


def test_a_changed_file_is_seen(tmp_path):
    files = tables.list_files()
    assert files["sha256"].str.fullmatch("[0-9a-f]{64}").all() and files["file"].is_unique
    assert not files["file"].str.startswith("/").any()
    target = tmp_path / files["file"].iloc[0]
    target.parent.mkdir(parents=True)
    target.write_text("name\n")
    state = tables.check_files(load_config("real", "cpu", str(tmp_path)))["state"]
    assert state.iloc[0] == "differs" and (state.iloc[1:] == "missing").all()


def test_lists_are_shown_as_observed_with_the_columns_they_have():
    rows = pd.DataFrame({
        "catalog": ["a", "a", "a", "a", "b"], "system_id": ["1", "1", "2", "3", "1"], "lens_type": "galaxy",
        "is_compilation": [False, False, False, True, False], "theta_E": [1.1, 1.1, 1.6, 1.1, np.nan],
        "z_lens": np.nan, "host_type": ["", "", "", "", "DEV"]})  # fmt: skip
    rows = pd.concat([rows, rows[:1].assign(system_id="4", lens_type="cluster")], ignore_index=True)
    out = tables.observe_lists(rows)
    assert set(map(tuple, out[["variable", "catalog"]].to_numpy())) == {("theta_E", "a"), ("host_type", "b")}
    own = out[out["variable"] == "theta_E"].set_index("left")["n_found"]
    # A system counts once; neither a compilation nor a cluster counts.
    assert own[1.0] == 1 and own[1.5] == 1 and own.sum() == 2
    assert not {"corrected", "n_true", "lower"} & set(out)


def test_real_lists_hold_what_their_files_hold(real_config):
    out = tables.observe_lists(group_systems(tables.read_lists(real_config), 3.0)).set_index(["variable", "catalog"])
    root = tables.find_data_root(real_config)
    slacs = np.loadtxt(root / "slacs/SLACS_table.cat", usecols=(3, 7))
    for name, values in (("z_lens", slacs[:, 0]), ("theta_E", slacs[:, 1])):
        expected = np.histogram(values, tables.BINS[name])[0]
        assert out.loc[(name, "slacs"), "n_found"].tolist() == expected.tolist()
    kinds = out.loc[("host_type", "inchausti2025")].set_index("name")["n_found"]
    text = (root / "lens-catalogs/inchausti2025_published_catalog.csv").read_text().splitlines()[1:]
    assert kinds[kinds > 0].to_dict() == pd.Series([t.rsplit(",", 1)[1] for t in text]).value_counts().to_dict()
    assert ("theta_E", "lenscat") not in out.index and ("host_type", "slacs") not in out.index


def test_refused_files_keep_their_row_and_order(tmp_path, monkeypatch):
    config = fake_stamps(tmp_path, monkeypatch)
    table, images = stamps.read_stamps(config)
    assert table["accepted"].tolist() == [True, True, False, False]
    assert "truncated, 9,000 of" in table["reason"][2] and "no such file" in table["reason"][3]
    assert images.shape == (2, 3, 101, 101)
    np.testing.assert_array_equal(images[0], images[1])  # the same centre, from two formats
    measured = stamps.measure_stamps(table, images)
    assert measured["file"].tolist() == ["a/one.npz", "b/two.fits"] and measured["quality_ok"].all()
    # White noise of sigma 0.01: the rim's MAD reads it, and no note is due.
    np.testing.assert_allclose(table["sky_r"].dropna(), 0.01, rtol=0.05)
    assert (measured["noise_note"] == "").all()


def test_scores_are_compared_with_existing_thresholds_only(tmp_path, monkeypatch):
    table, images = stamps.read_stamps(fake_stamps(tmp_path, monkeypatch))
    logit = float(MeanDetector().score(images[:1])[0])
    points = {"low": {"threshold": logit - 1}, "high": {"threshold": logit + 1}, "none": {"threshold": None}}
    scores = stamps.score_stamps(table, images, MeanDetector(), points)
    assert scores["above_low"].all() and not scores["above_high"].any() and "above_none" not in scores
    np.testing.assert_allclose(scores["score"], 1 / (1 + np.exp(-scores["logit"])))
    text = stamps.describe_scores(scores)
    assert "1 published lens candidates and 1 galaxies" in text and "no recall" in text


def test_injection_adds_the_arc_and_nothing_far_from_it(tmp_path, monkeypatch):
    config = fake_stamps(tmp_path, monkeypatch)
    table, images = stamps.read_stamps(config)
    injected, before, arcs, after = injections.inject_real(table, images, MeanDetector(), config)
    assert len(injected) == len(injections.ARCS) and (injected["host"] == "two.fits").all()
    np.testing.assert_array_equal(before, crop_box(images[[1, 1]]))
    # What is added is the arc's flux within its photon noise, at the gain of the host's assumed exposure.
    flux = arcs.sum(axis=(2, 3), dtype=float)
    photon_noise = np.sqrt(flux / list_gains(injections.make_real_hosts(table)))
    pull = ((after - before).sum(axis=(2, 3), dtype=float) - flux) / photon_noise
    assert np.abs(pull).max() < 4 and np.abs(pull).min() > 0
    flux = 10 ** (-0.4 * (injected["mag_lensed_r"] - 22.5))
    np.testing.assert_allclose(arcs[:, 1].sum(axis=(1, 2)), flux, rtol=0.03)
    y, x = np.indices((65, 65)) - 32
    far = np.hypot(x, y) > 28
    assert np.abs((after - before)[:, :, far]).max() < 0.05 * arcs.max()
    assert (injected["logit"] > injected["logit_before"]).all()
    again = injections.inject_real(table, images, MeanDetector(), config)[3]
    np.testing.assert_array_equal(after, again)


def test_rim_of_a_resampled_file():
    """Four old pixels per new one: white noise of sigma s becomes 4 s per new pixel at half the scale."""
    noise = np.random.default_rng(4).normal(0, 0.01, (3, 400, 400)).astype(np.float32)
    fine = Stamp("n", tuple("grz"), noise, pixel_scale=PIXEL_SCALE / 4, resampled=True)
    np.testing.assert_allclose(stamps.measure_rim(fine), 0.04, rtol=0.06)


# With the folder ----------------------------------------------------------------------------------------------------


def test_files_are_the_described_ones(real_config):
    assert (tables.check_files(real_config)["state"] == "as described").all()


def test_quoted_matches_are_recounted(real_config):
    entries = tables.read_lists(real_config)
    matches = tables.compare_matches(entries)
    assert matches["agrees"].all() and matches["matches"].tolist() == [338, 1300, 1878, 122]
    systems = group_systems(entries, 3.0)
    lists = tables.summarise_systems(systems).set_index("catalog")
    assert lists.loc["lenscat", "entries"] == 32838 and lists.loc["slacs", "with_theta_E"] == 59
    assert (lists["systems_alone"] <= lists["systems"]).all() and (lists["systems"] <= lists["entries"]).all()
    assert 1.1 < systems["theta_E"].median() < 1.3  # quoted median 1.23 arcsec


def test_older_releases_say_what_they_lack(real_config):
    survey = tables.describe_tables(real_config)
    old = survey["release"] == 8000
    assert old.sum() == 6 and survey.loc[old, "refusal"].str.contains("PSFSIZE_R").all()
    assert survey.loc[old, "missing"].str.contains("FITBITS").all()
    recent = survey[~old].iloc[0]
    assert recent["refusal"] == "" and recent["missing"] == "" and recent["psfsize_r"] == pytest.approx(1.71, abs=0.01)
    assert recent["depth_r_max"] == pytest.approx(23.82, abs=0.01)  # quoted: 285 nMgy^-2 = 23.82 mag


def test_real_stamps_from_file_to_page(real_config, real_data):
    table, images = stamps.read_stamps(real_config)
    refused = table.set_index(table["file"].str.split("/").str[-1]).query("not accepted")["reason"]
    assert set(refused.index) == {"example_incomplete.fits", "example_bad_pix.fits"}
    assert "truncated" in refused["example_incomplete.fits"] and "exact zeros" in refused["example_bad_pix.fits"]
    assert np.abs(table["flux_kept"].dropna() - 1).max() < stamps.MAX_FLUX_CHANGE
    assert stamps.compare_statistics(real_config)["largest_difference"].max() < 1e-5
    assert stamps.compare_noise(table, images)["inside"].all()
    measured = stamps.measure_stamps(table, images)
    assert measured.loc[measured["resampled"], "noise_note"].str.startswith("resampled").all()
    scores = stamps.score_stamps(table, images, MeanDetector(), {"fpr_1e-2": {"threshold": 0.0}})
    injected, before, arcs, after = injections.inject_real(table, images, MeanDetector(), real_config)
    assert "example_a.fits" not in set(injected["host"])  # the galaxy of temp_small, served twice
    entries = tables.read_lists(real_config)
    lists = tables.summarise_systems(group_systems(entries, 3.0))
    survey = tables.describe_tables(real_config)
    page = overview.make_overview(lists, tables.compare_matches(entries), survey, table, measured, scores, injected)
    assert len(page) == len(tables.list_files()) + 1 and page.notna().all(axis=None)
    assert set(page["outcome"]) == {"read", "read in part", "refused", "injected"}
    wide = (injected["arc"] == "wide").to_numpy()
    assert len(figures.plot_injections(before[wide], arcs[wide], after[wide], injected[wide]).axes) == 4 * wide.sum()
    assert len(figures.plot_stamps(images, measured.merge(scores[["file", "logit"]], on="file")).axes) >= len(images)


def test_a_copy_cut_short_is_refused_not_measured(tmp_path, real_data, monkeypatch):
    name = "ls-dr10-lens-cutouts/sample_cutout.npz"
    target = tmp_path / name
    target.parent.mkdir()
    shutil.copyfile(real_data / name, target)
    target.write_bytes(target.read_bytes()[:50_000])
    described = pd.DataFrame({"file": [name], "dataset": ["dr10_lens_stamps"], "sha256": [""]})
    monkeypatch.setattr(stamps, "list_files", lambda: described)
    config = dataclasses.replace(load_config("real", "cpu"), data_root=str(tmp_path))
    table, images = stamps.read_stamps(config)
    assert len(images) == 0 and "damaged NPZ file" in table["reason"][0]
