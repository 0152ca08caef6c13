"""The smoke profile end to end: the graph runs from catalogues to numbers, and a second make does nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KEYS = {"recall", "recall_lower", "recall_upper", "predicted", "predicted_lower", "predicted_upper", "n_lenses",
        "n_unsupported", "fpr", "closes", "tertiles", "twins", "grid", "controls", "verdict", "detector"}  # fmt: skip


def run_make(*arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    command = ["make", "--no-print-directory", f"PY={sys.executable}", "PROFILE=smoke", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_smoke_profile_end_to_end():
    started = time.monotonic()
    done = run_make("summary")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    print(f"smoke: {time.monotonic() - started:.0f} s")
    folder = ROOT / "artifacts" / "smoke"
    closure = json.loads((folder / "07_completeness" / "closure.json").read_text())
    assert KEYS <= set(closure) and (KEYS - {"controls"}) <= set(closure["fpr_1e-3"])
    assert closure["closes"] is False and closure["verdict"] in ("too few", "does not close", "inconclusive")
    assert "n_eff" in closure["grid"]
    again = run_make("summary")
    assert again.returncode == 0 and "done in" not in again.stderr
    for manifest in folder.glob("*/manifest.json"):
        text = manifest.read_text()
        assert str(ROOT) not in text and "finished" not in text
