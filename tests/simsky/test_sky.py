"""The sky as a whole: a small one is made once, then its tables, catalogues, lenses and stamps are looked at."""

import dataclasses
import io
import pickle

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from scipy.spatial import cKDTree

from lensaudit import survey
from lensaudit.artifacts import Stage, UserError, read_json, read_table
from lensaudit.config import load_config
from lensaudit.simsky import bricks, lenses, sky, tables
from lensaudit.simsky.pixels import SkyPixels

ROOT = survey.find_root()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A sky of 24 bricks with 30 catalogued lenses."""
    root = tmp_path_factory.mktemp("root")
    (root / "data_manifests").symlink_to(ROOT / "data_manifests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSAUDIT_ROOT", str(root))
        config = load_config("smoke")
        small_sky = dataclasses.replace(config.sky, n_bricks=24, n_lenses=30, workers=1, galaxies_per_brick=(40, 60))
        config = dataclasses.replace(config, sky=small_sky)
        stage = Stage("00_survey", config, sections=("sky",))
        summary = sky.make_sky(config, survey.simulate_positions(config.seed), stage)
        stage.close()
    return config, stage.folder, summary


def read(folder, name):
    return read_table(folder / f"{name}.parquet")


def read_sweeps(folder):
    return np.concatenate([fits.getdata(p, 1) for p in sorted((folder / "sweep").glob("*.fits"))])


def test_sweeps_have_the_dr10_schema(small):
    _, folder, _ = small
    files = sorted((folder / "sweep").glob("*.fits"))
    with fits.open(files[0]) as hdus:
        hdus.verify("exception")
        columns = {c.name: c.format for c in hdus[1].columns}
    expected = {"RELEASE": "I", "BRICKID": "J", "BRICKNAME": "8A", "OBJID": "J", "TYPE": "3A", "RA": "D", "DEC": "D",
                "DCHISQ": "5E", "EBV": "E", "MASKBITS": "J", "FITBITS": "I", "NOBS_G": "I", "ANYMASK_I": "I",
                "ALLMASK_Z": "I",
                "SHAPE_R": "E", "SHAPE_E1": "E", "SERSIC": "E", "REF_CAT": "2A", "REF_ID": "K"}  # fmt: skip
    for name in ("FLUX", "FLUX_IVAR", "MW_TRANSMISSION", "RCHISQ", "FRACFLUX", "FRACMASKED", "FRACIN", "FIBERFLUX",
                 "FIBERTOTFLUX", "PSFSIZE", "PSFDEPTH", "GALDEPTH"):  # fmt: skip
        expected |= {f"{name}_{band}": "E" for band in "GRIZ"}
    assert {k: columns.get(k) for k in expected} == expected
    for path in files:
        data = fits.getdata(path, 1)
        assert np.all(bricks.name_sweeps(data["RA"], data["DEC"]) == path.name)
        assert path.stat().st_size % 2880 == 0
    assert bricks.name_sweeps([315.0, 0.1], [-2.0, 12.0]).tolist() == [
        "sweep-310m005-320p000.fits", "sweep-000p010-010p015.fits"]  # fmt: skip


def test_catalogue_agrees_with_truth(small):
    _, folder, _ = small
    data, truth = read_sweeps(folder), read(folder, "truth/galaxies").set_index("galaxy_id")
    ids = [f"{a}-{b}-{c}" for a, b, c in zip(data["RELEASE"], data["BRICKID"], data["OBJID"], strict=True)]
    assert len(set(ids)) == len(ids) == len(truth)
    truth = truth.loc[ids]
    pull = (data["FLUX_R"] - truth["flux_r"]) / np.hypot(1 / np.sqrt(data["FLUX_IVAR_R"]), 0.005 * truth["flux_r"])
    assert pull.std() == pytest.approx(1.0, abs=0.1)
    # Angles: Tractor counts from north to east, the image is mirrored, so both components change sign.
    round_ = data["TYPE"] == "SER"
    e = (1 - truth["q"]) / (1 + truth["q"])
    assert np.allclose(data["SHAPE_E1"][round_], (-e * np.cos(2 * truth["pa"]))[round_], atol=0.06)
    assert np.allclose(data["SHAPE_E2"][round_], (-e * np.sin(2 * truth["pa"]))[round_], atol=0.06)
    assert data["NOBS_R"].min() >= 1 and (data["FLUX_R"] <= 0).mean() < 0.05


def test_catalogued_lenses_sit_at_given_positions(small):
    config, folder, summary = small
    known = read(folder, "truth/lenses").query("is_catalogued")
    positions = survey.simulate_positions(config.seed)
    for ra, dec in known[["ra", "dec"]].to_numpy():
        distance = np.hypot((positions["ra"] - ra) * np.cos(np.radians(dec)), positions["dec"] - dec).min() * 3600
        assert distance < 0.5
    assert (known["position_source"] == "real").all()
    assert len(known) + summary["n_wrong"] == config.sky.n_lenses
    assert summary["n_tier_a"] == round(0.6 * config.sky.n_lenses)


def test_lens_truth_is_physical(small):
    _, folder, summary = small
    table = read(folder, "truth/lenses")
    assert (table["theta_E"] > 0.5).all() and (table["z_source"] > table["z_lens"]).all()
    assert (table["n_images"] >= 2).all() and np.isfinite(table.select_dtypes(float)).all().all()
    sigma = table["theta_E"] / (4 * np.pi * (table["sigma_v"] / 299792.458) ** 2 * 206264.806)  # D_ls/D_s
    assert sigma.between(0.0, 1.0).all()
    flux = 10 ** (0.4 * (22.5 - table["mag_source_r"])) * table["mu"]
    ratio = table["flux_lensed_r"] / flux
    assert ratio.between(0.4, 1.0).all()  # extinction only
    assert 0.002 < summary["n_undiscovered"] / summary["n_z20"] < 0.03
    assert 0.005 < summary["accepted_fraction"] < 0.10


def count_neighbours(table):
    """Number of other galaxies at 1.5-6 arcsec of each row."""
    tree = cKDTree(tables.unit_vectors(table["ra"], table["dec"]))
    inner, outer = (np.array([len(r) for r in tree.query_ball_point(tree.data, np.radians(d / 3600.0))])
                    for d in (1.5, 6.0))  # fmt: skip
    return outer - inner


def test_lenses_have_companions_as_often_as_field_galaxies():
    # 250 bricks with 4 lenses or wrong entries of each kind: rates of about 8 per cent, half of it by chance.
    config, rng = load_config("smoke"), np.random.default_rng(5)
    box = pd.DataFrame({"ra1": 10.0 + 0.25 * np.arange(250), "dec1": -5.0})
    box = box.assign(ra2=box["ra1"] + 0.25, dec2=box["dec1"] + 0.25)
    spots = {}
    for name in ("found", "spectroscopic", "undiscovered", "wrong"):
        table = sky._scatter(rng, pd.DataFrame({"brick": np.repeat(np.arange(250), 4)}), box)
        spots[name] = table.assign(quarter=sky._find_quarter(table, box), role=name)
    full = dataclasses.replace(config.sky, galaxies_per_brick=(200, 220))
    galaxies = sky._gather_galaxies(1, box, full, *spots.values())
    galaxies = galaxies[galaxies["kind"] != "star"].reset_index(drop=True)
    beside = count_neighbours(galaxies) > 0
    early = galaxies["role"].isna() & (galaxies["n_sersic"] > 2)
    expected, n_early = beside[early].mean(), early.sum()
    for own in (galaxies["role"].notna(), *(galaxies["role"] == name for name in spots)):
        sigma = np.sqrt(expected * (1 - expected) * (1 / own.sum() + 1 / n_early))
        assert abs(beside[own].mean() - expected) < 3 * sigma, galaxies["role"][own].unique()


def test_companions_of_lenses_are_in_their_stamps(small):
    config, folder, _ = small
    truth, source = read(folder, "truth/galaxies"), SkyPixels(folder, config.seed)
    points = tables.unit_vectors(truth["ra"], truth["dec"])
    lens = np.flatnonzero(truth["is_lens"])
    near = cKDTree(points).query_ball_point(points[lens], np.radians(6.0 / 3600.0))
    pairs = [(i, j) for i, rows in zip(lens, near, strict=True) for j in rows if j != i]
    assert len(pairs) > 1 and all(truth["brickid"][i] == truth["brickid"][j] for i, j in pairs)
    for i, j in pairs[:3]:
        whole, _ = source.draw_noiseless(truth["galaxy_id"][i])
        bright = source._tables["flux_r"]
        source._tables["flux_r"] = np.where(np.arange(len(truth)) == j, 0.0, bright)
        without, _ = source.draw_noiseless(truth["galaxy_id"][i])
        source._tables["flux_r"] = bright
        assert (whole[1] - without[1]).sum() == pytest.approx(bright[j], rel=0.1)  # wings leave the stamp


def test_wrong_entries_are_confusers(small):
    _, folder, _ = small
    truth = read(folder, "truth/galaxies")
    assert truth["is_wrong"].any() and truth.loc[truth["is_wrong"], "kind"].isin(["ring", "spiral", "merger"]).all()
    assert not (truth["is_wrong"] & truth["is_lens"]).any()
    shares = truth["kind"].value_counts(normalize=True)
    assert shares.drop(["galaxy", "star", "lens"]).sum() < 0.08


def test_blank_bricks_hold_no_known_lens(small):
    _, folder, _ = small
    blank = read(folder, "truth/conditions").query("is_blank")["brickid"].unique()
    truth = read(folder, "truth/galaxies")
    assert len(blank) == 2
    assert not truth.loc[truth["brickid"].isin(blank), ["is_catalogued", "is_wrong"]].any().any()


def test_catalogues_have_the_real_schema(small):
    _, folder, _ = small
    lenscat = pd.read_csv(folder / "catalogs/lenscat.csv")
    assert list(lenscat) == ["name", "RA [deg]", "DEC [deg]", "zlens", "type", "grading", "ref"]
    assert set(lenscat["grading"]) == {"confident", "probable"} and (lenscat["zlens"] == "-").any()
    assert list(pd.read_csv(folder / "catalogs/spectroscopic.csv")) == ["name", "RA", "DEC", "grade"]
    assert list(read(folder, "footprint")) == ["galaxy_id", "footprint_weight", "quarter"]
    assert {"ra", "dec", "mag"} <= set(read(folder, "stars"))


def test_stamps_do_not_depend_on_the_batch(small):
    config, folder, _ = small
    source = SkyPixels(folder, config.seed)
    ids = read(folder, "truth/galaxies")[["galaxy_id"]].iloc[5:900:60]
    lens = read(folder, "truth/lenses")[["galaxy_id"]].iloc[:2]
    table = pd.concat([ids, lens], ignore_index=True)
    together, reasons = source.read(table)
    assert together.dtype == np.float32 and together.shape[1:] == (3, 101, 101) and set(reasons) == {""}
    fresh = pickle.loads(pickle.dumps(source))
    for k in np.random.default_rng(0).permutation(len(table)):
        alone, _ = fresh.read(table.iloc[[k]])
        assert np.array_equal(alone[0], together[k])


def test_unknown_object_has_a_reason(small):
    config, folder, _ = small
    images, reasons = SkyPixels(folder, config.seed).read(pd.DataFrame({"galaxy_id": ["10000-1-1"]}))
    assert "10000-1-1" in reasons[0] and not images.any()
    with pytest.raises(UserError, match="galaxy_id"):
        SkyPixels(folder, config.seed).read(pd.DataFrame({"id": [1]}))


def test_stamp_holds_the_arcs_truth_promises(small):
    config, folder, _ = small
    source, table = SkyPixels(folder, config.seed), read(folder, "truth/lenses").query("is_catalogued").iloc[:4]
    conditions = read(folder, "truth/conditions").set_index(["brickid", "quarter"])
    truth = read(folder, "truth/galaxies").set_index("galaxy_id")
    for row in table.itertuples():
        _, arcs = source.draw_noiseless(row.galaxy_id)
        assert arcs[1].sum() == pytest.approx(row.flux_lensed_r, rel=0.03)
        home = truth.loc[row.galaxy_id]
        sigma = conditions.loc[(home.brickid, home.quarter), "sigma_pix_r"]
        assert np.sqrt(np.sum(arcs[1] ** 2)) / sigma == pytest.approx(row.snr_true, rel=0.02)


def test_sky_noise_of_a_stamp_matches_its_depth(small):
    # Robust RMS of the empty corner pixels over the white-equivalent sigma is 0.894, the Lanczos kernel's.
    config, folder, _ = small
    truth = read(folder, "truth/galaxies")
    conditions = read(folder, "truth/conditions").set_index(["brickid", "quarter"])
    rows = truth[(truth["kind"] == "galaxy") & (truth["R"] < 1.0)].iloc[::40].iloc[:25]
    images, _ = SkyPixels(folder, config.seed).read(rows)
    ratios = []
    for image, row in zip(images, rows.itertuples(), strict=True):
        pixels = np.diff(image[1, :, ::5], axis=1).ravel() / np.sqrt(2)  # five pixels apart noise is independent
        ratios.append(1.4826 * np.median(np.abs(pixels)) / conditions.loc[(row.brickid, row.quarter), "sigma_pix_r"])
    assert np.median(ratios) == pytest.approx(0.894, abs=0.03)


def test_thinning_bound_holds(small):
    rows = lenses.draw_parents(np.random.default_rng(3), 1, 400)
    here = {"psfsize_r": 1.3, "fwhm_r": 1.05, "sigma_pix_r": 0.005, "psfdepth_r": 800.0, "mw_r": 0.9}
    snr = np.array([lenses.estimate_arcs(lenses.take_row(rows, k), here)[1] for k in range(400)])
    assert np.all(snr <= lenses.bound_snr(rows, here))


def test_discovery_rises_with_snr_and_separation():
    chance = lenses.discovery_probability("imaging", 1.2, np.array([5.0, 20.0, 80.0]), 1.0)
    assert np.all(np.diff(chance) > 0) and chance[-1] <= 0.95
    assert lenses.discovery_probability("imaging", 0.5, 80.0, 1.2) < 0.05 < chance[1]


def test_a_sky_without_room_says_so(tmp_path, monkeypatch):
    config = load_config("smoke")
    few = pd.DataFrame({"ra": [10.0, 20.0], "dec": [0.0, 5.0]})
    with pytest.raises(UserError, match="n_bricks"):
        bricks.choose_bricks(few, config.sky, 1)
    with pytest.raises(UserError, match="Dec"):
        bricks.merge_positions(few.assign(dec=60.0))


def test_missing_table_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"galaxies\.parquet"):
        SkyPixels(tmp_path, 1).read(pd.DataFrame({"galaxy_id": ["10000-1-1"]}))


def test_sky_is_the_same_whoever_makes_it(small):
    _, folder, summary = small
    assert summary == read_json(folder / "summary.json") | {"accepted_fraction": summary["accepted_fraction"]}
    task = (1, 12345, {"psfsize_r": 1.2, "fwhm_r": 1.0, "sigma_pix_r": 0.004, "psfdepth_r": 1500.0, "mw_r": 0.9}, 0)
    first, second = lenses.search_position(task), lenses.search_position(task)
    assert first == second


def test_lenscat_that_is_not_what_it_should_be(tmp_path, monkeypatch):
    broken = tmp_path / "catalog.csv"
    broken.write_text("name,RA\nx,1\n")
    with pytest.raises(UserError, match="DEC"):
        survey.read_positions(broken)


def test_lens_catalogue_falls_back(scratch_root, monkeypatch, capsys):
    (scratch_root / "data_manifests").symlink_to(ROOT / "data_manifests")
    monkeypatch.setattr(survey, "_download_wheel", lambda facts, folder, timeout: (None, "no network"))
    assert survey.fetch_lenscat() is None
    assert "simulated" in capsys.readouterr().err


def test_lens_catalogue_is_verified(scratch_root, monkeypatch):
    (scratch_root / "data_manifests").symlink_to(ROOT / "data_manifests")
    wheel = scratch_root / "lenscat.whl"
    wheel.write_bytes(io.BytesIO(b"not the wheel").getvalue())
    monkeypatch.setattr(survey, "_download_wheel", lambda facts, folder, timeout: (wheel, ""))
    with pytest.raises(UserError, match="sha256"):
        survey.fetch_lenscat()
    assert not (scratch_root / "data").exists()


def test_real_positions(real_data):
    positions = survey.read_positions(real_data / "lenscat" / "catalog.csv")
    inside = bricks.merge_positions(positions)
    assert 8000 < len(inside) < 11088
    assert set(tables.SCHEMA[0]) == {"RELEASE", "i2"}
