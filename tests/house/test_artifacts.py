"""Stages: hashed inputs, atomic writes, a manifest that changes only with the result."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from lensaudit.artifacts import Stage, UserError, read_json, read_table, write_atomic, write_json, write_table
from lensaudit.config import load_config
from lensaudit.shards import map_shards


def make_upstream(config, value=1.0):
    stage = Stage("01_a", config, sections=("sampling",))
    stage.write_table("t.parquet", pd.DataFrame({"x": [value]}), units={"x": "arcsec"})
    stage.close()
    return stage


def test_manifest_changes_only_with_the_result(scratch_root):
    config = load_config("smoke")
    stage = make_upstream(config)
    manifest = stage.folder / "manifest.json"
    os.utime(manifest, (1, 1))
    make_upstream(config)
    assert manifest.stat().st_mtime == 1
    make_upstream(config, value=2.0)
    assert manifest.stat().st_mtime > 1
    text = manifest.read_text()
    assert "finished" not in text and str(scratch_root) not in text


def test_changed_input_is_refused(scratch_root):
    config = load_config("smoke")
    upstream = make_upstream(config)
    stage = Stage("02_b", config, inputs=["01_a"])
    assert stage.read_table("01_a", "t.parquet").x[0] == 1.0
    write_table(upstream.folder / "t.parquet", pd.DataFrame({"x": [3.0]}))
    with pytest.raises(UserError, match="01_a/t.parquet"):
        Stage("02_b", config, inputs=["01_a"]).input("01_a", "t.parquet")
    with pytest.raises(UserError, match="without declaring"):
        Stage("02_b", config).input("01_a", "t.parquet")


def test_config_section_stands_in_the_manifest(scratch_root):
    config = load_config("smoke")
    first = make_upstream(config).close()["config"]
    other = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, n_train=1))
    assert make_upstream(other).close()["config"] != first


def test_registered_but_unwritten_output_is_an_error(scratch_root):
    stage = Stage("01_a", load_config("smoke"))
    stage.output("missing.parquet")
    with pytest.raises(UserError, match="missing.parquet"):
        stage.close()


def test_kill_during_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "value.json"
    write_json(target, {"a": 1})
    code = (
        "import sys, time\nfrom lensaudit.artifacts import write_atomic\n"
        "with write_atomic(sys.argv[1]) as t:\n"
        "    t.write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "writing"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert read_json(target) == {"a": 1}
    write_json(target, {"a": 2})
    assert read_json(target) == {"a": 2}


def test_failed_block_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), write_atomic(tmp_path / "x.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_same_table_same_bytes_and_units(tmp_path):
    import pyarrow.parquet as pq

    table = pd.DataFrame({"theta_E": np.linspace(0, 1, 5), "name": list("abcde")})
    for name in ("a.parquet", "b.parquet"):
        write_table(tmp_path / name, table, units={"theta_E": "arcsec"})
        time.sleep(0.01)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert pq.read_schema(tmp_path / "a.parquet").field("theta_E").metadata == {b"unit": b"arcsec"}
    pd.testing.assert_frame_equal(read_table(tmp_path / "a.parquet"), table, check_dtype=False)
    with pytest.raises(UserError, match="nope"):
        read_table(tmp_path / "a.parquet", ["nope"])


def square(x):
    return x * x


def test_shards_keep_order_over_workers():
    expected = [0, 1, 4, 9, 16, 25, 36]
    assert map_shards(square, range(7), workers=2) == map_shards(square, range(7), workers=1) == expected
