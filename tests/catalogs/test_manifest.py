"""The training manifest's schema."""

import numpy as np
import pandas as pd
import pytest

from lensaudit.artifacts import UserError, read_table, write_table
from lensaudit.catalogs import manifest

VALUES = {"string": "x", "int64": np.int64(1), "bool": True, "double": 1.5}


def make_manifest(n=3):
    table = pd.DataFrame({name: [VALUES[kind]] * n for name, kind in manifest.SCHEMA.items()})
    table["cutout_path"] = [f"stamps/shard-0000.npy#{k}" for k in range(n)]
    return table.assign(label=np.int64(1), split="train", tier="A")


def test_full_schema_passes_and_survives_parquet(tmp_path):
    table = make_manifest()
    assert manifest.validate_manifest(table) is table
    write_table(tmp_path / "m.parquet", table)
    manifest.validate_manifest(read_table(tmp_path / "m.parquet"))
    manifest.validate_manifest(table[list(manifest.REQUIRED)])
    manifest.validate_manifest(table.assign(healpix_128=np.int64(5), extra="anything"))


@pytest.mark.parametrize(("change", "words"), [
    ({"label": [0, 1, 2]}, "label is not 0 or 1 in 1 row(s), first 'stamps/shard-0000.npy#2'"),
    ({"label": [0.0, 1.0, 1.0]}, "column label is float64, not int64"),
    ({"split": ["train", "val", "dev"]}, "split is not one of"),
    ({"sample_weight": [1.0, -1.0, np.nan]}, "sample_weight is not a number >= 0 in 2 row(s)"),
    ({"cutout_path": ["a", "a", "b"]}, "cutout_path occurs twice in 2 row(s)"),
    ({"cutout_path": ["a", "", "b"]}, "cutout_path is empty"),
    ({"cutout_path": ["a", "/" + "data/b", "c"]}, "cutout_path is absolute"),
    ({"tier": ["A", "A", "N1"]}, "tier does not fit the label"),
    ({"ra": ["1", "2", "3"]}, "not double"),
    ({"quality_ok": [1, 0, 1]}, "not bool"),
])  # fmt: skip
def test_every_fault_is_named(change, words):
    with pytest.raises(UserError) as error:
        manifest.validate_manifest(make_manifest().assign(**change))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_missing_columns_are_named_together():
    with pytest.raises(UserError, match="cutout_path, sample_weight missing"):
        manifest.validate_manifest(make_manifest().drop(columns=["cutout_path", "sample_weight"]))


def test_cast_mends_widths_only():
    narrow = make_manifest().assign(nobs_z=np.array([1, 2, 3], np.int16), ra=np.array([1, 2, 3], np.float32))
    manifest.validate_manifest(manifest.cast_manifest(narrow))
    with pytest.raises(UserError, match="column ra is not double"):
        manifest.cast_manifest(make_manifest().assign(ra=["a", "b", "c"]))
