"""Stage 00: the survey that all else reads, simulated or real, in one layout of files."""

import contextlib
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from lensaudit.artifacts import Stage, UserError, find_root, hash_file, load_dataset, read_table, write_atomic
from lensaudit.rng import make_stream


def fetch_lenscat(timeout=120):
    """Return the path of the community catalogue's CSV, fetched once by package name and verified.

    Parameters
    ----------
    timeout : float
        Seconds each download command may take.

    Returns
    -------
    path or None
        None when the package cannot be fetched; a line on stderr says why.

    Notes
    -----
    The wheel is downloaded without its dependencies and never installed; one member is taken out of it. Hashes stand
    in ``data_manifests/lenscat.toml``.
    """
    facts = load_dataset("lenscat")
    target = find_root() / "data" / "lenscat" / Path(facts["member"]).name
    if target.is_file() and hash_file(target) == facts["member_sha256"]:
        return target
    with tempfile.TemporaryDirectory() as folder:
        wheel, reason = _download_wheel(facts, folder, timeout)
        if wheel is None:
            print(f"lenscat {facts['version']} could not be fetched ({reason}); lens positions will be simulated",
                  file=sys.stderr)  # fmt: skip
            return None
        if hash_file(wheel) != facts["wheel_sha256"]:
            raise UserError(
                f"{wheel.name}: its sha256 is not that of data_manifests/lenscat.toml; do not use this package"
            )
        content = zipfile.ZipFile(wheel).read(facts["member"])
    if len(content) != facts["member_bytes"] or hashlib.sha256(content).hexdigest() != facts["member_sha256"]:
        raise UserError(f"{facts['member']}: size or sha256 differ from data_manifests/lenscat.toml")
    with write_atomic(target) as temporary:
        temporary.write_bytes(content)
    return target


def _download_wheel(facts, folder, timeout):
    wanted, reason = f"{facts['package']}=={facts['version']}", "no pip found"
    options = ["-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "-q", "-d", folder, wanted]
    for program in dict.fromkeys([sys.executable, shutil.which("python3"), shutil.which("python")]):
        if program is None:
            continue
        try:
            result = subprocess.run([program, *options], capture_output=True, text=True, timeout=timeout)
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = type(error).__name__
            continue
        wheels = sorted(Path(folder).glob("*.whl"))
        if result.returncode == 0 and wheels:
            return wheels[0], ""
        reason = (result.stderr.strip().splitlines() or ["pip failed"])[-1]
    wheel = _extract_with_uv(wanted, folder, timeout)
    return wheel, reason


def _extract_with_uv(wanted, folder, timeout):
    # uv has no download command; pip run by uv downloads the wheel.
    uv = shutil.which("uv")
    if uv is None:
        return None
    command = [uv, "tool", "run", "pip", "download", "--no-deps", "-q", "-d", folder, wanted]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(command, capture_output=True, timeout=timeout)
    wheels = sorted(Path(folder).glob("*.whl"))
    return wheels[0] if wheels else None


def read_positions(path):
    """Read the positions of galaxy-type lenses of the community catalogue, without the cluster compilations.

    Parameters
    ----------
    path : path
        CSV with name, RA [deg], DEC [deg], zlens, type, grading, ref.

    Returns
    -------
    pandas.DataFrame
        ra, dec in degrees.
    """
    try:
        table = pd.read_csv(path, dtype={"zlens": str})
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{Path(path).name}: not a readable CSV ({error}); fetch it again") from None
    missing = {"RA [deg]", "DEC [deg]", "type", "ref"} - set(table.columns)
    if missing:
        raise UserError(f"{Path(path).name}: column(s) {', '.join(sorted(missing))} missing; fetch lenscat again")
    excluded = "|".join(load_dataset("lenscat")["excluded_refs"])
    chosen = table[(table["type"] == "galaxy") & ~table["ref"].fillna("").str.contains(excluded)]
    return pd.DataFrame({"ra": chosen["RA [deg]"].astype(float) % 360.0, "dec": chosen["DEC [deg]"].astype(float)})


def simulate_positions(seed, n=11000):
    """Draw clustered positions for a sky without the community catalogue; same columns as `read_positions`."""
    rng = make_stream(seed, "survey/positions")
    fields = max(1, n // 9)
    ra, dec = (
        rng.uniform(0, 360, fields),
        np.degrees(np.arcsin(rng.uniform(np.sin(np.radians(-17)), np.sin(np.radians(31)), fields))),
    )
    home = rng.integers(0, fields, n)
    dec = np.clip(dec[home] + rng.normal(0, 0.3, n), -17.9, 31.9)
    return pd.DataFrame({"ra": (ra[home] + rng.normal(0, 0.3, n)) % 360.0, "dec": dec})


def make_survey(config):
    """Make stage 00_survey: the simulated sky, or an index of real sweeps and catalogues under the data root.

    Parameters
    ----------
    config : lensaudit.config.Config

    Returns
    -------
    Stage
        Closed.
    """
    stage = Stage("00_survey", config, inputs=(), sections=("survey", "sky"))
    if config.survey.source == "simsky":
        from lensaudit.simsky.sky import make_sky  # lenstronomy is slow to import

        path = fetch_lenscat()
        positions = simulate_positions(config.seed) if path is None else read_positions(path)
        summary = make_sky(config, positions, stage)
        stage.write_json("source.json", {"positions": "simulated" if path is None else "lenscat", "simulated": True})
        print(f"simulated sky: {summary['n_bricks']} bricks, {summary['n_objects']} objects, "
              f"{summary['n_catalogued']} catalogued lenses", file=sys.stderr)  # fmt: skip
    elif config.survey.source == "data_root":
        _index_data_root(config, stage)
    else:
        raise UserError(f'[survey] source = {config.survey.source!r} unknown; use "simsky" or "data_root"')
    stage.close()
    return stage


# A data root may bring these as <name>.parquet; without them photo-z are unknown, weights 1, stars and labels none.
SIDE_TABLES = {"photoz": {"galaxy_id": "str", "z_phot": "float64"},
               "footprint": {"galaxy_id": "str", "footprint_weight": "float64", "quarter": "int64"},
               "stars": {"ra": "float64", "dec": "float64", "mag": "float64"},
               "labels": {"ra": "float64", "dec": "float64", "label": "str"}}  # fmt: skip


def _index_data_root(config, stage):
    # Copy what the stages read into the layout of the simulated sky, so that its hashes stand in the manifest.
    root = Path(config.data_root)
    if not config.data_root:
        raise UserError("no data root: give data_root or set LENSAUDIT_DATA to a folder of sweeps and lens catalogues")
    if not root.is_dir():
        raise UserError(f"data root {root.name}: no such folder")
    sweeps = sorted(
        p for p in root.rglob("*") if p.suffix in (".fits", ".parquet") and p.name.startswith(("sweep", "tractor"))
    )
    if not sweeps:
        raise UserError(
            f"no sweep-*.fits, tractor-*.fits or .parquet under the data root {root.name}; put the sweeps there"
        )
    lists = sorted(p for p in root.rglob("*.csv") if "lenscat" in p.name or p.name == "catalog.csv")
    if len(lists) != 1:
        raise UserError(f"data root {root.name} holds {len(lists)} files lenscat*.csv or catalog.csv; put exactly one")
    for path in sweeps:
        _copy(path, stage.output(f"sweep/{path.name}"))
    _copy(lists[0], stage.output("catalogs/lenscat.csv"))
    independent = next(iter(sorted(root.rglob("spectroscopic.csv"))), None)
    if independent is not None:
        _copy(independent, stage.output("catalogs/spectroscopic.csv"))
    else:
        with write_atomic(stage.output("catalogs/spectroscopic.csv")) as temporary:
            temporary.write_text("name,RA,DEC,grade\n", encoding="utf-8")
    for name, columns in SIDE_TABLES.items():
        given = next(iter(sorted(root.rglob(f"{name}.parquet"))), None)
        if given is None:
            stage.write_table(f"{name}.parquet", pd.DataFrame({k: pd.Series(dtype=d) for k, d in columns.items()}))
        else:
            stage.write_table(f"{name}.parquet", read_table(given, list(columns)))
    stage.write_json("source.json", {"positions": "data_root", "simulated": False, "n_sweeps": len(sweeps)})


def _copy(source, target):
    with write_atomic(target) as temporary:
        shutil.copyfile(source, temporary)


def open_pixels(config, stage):
    """Return the pixel source of the survey for a stage that declares 00_survey.

    Parameters
    ----------
    config : lensaudit.config.Config
    stage : lensaudit.artifacts.Stage

    Returns
    -------
    source
        Has ``read(galaxies) -> (images, reasons)``.
    """
    if config.survey.pixels == "simsky":
        from lensaudit.simsky.pixels import SkyPixels

        folder = stage.input("00_survey", "truth/galaxies.parquet").parent.parent
        for name in ("truth/lenses.parquet", "truth/conditions.parquet", "stars.parquet"):
            stage.input("00_survey", name)
        return SkyPixels(folder, config.seed)
    if config.survey.pixels == "bricks":
        from lensaudit.pixels.bricks import BrickSource

        if not config.data_root or not Path(config.data_root).is_dir():
            raise UserError(
                "no data root: give data_root or set LENSAUDIT_DATA to the folder that holds the coadd bricks"
            )
        return BrickSource(config.data_root)
    if config.survey.pixels == "viewer":
        from lensaudit.pixels.viewer import make_viewer_source

        return make_viewer_source(config, find_root() / "data" / "cutouts" / config.survey.layer)
    raise UserError(f'[survey] pixels = {config.survey.pixels!r} unknown; use "simsky", "bricks" or "viewer"')


def read_truth(stage, name):
    """Read a truth table (lenses, galaxies, conditions) of the simulated sky, for audit functions that take one."""
    if name not in ("lenses", "galaxies", "conditions"):
        raise UserError(f"no truth table {name!r}; there are lenses, galaxies, conditions")
    return read_table(stage.input("00_survey", f"truth/{name}.parquet"))
