"""Stamps in shards: nothing lost, resumed after a kill, the same bytes for any number of workers, read by key."""

import dataclasses
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lensaudit.artifacts import Stage, UserError
from lensaudit.config import load_config
from lensaudit.pixels.store import make_manifest, open_store, write_stamps


class NoiseSource:
    """Stamps that are a function of objid; object 3 fails."""

    def __init__(self, identity="noise-1"):
        self.identity, self.calls = identity, 0

    def read(self, galaxies):
        self.calls += 1
        streams = [np.random.default_rng(int(i)) for i in galaxies["objid"]]
        images = np.stack([s.normal(0, 0.02, (3, 101, 101)) for s in streams]).astype(np.float32)
        return images, ["not in the footprint" if i == 3 else "" for i in galaxies["objid"]]


def make_galaxies(n=40):
    ids = np.arange(n)
    return pd.DataFrame({
        "galaxy_id": [f"10000-1-{i}" for i in ids], "objid": ids, "split": np.where(ids % 3 == 0, "val", "train"),
        "label": (ids % 5 == 0).astype(np.int64), "brickname": [f"{i % 4:04d}p000" for i in ids], "sample_weight": 1.0,
    })  # fmt: skip


def make_config(workers=1):
    config = load_config("smoke")
    return dataclasses.replace(config, cutouts=dataclasses.replace(config.cutouts, shard_rows=16, workers=workers))


def write(source=None, config=None, galaxies=None):
    config = config or make_config()
    stage = Stage("03_cutouts", config)
    index = write_stamps(stage, source or NoiseSource(), make_galaxies() if galaxies is None else galaxies, config)
    return index, stage.close()


def test_every_object_is_a_row_and_is_read_by_key(scratch_root):
    index, manifest = write()
    assert sorted(index["galaxy_id"]) == sorted(make_galaxies()["galaxy_id"])
    lost = index.set_index("galaxy_id").loc["10000-1-3"]
    assert lost["reason"] == "not in the footprint" and not lost["quality_ok"]
    assert index["quality_ok"].sum() == 39
    assert {"stamps.parquet", "stamps/shard-0000.npy", "stamps/shard-0002.npy"} <= set(manifest["outputs"])
    store = open_store(Stage("04_training", make_config(), inputs=["03_cutouts"]))
    rows = index.sample(frac=1, random_state=0)
    rows = rows[rows["quality_ok"]]
    objid = rows["galaxy_id"].str.rpartition("-")[2].astype(int)
    expected, _ = NoiseSource().read(pd.DataFrame({"objid": objid}))
    assert np.array_equal(store.read(rows["cutout_path"]), expected)
    assert np.array_equal(store.read_box(rows["cutout_path"], 65), expected[:, :, 18:83, 18:83])
    assert np.isnan(store.read([lost["cutout_path"]])).all()
    for path, message in (("stamps/shard-0000.npy", "not of the form"), ("stamps/shard-0000.npy#99", "row 99")):
        with pytest.raises(UserError, match=message):
            store.read([path])
    with pytest.raises(UserError, match="odd side"):
        store.read_box(rows["cutout_path"], 64)


def test_row_order_and_workers_change_no_byte(scratch_root):
    _, one = write()
    _, shuffled = write(galaxies=make_galaxies().sample(frac=1, random_state=2))
    for path in (scratch_root / "artifacts").rglob("shard-*"):
        path.unlink()
    _, two = write(config=make_config(workers=2))
    assert one["outputs"] == shuffled["outputs"] == two["outputs"]


def test_intact_shards_are_skipped_and_damaged_ones_made_again(scratch_root):
    write()
    again = NoiseSource()
    _, before = write(again)
    assert again.calls == 0
    damaged = scratch_root / "artifacts/smoke/03_cutouts/stamps/shard-0001.npy"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    mended = NoiseSource()
    _, after = write(mended)
    assert mended.calls == 1 and before["outputs"] == after["outputs"]
    other = NoiseSource("noise-2")
    write(other)
    assert other.calls == 3


def test_kill_while_a_shard_is_written_leaves_no_half_file(scratch_root):
    script = textwrap.dedent("""
        import os, signal, sys
        sys.path.insert(0, sys.argv[1])
        import test_store as t
        class Deadly(t.NoiseSource):
            def read(self, galaxies):
                if self.calls == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().read(galaxies)
        t.write(Deadly())
    """)
    done = subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = scratch_root / "artifacts/smoke/03_cutouts"
    assert [p.name for p in sorted((folder / "stamps").glob("shard*"))] == ["shard-0000.npy"]
    assert not (folder / "manifest.json").exists()
    source = NoiseSource()
    write(source)
    assert source.calls == 2  # the whole shard of the killed run is kept
    assert [p.name for p in sorted((folder / "stamps").iterdir())] == [f"shard-000{i}.npy" for i in range(3)]


def test_bad_sources_and_repeated_keys(scratch_root):
    class Small:
        identity = "small"

        def read(self, galaxies):
            return np.zeros((len(galaxies), 3, 64, 64), np.float32), [""] * len(galaxies)

    with pytest.raises(UserError, match="expected \\(16, 3, 101, 101\\)"):
        write(Small())
    with pytest.raises(UserError, match="10000-1-0 stands on more than one row"):
        write(galaxies=pd.concat([make_galaxies(), make_galaxies(1)]))


def test_manifest_joins_by_key(scratch_root):
    galaxies = make_galaxies().sample(frac=1, random_state=4)
    index, _ = write(galaxies=galaxies)
    manifest = make_manifest(galaxies, index, make_config())
    assert list(manifest["galaxy_id"]) == list(galaxies["galaxy_id"])
    paths = index.set_index("galaxy_id")["cutout_path"]
    assert (manifest["cutout_path"].to_numpy() == paths[manifest["galaxy_id"]].to_numpy()).all()
    with pytest.raises(UserError, match="differ in 1 galaxy_id"):
        make_manifest(galaxies.iloc[1:], index, make_config())
