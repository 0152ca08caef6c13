"""Sweep tables: dialects, byte order, padding, missing columns, damaged files."""

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from lensaudit.artifacts import UserError
from lensaudit.catalogs import sweeps

BANDS = "GRIZ"


def sweep_columns(n, seed=0):
    """Columns of a DR10 sweep, as name, FITS format and values."""
    rng = np.random.default_rng(seed)
    columns = [
        ("RELEASE", "I", np.full(n, 10000)), ("BRICKID", "J", np.full(n, 330000 + seed)),
        ("BRICKNAME", "8A", np.full(n, b"0001p000")), ("OBJID", "J", np.arange(n)),
        ("TYPE", "3A", rng.choice([b"SER", b"DEV", b"REX", b"EXP", b"PSF"], n)), ("RA", "D", rng.uniform(0, 1, n)),
        ("DEC", "D", rng.uniform(0, 1, n)), ("DCHISQ", "5E", np.zeros((n, 5))), ("EBV", "E", np.full(n, 0.03)),
    ]  # fmt: skip
    for band in BANDS:
        for name in ("FLUX", "FLUX_IVAR", "MW_TRANSMISSION", "FRACFLUX", "FRACIN", "PSFSIZE", "PSFDEPTH", "GALDEPTH"):
            columns.append((f"{name}_{band}", "E", rng.uniform(0.5, 60, n)))
        columns.append((f"NOBS_{band}", "I", rng.integers(0, 12, n)))
    columns += [(name, "E", rng.uniform(0, 1, n)) for name in ("SHAPE_R", "SHAPE_E1", "SHAPE_E2", "SERSIC", "FLUX_W1")]
    return [*columns, ("MASKBITS", "J", rng.integers(0, 1 << 16, n)), ("FITBITS", "I", np.zeros(n))]


def write_sweep(path, columns):
    hdu = fits.BinTableHDU.from_columns([fits.Column(name=a, format=f, array=v) for a, f, v in columns])
    hdu.writeto(path, overwrite=True)
    return path


def test_values_come_back_in_native_order(tmp_path):
    path = write_sweep(tmp_path / "sweep-000p000-010p005.fits", sweep_columns(50))
    table, raw = sweeps.read_sweep(path), fits.getdata(path, 1)
    for name, kind in sweeps.COLUMNS.items():
        if kind != "s":
            values = table[name].to_numpy()
            assert values.dtype.isnative
            np.testing.assert_array_equal(values, raw[name.upper()])
    assert list(table["type"]) == list(raw["TYPE"]) and set(table["type"]) <= {"SER", "DEV", "REX", "EXP", "PSF"}
    assert table["galaxy_id"].iloc[7] == "10000-330000-7" and table["row_index"].iloc[7] == 7
    np.testing.assert_allclose(table["mag_z"], 22.5 - 2.5 * np.log10(raw["FLUX_Z"].astype(float)))
    np.testing.assert_allclose(10 ** ((22.5 - table["depth_r"]) / 2.5), 5 / np.sqrt(raw["PSFDEPTH_R"].astype(float)))
    assert table.attrs["missing"] == []


def test_non_positive_flux_has_no_magnitude(tmp_path):
    columns = dict((a, (f, v)) for a, f, v in sweep_columns(3))
    columns["FLUX_Z"] = ("E", np.array([0.0, -2.0, np.nan]))
    path = write_sweep(tmp_path / "s.fits", [(a, f, v) for a, (f, v) in columns.items()])
    assert sweeps.read_sweep(path)["mag_z"].isna().all()


@pytest.mark.parametrize(("format_", "pad"), [("4A", b"%-4s"), ("3A", b"%s"), ("4A", b"%s")])
def test_type_padding_and_mask_width(tmp_path, format_, pad):
    columns = [c for c in sweep_columns(4) if c[0] not in ("TYPE", "MASKBITS")]
    columns.append(("TYPE", format_, np.array([pad % t for t in (b"PSF", b"DEV", b"REX", b"SER")])))
    columns.append(("MASKBITS", "I", np.array([0, 2, 2048, 8192])))
    table = sweeps.read_sweep(write_sweep(tmp_path / "old.fits", columns))
    assert list(table["type"]) == ["PSF", "DEV", "REX", "SER"]
    assert table["maskbits"].dtype == np.int32 and list(table["maskbits"]) == [0, 2, 2048, 8192]


def test_all_missing_columns_are_named_at_once(tmp_path):
    lost = ("PSFSIZE_R", "MASKBITS", "NOBS_Z")
    path = write_sweep(tmp_path / "cut.fits", [c for c in sweep_columns(3) if c[0] not in lost])
    with pytest.raises(UserError, match="cut.fits: column.*MASKBITS, NOBS_Z, PSFSIZE_R missing"):
        sweeps.read_sweep(path)
    table = sweeps.read_sweep(path, require=("ra", "dec"))
    assert set(table.attrs["missing"]) == {name.lower() for name in lost}
    assert table["psfsize_r"].isna().all() and (table["maskbits"] == -1).all()


def test_wrong_kind_of_column(tmp_path):
    columns = [c for c in sweep_columns(3) if c[0] != "NOBS_G"] + [("NOBS_G", "E", np.ones(3))]
    with pytest.raises(UserError, match="NOBS_G holds .*float32, not integers"):
        sweeps.read_sweep(write_sweep(tmp_path / "kind.fits", columns))


def test_damaged_files_give_one_line(tmp_path):
    whole = write_sweep(tmp_path / "whole.fits", sweep_columns(400)).read_bytes()
    cases = {"truncated.fits": whole[: len(whole) // 2], "empty.fits": b"", "noise.fits": b"not a table" * 1000,
             "header.fits": whole[:2880], "cut_header.fits": whole[:4000]}  # fmt: skip
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError) as error:
            sweeps.read_sweep(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="absent.fits"):
        sweeps.read_sweep(tmp_path / "absent.fits")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match="bad.parquet"):
        sweeps.read_sweep(tmp_path / "bad.parquet")


def test_parquet_holds_the_same_table(tmp_path):
    path = write_sweep(tmp_path / "s.fits", sweep_columns(20))
    raw = fits.getdata(path, 1)
    native = {n: np.asarray(raw[n].astype(raw[n].dtype.newbyteorder("="))) for n in raw.names if n != "DCHISQ"}
    pd.DataFrame(native).to_parquet(tmp_path / "s.parquet")
    first, second = sweeps.read_sweep(path), sweeps.read_sweep(tmp_path / "s.parquet")
    columns = [c for c in first if c != "sweep_file"]
    pd.testing.assert_frame_equal(first[columns], second[columns])


def test_many_files_and_joins(tmp_path):
    paths = [write_sweep(tmp_path / f"sweep-{k:03d}p000-{k + 5:03d}p005.fits", sweep_columns(10, k)) for k in range(3)]
    table = sweeps.read_sweeps(paths)
    assert len(table) == 30 and table["galaxy_id"].is_unique
    with pytest.raises(UserError, match="occurs twice"):
        sweeps.read_sweeps([paths[0], paths[0]])
    with pytest.raises(UserError, match="no sweep file"):
        sweeps.read_sweeps([])
    ids = table["galaxy_id"]
    footprint = pd.DataFrame({"galaxy_id": ids[5:], "footprint_weight": 2.0, "quarter": 3})
    joined = sweeps.join_survey(table, pd.DataFrame({"galaxy_id": ids[::-1], "z_phot": np.arange(30.0)}), footprint)
    assert list(joined["galaxy_id"]) == list(ids) and list(joined["z_phot"]) == list(np.arange(30.0)[::-1])
    assert list(joined["quarter"][:6]) == [-1] * 5 + [3] and joined["footprint_weight"].iloc[0] == 1.0


def test_real_dr8_says_what_it_lacks(real_data):
    for path in sorted((real_data / "ls-dr8-sweep-tractor").glob("*.fits")):
        with pytest.raises(UserError, match="PSFSIZE_G, PSFSIZE_R, PSFSIZE_Z missing"):
            sweeps.read_sweep(path)
        table = sweeps.read_sweep(path, require=("ra", "dec", "type", "flux_z", "nobs_z", "maskbits", "shape_r"))
        assert len(table) == 6 and set(table["type"]) <= {"EXP", "DEV", "REX", "PSF"}
        assert (table.loc[table["type"] == "DEV", "sersic"] == 4).all()
        assert table["shape_r"][table["type"] != "PSF"].gt(0).all()
        assert table["depth_r"].between(23.7, 25.2).all()


def test_real_dr9_row(real_data):
    row = sweeps.read_sweep(real_data / "ls-dr9-tractor-1row" / "tractor-1054p567.fits").iloc[0]
    assert row["type"] == "REX" and row["release"] == 9011
    assert [round(float(row[f"psfsize_{b}"]), 2) for b in "grz"] == [2.61, 1.71, 1.22]
    assert row["depth_r"] == pytest.approx(23.82, abs=0.005)
