"""The Makefile's edges equal the notebooks' declared inputs; the set-up files agree."""

import re
import tomllib
from pathlib import Path

from lensaudit import graph

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def makefile_edges():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return {m[1]: m[2].split() for m in re.finditer(r"^inputs_(\w+) := (.*)$", text, re.M)}


def test_makefile_edges_equal_declared_inputs():
    declared = dict(graph.find_stage(n) for n in NOTEBOOKS)
    assert {n.stem for n in NOTEBOOKS} == set(declared)
    edges = makefile_edges()
    assert set(edges) == set(declared)
    for name, inputs in declared.items():
        assert sorted(edges[name]) == sorted(inputs), name


def test_graph_flows_forward():
    for name, inputs in makefile_edges().items():
        assert all(i.partition("@")[0] < name for i in inputs), name


def test_calibration_never_reads_completeness():
    """Realism, which freezes the proposal, is upstream of completeness; nothing flows back."""
    edges = makefile_edges()
    assert "07_completeness" not in edges["06_injection_realism"]
    for name in ("03_cutouts", "04_training", "05_evaluation"):
        assert not {"06_injection_realism", "07_completeness"} & set(edges[name])


def test_truth_never_reaches_sampling_or_training():
    for notebook in NOTEBOOKS:
        if notebook.stem in ("01_crossmatch", "02_sampling", "03_cutouts", "04_training", "08_failure_modes"):
            assert "truth" not in graph.read_code(notebook), notebook.name


def test_lock_environment_and_pyproject_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([a-z0-9._-]+)==", lock, re.M))
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=\[; ]", w)[0].lower() for w in wanted}
    assert names <= pinned
    environment = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert re.findall(r"^\s+- (-r .*)$", environment, re.M) == ["-r requirements.lock"]
    assert "--hash=sha256:" in lock and "://" not in lock


def test_every_stage_has_modules():
    for notebook in NOTEBOOKS:
        files = graph.find_closure(graph.find_imports(graph.read_code(notebook)))
        assert "lensaudit/artifacts.py" in files and "lensaudit/config.py" in files, notebook.name
