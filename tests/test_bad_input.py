"""Malformed FITS, NPZ, CSV, TOML, JSON and Parquet: one clear line from every reader, nothing left behind."""

import json
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from astropy.io import fits
from astropy.table import Table

from lensaudit import __main__ as command
from lensaudit.artifacts import Stage, UserError, load_dataset, read_json, read_table, write_json, write_table
from lensaudit.catalogs.lenses import read_catalog
from lensaudit.catalogs.sweeps import read_sweep
from lensaudit.config import load_config
from lensaudit.pixels.formats import Stamp, read_fits_cutout, read_stamp_npz, write_stamp_npz

HTML = b"<!doctype html><html><body>503 Service Unavailable</body></html>"
NOISE = bytes(range(256)) * 12


def read_lenscat(path):
    return read_catalog(path, "lenscat")


def read_published(path):
    return read_catalog(path, "published")


def read_slacs(path):
    return read_catalog(path, "slacs")


def read_literature(path):
    return read_catalog(path, "literature")


def read_profile(path):
    return load_config(str(path))


# Reader and the suffix its files have.
READERS = [
    (read_profile, ".toml"), (read_json, ".json"), (read_table, ".parquet"), (read_lenscat, ".csv"),
    (read_published, ".csv"), (read_slacs, ".cat"), (read_literature, ".parquet"), (read_sweep, ".fits"),
    (read_sweep, ".parquet"), (read_stamp_npz, ".npz"), (read_fits_cutout, ".fits"),
]  # fmt: skip
NAMES = [f"{r.__name__}{s}" for r, s in READERS]


def assert_one_line(caught, name):
    text = str(caught.value)
    assert name in text, f"does not name the file: {text}"
    assert "\n" not in text and 20 < len(text) < 400, text
    assert "Traceback" not in text


@pytest.mark.parametrize("reader, suffix", READERS, ids=NAMES)
@pytest.mark.parametrize("content", [HTML, NOISE, b""], ids=["html", "bytes", "empty"])
def test_a_file_of_another_kind(tmp_path, reader, suffix, content):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    if reader is read_profile and not content:
        assert reader(path) == load_config(str(path))  # an empty profile is the defaults
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError) as caught:
            reader(path)
    assert_one_line(caught, "broken")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("reader, suffix", READERS, ids=NAMES)
def test_a_file_that_is_not_there(tmp_path, reader, suffix):
    with pytest.raises(UserError) as caught:
        reader(tmp_path / f"absent{suffix}")
    assert_one_line(caught, "absent")


def make_lenscat(**changes):
    table = {"name": ["a", "b"], "RA [deg]": [1.0, 2.0], "DEC [deg]": [3.0, 4.0], "zlens": ["-", "0.4"],
             "type": "galaxy", "grading": "confident", "ref": "x"} | changes  # fmt: skip
    return pd.DataFrame(table)


@pytest.mark.parametrize("table, words", [
    (make_lenscat().drop(columns="grading"), ["grading", "missing"]),
    (make_lenscat(**{"RA [deg]": ["00:01:02", "2.0"]}), ["ra", "00:01:02", "decimal degrees"]),
    (make_lenscat(**{"DEC [deg]": [3.0, 95.0]}), ["dec", "95", "b"]),
    (make_lenscat(**{"RA [deg]": [None, 2.0]}), ["ra", "a"]),
], ids=["no column", "sexagesimal", "off the sky", "no value"])  # fmt: skip
def test_bad_catalogue_names_column_and_row(tmp_path, table, words):
    path = tmp_path / "lenses.csv"
    table.to_csv(path, index=False)
    with pytest.raises(UserError) as caught:
        read_lenscat(path)
    assert_one_line(caught, "lenses.csv")
    assert all(word in str(caught.value) for word in words)


def test_ragged_csv(tmp_path):
    path = tmp_path / "ragged.csv"
    path.write_text('name,RA,DEC,grade\na,1,2,A\nb,1,2,A,extra,extra,extra\n"c,1,2,A\n')
    with pytest.raises(UserError) as caught:
        read_published(path)
    assert_one_line(caught, "ragged.csv")


def test_unknown_catalogue_kind(tmp_path):
    with pytest.raises(UserError, match="kind 'sugohi' unknown; use one of lenscat"):
        read_catalog(tmp_path / "x.csv", "sugohi")


def test_bad_sweeps_name_the_column(tmp_path):
    path = tmp_path / "sweep-000p000-010p005.fits"
    Table({"RELEASE": np.array([10000], np.int16), "RA": [1.0]}).write(path)
    with pytest.raises(UserError, match="column.* BRICKID.* missing") as caught:
        read_sweep(path)
    assert "FLUX_R" in str(caught.value)
    Table({"RELEASE": np.array([10000], np.int16), "BRICKID": ["text"], "OBJID": [3], "RA": [1.0]}).write(
        path, overwrite=True)  # fmt: skip
    with pytest.raises(UserError, match="BRICKID"):
        read_sweep(path, require=("release", "brickid", "objid"))
    numbers = {name: np.arange(4, dtype=np.int32) for name in ("RELEASE", "BRICKID", "OBJID")}
    Table(numbers).write(path, overwrite=True)
    assert read_sweep(path, require=("brickid",))["brickid"].tolist() == [0, 1, 2, 3]
    path.write_bytes(path.read_bytes()[: -2880 + 20])
    with pytest.raises(UserError, match="truncated|not a readable") as caught:
        read_sweep(path, require=("brickid",))
    assert_one_line(caught, path.name)


@pytest.mark.parametrize("text, words", [
    ("[sky]\nn_brick = 3\n", ["n_brick", "unknown"]),
    ("[sky]\nn_bricks = 'many'\n", ["n_bricks", "many"]),
    ("sky = 3\n", ["sky", "section"]),
    ("[sky\n", ["not valid TOML"]),
    ("[sky]\nn_bricks = 3\nn_bricks = 4\n", ["not valid TOML"]),
    ("device = 'cpu'\n", ["device", "unknown"]),
])  # fmt: skip
def test_bad_profile_names_the_key(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_profile(path)
    assert_one_line(caught, "mine.toml")
    assert all(word in str(caught.value) for word in words)


def test_bad_dataset_description(scratch_root):
    folder = scratch_root / "data_manifests"
    folder.mkdir()
    (folder / "mine.toml").write_text("title = \n")
    for name, words in (("mine", "not valid TOML"), ("absent", "no such dataset description")):
        with pytest.raises(UserError, match=words) as caught:
            load_dataset(name)
        assert_one_line(caught, f"{name}.toml")


def test_table_without_a_column(tmp_path):
    write_table(tmp_path / "scores.parquet", pd.DataFrame({"galaxy_id": ["a"]}))
    with pytest.raises(UserError, match="column.* logit missing; it has galaxy_id") as caught:
        read_table(tmp_path / "scores.parquet", ["galaxy_id", "logit"])
    assert_one_line(caught, "scores.parquet")


# Nothing half-written -----------------------------------------------------------------------------------------------


def list_names(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_failed_writes_leave_the_old_file(tmp_path):
    stamp = Stamp("s", tuple("grz"), np.ones((3, 5, 5), np.float32))
    write_json(tmp_path / "a.json", {"x": 1})
    write_table(tmp_path / "b.parquet", pd.DataFrame({"x": [1]}))
    write_stamp_npz(tmp_path / "c.npz", stamp)
    before = {name: (tmp_path / name).read_bytes() for name in list_names(tmp_path)}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        write_table(tmp_path / "b.parquet", pd.DataFrame({"x": [1, object()]}))
    with pytest.raises(AttributeError):
        write_stamp_npz(tmp_path / "c.npz", Stamp("s", tuple("grz"), None))
    assert {name: (tmp_path / name).read_bytes() for name in list_names(tmp_path)} == before


def test_a_stage_that_meets_bad_input_makes_no_manifest(scratch_root):
    config = load_config("smoke")
    upstream = Stage("00_survey", config)
    upstream.write_table("lenses.parquet", pd.DataFrame({"x": [1]}))
    upstream.close()
    made = scratch_root / "artifacts" / "smoke" / "00_survey" / "lenses.parquet"
    made.write_bytes(made.read_bytes()[:-20])
    stage = Stage("01_crossmatch", config, inputs=["00_survey"])
    with pytest.raises(UserError, match="is not the file its manifest describes") as caught:
        stage.read_table("00_survey", "lenses.parquet")
    assert_one_line(caught, "lenses.parquet")
    assert list_names(stage.folder) == []
    (upstream.folder / "manifest.json").write_text('{"outputs": ')
    with pytest.raises(UserError, match="not valid JSON"):
        Stage("01_crossmatch", config, inputs=["00_survey"]).read_table("00_survey", "lenses.parquet")


def test_the_command_line_prints_one_line_and_no_traceback(tmp_path, capsys):
    bad = tmp_path / "mine.toml"
    bad.write_text("[sky]\nbricks = 3\n")
    for arguments in (["survey", "--profile", str(bad)], ["survey", "--profile", "nosuch"],
                      ["run", "11_nothing", "--profile", "smoke"]):  # fmt: skip
        assert command.main(arguments) == 2
        printed = capsys.readouterr().err.strip().splitlines()
        assert "lensaudit" in printed[-1] and "Traceback" not in "".join(printed)


def test_half_a_header_is_not_an_image(tmp_path):
    """A FITS file cut inside its header, and one whose data were never written."""
    path = tmp_path / "cut.fits"
    fits.PrimaryHDU(np.ones((3, 40, 40), np.float32), fits.Header({"BANDS": "grz"})).writeto(path)
    whole = path.read_bytes()
    for size in (80, 700, 2880, 5760):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError) as caught:
            read_fits_cutout(path)
        assert_one_line(caught, "cut.fits")


def test_json_that_is_no_manifest(scratch_root):
    folder = scratch_root / "artifacts" / "smoke" / "00_survey"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"outputs": {}}))
    stage = Stage("01_crossmatch", load_config("smoke"), inputs=["00_survey"])
    with pytest.raises(UserError, match="made no lenses.parquet"):
        stage.input("00_survey", "lenses.parquet")
