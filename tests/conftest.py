"""Shared fixtures: the project's root and, when it is there, the folder of real data."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def root():
    return ROOT


@pytest.fixture
def real_data():
    folder = Path(os.environ.get("LENSAUDIT_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "PROVENANCE.md").is_file():
        pytest.skip("real data not present")
    return folder


@pytest.fixture
def scratch_root(tmp_path, monkeypatch):
    """A project root of its own, so that a test's stages never touch the tree's artifacts."""
    monkeypatch.setenv("LENSAUDIT_ROOT", str(tmp_path))
    return tmp_path
