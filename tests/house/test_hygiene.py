"""What may never stand in a tracked file."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INDEX_HOSTS = [r"pypi\.o" + "rg", r"pythonhosted\.o" + "rg", r"registry\.npmjs\.o" + "rg", r"deb\.debian\.o" + "rg",
               r"download\.pytorch\.o" + "rg", r"conda\.anaconda\.o" + "rg"]
ABSOLUTE = r"(?<![\w.:/~$}])/(?:work|farm|root|tmp|home|Users|mnt|data\d*)/[\w./-]+"


def tracked_files():
    out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if out.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in out.stdout.split("\0") if name and (ROOT / name).is_file()]


def texts():
    for path in tracked_files():
        if path.suffix in (".png", ".pdf", ".npz", ".npy", ".fits", ".parquet"):
            continue
        yield path, path.read_text(encoding="utf-8")


def test_no_index_host_and_no_absolute_path():
    for path, text in texts():
        for host in INDEX_HOSTS:
            assert not re.search(host, text), f"{path.relative_to(ROOT)} names {host}"
        found = re.search(ABSOLUTE, text)
        assert not found, f"{path.relative_to(ROOT)} holds the path {found and found[0]}"


def test_no_pickle_and_no_large_file():
    for path in tracked_files():
        name = path.relative_to(ROOT)
        assert path.suffix not in (".pkl", ".pickle", ".pt", ".pth", ".joblib"), name
        if name.parts[0] not in ("figures", "paper"):
            assert path.stat().st_size <= 1_000_000, name


def test_no_unfinished_marks():
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|NotImplemented" + r"Error)\b")
    for path, text in texts():
        if path.suffix in (".py", ".ipynb", ".tex", ".md"):
            assert not marks.search(text), path.relative_to(ROOT)
