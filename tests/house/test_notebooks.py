"""Notebooks are stripped, keep the skeleton and stay within their limits."""

import ast
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from lensaudit import graph

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda p: p.stem)
def notebook(request):
    return request.param


def code_cells(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [("".join(c["source"]), c) for c in cells if c["cell_type"] == "code"]


def test_chapters_are_complete():
    names = [n.stem[:2] for n in NOTEBOOKS]
    assert names == [f"{i:02d}" for i in range(1, 12)]


def test_stripped(notebook):
    assert all(not c["outputs"] and c["execution_count"] is None for _, c in code_cells(notebook))
    done = subprocess.run([sys.executable, "-m", "nbstripout", "--verify", str(notebook)], capture_output=True)
    assert done.returncode == 0, "run nbstripout on it"


def test_limits(notebook):
    sources = [s for s, _ in code_cells(notebook)]
    lengths = [len([line for line in s.splitlines() if line.strip()]) for s in sources]
    assert len(sources) <= 20
    assert statistics.median(lengths) <= 5
    assert sum(lengths) <= 150


def test_skeleton(notebook):
    book = json.loads(notebook.read_text(encoding="utf-8"))
    assert book["cells"][0]["cell_type"] == "markdown"
    first = "".join(book["cells"][0]["source"]).lower()
    assert "question" in first and "input" in first and "output" in first and "time" in first
    cells = code_cells(notebook)
    assert cells[0][1]["metadata"].get("tags") == ["parameters"]
    body = ast.parse(cells[0][0]).body
    assert {t.id for node in body for t in node.targets} == {"profile", "device", "data_root"}
    assert all(isinstance(node.value, ast.Constant) for node in body)
    assert "stage.close()" in cells[-1][0]
    assert graph.find_stage(notebook)[0] == notebook.stem


def test_argument_only(notebook):
    source = graph.read_code(notebook)
    for node in ast.walk(ast.parse(source)):
        assert not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.For, ast.While)), "belongs in the package"
        if isinstance(node, ast.If):
            assert "profile" not in ast.unparse(node.test)
    assert not re.search(r"[\"'](/|artifacts/|data/)", source), "no path string"
