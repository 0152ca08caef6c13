"""Hashed inputs and outputs of a stage: a manifest that says what was made from what, and atomic writes.

A stage is one notebook (or the making of the survey). It declares the stages it reads, reads their files through
`Stage.input`, which checks the hash in the upstream manifest, and writes through `Stage.write_*` or `Stage.output`.
`Stage.close` writes `manifest.json` (sorted, no clock time) only when it changed, so that an unchanged result does not
rerun what follows, and `run_info.json` with time, versions and commit.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


class UserError(Exception):
    """A mistake in the input. The message names the file, column or id and says what mends it."""


def find_root():
    """Return the project's root: `LENSAUDIT_ROOT`, or the nearest folder upwards that holds pyproject.toml."""
    given = os.environ.get("LENSAUDIT_ROOT")
    if given:
        return Path(given)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "lensaudit").is_dir():
            return folder
    return Path(__file__).resolve().parent.parent


def hash_file(path):
    """Return the sha256 of a file as hex text."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_object(value):
    """Return the sha256 of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=to_json).encode()).hexdigest()


def to_json(value):
    """Convert numpy scalars, arrays and paths for `json.dumps(default=...)`."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (Path, set, frozenset, tuple)):
        return str(value) if isinstance(value, Path) else sorted(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


@contextlib.contextmanager
def write_atomic(path):
    """Yield a temporary path beside `path`; rename it into place when the block succeeds, remove it when it fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, value):
    """Write a value as sorted, indented JSON, atomically. Non-finite numbers are written as null."""
    text = json.dumps(_finite(value), indent=1, sort_keys=True, default=to_json, allow_nan=False) + "\n"
    with write_atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _finite(value):
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value


def read_json(path):
    """Read a JSON file, with one clear error when it is missing or malformed."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that makes it first") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run its stage again") from None


def write_table(path, table, units=None):
    """Write a DataFrame as Parquet, atomically, with units in the column metadata.

    Parameters
    ----------
    path : path
    table : pandas.DataFrame
    units : dict of column -> str, optional
    """
    units = units or {}
    arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
    fields = [f.with_metadata({"unit": units[f.name]}) if f.name in units else f for f in arrow.schema]
    arrow = arrow.cast(pa.schema(fields))
    with write_atomic(path) as temporary:
        pq.write_table(arrow, temporary, compression="zstd")


def read_table(path, columns=None):
    """Read a Parquet table as a DataFrame, with one clear error when it is missing, malformed or lacks a column."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path.name}: no such file in {path.parent}; run the stage that makes it first")
    try:
        present = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path.name}: unreadable Parquet ({error}); delete it, rerun its stage") from None
    missing = sorted(set(columns or ()) - set(present))
    if missing:
        raise UserError(f"{path.name}: column(s) {', '.join(missing)} missing; it has {', '.join(present[:12])} ...")
    return pq.read_table(path, columns=columns).to_pandas()


def load_dataset(name):
    """Return the description of an external dataset, `data_manifests/<name>.toml`, as a dict."""
    path = find_root() / "data_manifests" / f"{name}.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"data_manifests/{name}.toml: no such dataset description") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"data_manifests/{name}.toml: not valid TOML ({error})") from None


class Stage:
    """One step of the audit with its declared inputs, its outputs and its manifest.

    Parameters
    ----------
    name : str
        Folder name, such as ``"05_evaluation"``.
    config : lensaudit.config.Config
    inputs : sequence of str
        Stages this one reads; anything else is refused.
    sections : sequence of str
        Configuration sections this stage depends on; their hash stands in the manifest.

    Notes
    -----
    Files lie in ``artifacts/<profile>/<name>/``. Notebooks hold the literals; nothing else names a path.
    """

    def __init__(self, name, config, inputs=(), sections=()):
        self.name, self.config = name, config
        self.folder = find_root() / "artifacts" / config.profile / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.inputs, self.sections = tuple(inputs), tuple(sections)
        self._read, self._written, self._manifests, self._rows = {}, {}, {}, {}
        self._started = time.time()

    def _manifest_of(self, upstream):
        if upstream not in self.inputs:
            raise UserError(f"stage {self.name} reads {upstream} without declaring it; add it to inputs=")
        if upstream not in self._manifests:
            source, _, profile = upstream.partition("@")
            folder = self.folder.parent.parent / (profile or self.config.profile) / source
            if not (folder / "manifest.json").is_file():
                name = profile or self.config.profile
                raise UserError(f"{source} of {name} is not made yet; run make PROFILE={name} summary first")
            self._manifests[upstream] = (folder, read_json(folder / "manifest.json"))
        return self._manifests[upstream]

    def input(self, upstream, filename):
        """Return the path of an upstream file after checking its hash.

        ``upstream`` is a declared stage; ``"04_training@demo"`` reads that of another profile.
        """
        folder, manifest = self._manifest_of(upstream)
        if filename not in manifest["outputs"]:
            known = ", ".join(sorted(manifest["outputs"]))
            raise UserError(f"{upstream} made no {filename}; its manifest lists {known}")
        path = folder / filename
        expected = manifest["outputs"][filename]["sha256"]
        key = f"{upstream}/{filename}"
        if key not in self._read:
            if not path.is_file() or hash_file(path) != expected:
                raise UserError(f"{upstream}/{filename} is not the file its manifest describes; run that stage again")
            self._read[key] = expected
        return path

    def list_read(self):
        """Return what this stage has read so far: the sha256 of each upstream file by ``upstream/filename``, sorted."""
        return dict(sorted(self._read.items()))

    def inputs_of(self, upstream, prefix=""):
        """Return the checked paths of all upstream files whose name starts with `prefix`, sorted by name."""
        _, manifest = self._manifest_of(upstream)
        return [self.input(upstream, name) for name in sorted(manifest["outputs"]) if name.startswith(prefix)]

    def read_table(self, upstream, filename, columns=None):
        """Read an upstream Parquet table after checking its hash."""
        return read_table(self.input(upstream, filename), columns)

    def read_json(self, upstream, filename):
        """Read an upstream JSON file after checking its hash."""
        return read_json(self.input(upstream, filename))

    def output(self, filename):
        """Register an output and return its path; the caller writes it atomically before `close`."""
        path = self.folder / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        self._written[filename] = path
        return path

    def write_table(self, filename, table, units=None):
        """Write and register a Parquet table; returns the table, so that a notebook shows it."""
        write_table(self.output(filename), table, units)
        self._rows[filename] = len(table)
        return table

    def write_json(self, filename, value):
        """Write and register a JSON file; returns the value."""
        write_json(self.output(filename), value)
        return value

    def save_figure(self, figure, name, data=None):
        """Write a figure as PDF and PNG, with the plotted numbers as CSV, and register all.

        Parameters
        ----------
        figure : matplotlib.figure.Figure
        name : str
            File name without suffix.
        data : pandas.DataFrame, optional
            The plotted numbers.

        Returns
        -------
        matplotlib.figure.Figure
        """
        for suffix, kwargs in ((".pdf", {"metadata": {"CreationDate": None, "ModDate": None}}),
                               (".png", {"dpi": 160, "metadata": {"Software": None}})):
            with write_atomic(self.output(f"figures/{name}{suffix}")) as temporary:
                figure.savefig(temporary, **kwargs)
        if data is not None:
            with write_atomic(self.output(f"figures/{name}.csv")) as temporary:
                data.to_csv(temporary, index=False, float_format="%.6g")
        return figure

    def close(self):
        """Hash the outputs and write the manifest (only when it changed) and run_info.json; returns the manifest."""
        absent = [name for name, path in self._written.items() if not path.is_file()]
        if absent:
            raise UserError(f"stage {self.name} registered {', '.join(absent)} but did not write it")
        sections = {name: self.config.section(name) for name in self.sections}
        outputs = {
            name: {"sha256": hash_file(path), "bytes": path.stat().st_size}
            | ({"rows": self._rows[name]} if name in self._rows else {})
            for name, path in self._written.items()
        }
        manifest = {
            "stage": self.name, "profile": self.config.profile, "seed": self.config.seed,
            "config": hash_object(sections), "inputs": self.list_read(), "outputs": outputs,
        }  # fmt: skip
        path = self.folder / "manifest.json"
        if not path.is_file() or read_json(path) != json.loads(json.dumps(manifest, default=to_json)):
            write_json(path, manifest)
        write_json(self.folder / "run_info.json", describe_run(self._started) | {"sections": sections})
        return manifest


def describe_run(started=None):
    """Return time, host kind, versions, commit and command of this process, as kept in run_info.json."""
    packages = {}
    for name in ("numpy", "scipy", "pandas", "pyarrow", "torch", "torchvision", "astropy", "lenstronomy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    git = shutil.which("git")
    commit = ""
    if git:
        result = subprocess.run([git, "rev-parse", "HEAD"], cwd=find_root(), capture_output=True, text=True)
        commit = result.stdout.strip()
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": None if started is None else round(time.time() - started, 1),
        "python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count(),
        "packages": packages, "commit": commit, "command": [Path(sys.argv[0]).name, *sys.argv[1:3]],
    }  # fmt: skip
