"""The house: imports go down only, the simulated sky stands apart, truth is opened only where allowed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lensaudit"
FLOORS = {
    "__init__": 0, "constants": 0, "rng": 0, "stats": 0, "graph": 0, "wording": 0,
    "artifacts": 1, "config": 1, "photometry": 1,
    "shards": 2, "lensing": 2,
    "catalogs": 3, "pixels": 3,
    "simsky": 4, "injection": 4, "detectors": 4,
    "audit": 5, "survey": 5, "real_input": 5,
    "selection": 6, "tables": 6,
    "figures": 7, "report": 7, "summary": 7, "explorer": 7, "build": 8, "__main__": 9,
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))
SAME_FLOOR_ALLOWED = {("config", "artifacts"), ("real_input", "audit"), ("survey", "audit")}


def room_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imports_of(path):
    """Yield (room, is_lazy) of every import of this package, and the top names of all others."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "lensaudit" else [node.module]
            yield from names
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names)


def rooms_imported(path):
    return {n.split(".")[1] for n in imports_of(path) if n.startswith("lensaudit.")} - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = room_of(path)
    assert room in FLOORS, f"{room} has no floor; give it one"
    for other in rooms_imported(path) - {room}:
        below = FLOORS[other] < FLOORS[room]
        assert below or (room, other) in SAME_FLOOR_ALLOWED, f"{path.name} ({room}) imports {other}"


def test_no_cycles_inside_rooms():
    edges = {}
    for path in MODULES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        edges[name] = {n for n in imports_of(path) if n.startswith("lensaudit")}
    state = {}

    def visit(name, trail):
        if state.get(name) == "done" or name not in edges:
            return
        assert state.get(name) != "open", f"import cycle: {' -> '.join([*trail, name])}"
        state[name] = "open"
        for other in edges[name]:
            visit(other, [*trail, name])
        state[name] = "done"

    for name in edges:
        visit(name, [])


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) == "simsky"], ids=lambda p: p.name)
def test_simulated_sky_stands_apart(path):
    assert rooms_imported(path) <= {"simsky", "rng", "config", "artifacts"}


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) in ("pixels", "lensing", "injection", "catalogs")],
                         ids=lambda p: p.name)
def test_nothing_below_the_audit_knows_the_simulated_sky(path):
    assert "simsky" not in rooms_imported(path)
    assert "truth/" not in path.read_text(encoding="utf-8"), "truth files are opened only by simsky and survey"


TORCH_ROOMS = {"lensing", "injection", "detectors"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_stay_in_their_rooms(path):
    room, top = room_of(path), {n.split(".")[0] for n in imports_of(path)}
    if "torch" in top or "torchvision" in top:
        assert room in TORCH_ROOMS or path.name == "preprocessing.py"
    if {"matplotlib", "seaborn"} & top:
        assert room == "figures"
    if "lenstronomy" in top:
        assert room in {"simsky", "injection"}
    assert not {"pickle", "cPickle", "dill", "joblib", "shelve"} & top


def test_engine_shares_no_code_with_lenstronomy():
    for path in MODULES:
        if room_of(path) == "lensing":
            assert "lenstronomy" not in {n.split(".")[0] for n in imports_of(path)}


def test_truth_is_opened_only_where_allowed():
    """Truth tables are read in notebooks through survey.read_truth and handed to audit as an argument."""
    allowed = {"05_evaluation", "06_injection_realism", "07_completeness"}
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if "read_truth" in notebook.read_text(encoding="utf-8"):
            assert notebook.stem in allowed, f"{notebook.name} opens truth tables"
    for path in MODULES:
        if room_of(path) not in ("simsky", "survey"):
            assert "read_truth" not in path.read_text(encoding="utf-8"), f"{path.name} opens truth tables"


def test_import_is_light():
    heavy = "{'torch', 'pandas', 'healpy', 'astropy', 'sklearn', 'lenstronomy'}"
    code = f"import sys, lensaudit; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["lensaudit.detectors.training", "lensaudit.detectors.scoring",
                                    "lensaudit.injection.inject", "lensaudit.lensing.render",
                                    "lensaudit.pixels.store", "lensaudit.pixels.preprocessing"])
def test_gpu_machine_needs_no_astronomy_packages(module):
    code = (
        "import sys, importlib\n"
        "for name in ('astropy', 'healpy', 'lenstronomy', 'papermill'): sys.modules[name] = None\n"
        f"importlib.import_module('{module}')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_loads_never_unpickle():
    for path in [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                words = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                name = ast.unparse(node.func)
                if name == "torch.load":
                    assert words.get("weights_only") is True, f"{path.name}: torch.load without weights_only=True"
                if room_of_or_none(path) and name in ("np.load", "numpy.load"):
                    assert words.get("allow_pickle") is False or "mmap_mode" in words, f"{path.name}: np.load"
                assert words.get("shell") is not True, f"{path.name}: subprocess with a shell"


def room_of_or_none(path):
    return room_of(path) if path.is_relative_to(PACKAGE) else None
