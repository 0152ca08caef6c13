"""A data root becomes the layout of the survey stage, and what it lacks is empty, not missing."""

import dataclasses

import pytest

from lensaudit.artifacts import UserError, read_json, read_table
from lensaudit.config import load_config
from lensaudit.survey import SIDE_TABLES, make_survey


@pytest.fixture
def config(tmp_path, scratch_root):
    folder = tmp_path / "mine"
    folder.mkdir()
    return dataclasses.replace(load_config("dr10"), data_root=str(folder))


def fill(config, *names):
    from pathlib import Path

    for name in names:
        (Path(config.data_root) / name).write_text("content")


def test_layout_is_complete(config):
    fill(config, "sweep-000m005-010p000.fits", "catalog.csv")
    stage = make_survey(config)
    outputs = set(read_json(stage.folder / "manifest.json")["outputs"])
    assert {"sweep/sweep-000m005-010p000.fits", "catalogs/lenscat.csv", "catalogs/spectroscopic.csv"} <= outputs
    for name, columns in SIDE_TABLES.items():
        table = read_table(stage.folder / f"{name}.parquet", list(columns))
        assert len(table) == 0


@pytest.mark.parametrize(("names", "word"), [
    ((), "sweep-"), (("sweep-1.fits",), "put exactly one"), (("sweep-1.fits", "lenscat.csv", "catalog.csv"), "2 files"),
])
def test_what_lacks_is_named(config, names, word):
    fill(config, *names)
    with pytest.raises(UserError, match=word):
        make_survey(config)


def test_a_root_that_is_not_there(config):
    with pytest.raises(UserError, match="no such folder"):
        make_survey(dataclasses.replace(config, data_root=config.data_root + "x"))
