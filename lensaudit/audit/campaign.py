"""Injection campaigns: render, score and measure tables of injections in resumable blocks.

A block is a pure function of its rows, the hosts, the detector and the engine's code; its Parquet file carries a hash
of all of them in its name, so a changed input never meets an old block and an interrupted run goes on where it stopped.
"""

import contextlib
import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError, hash_object, read_table, write_table
from lensaudit.audit.detectability import correct_bias, fit_bias, measure_arcs
from lensaudit.audit.thresholds import freeze_detector
from lensaudit.constants import RENDER_SIZE
from lensaudit.injection.hosts import swap_hosts
from lensaudit.injection.inject import inject, measure_injections
from lensaudit.injection.light import read_light
from lensaudit.injection.population import load_prior
from lensaudit.shards import map_shards

TYPES = {"injection_id": "int64", "host_index": "int64", "cell": "int64", "n_clumps": "int64", "multiplicity": "int64",
         "untied": "bool"}  # fmt: skip
# Host columns every injection carries as covariates; seeing and depth are the survey's own columns (SPEC 8.1).
HOST_COLUMNS = (
    "psfsize_r", "psfsize_g", "psfsize_z", "depth_r", "psfdepth_g", "psfdepth_r", "psfdepth_z", "mag_r", "type",
    "nobs_z", "footprint_weight", "healpix_128",
)  # fmt: skip
CONTROLS = ("random_hosts", "faint", "red", "gain_150", "gaussian_psf", "psfsize_20")
ENGINE_FILES = ("injection/*.py", "lensing/*.py", "photometry.py", "constants.py", "rng.py", "audit/detectability.py")


def check_frozen(stage, detector):
    """Return the frozen detector's description, and refuse a loaded detector that is not it.

    Raises
    ------
    UserError
        When model, weights, preprocessing or thresholds differ from ``frozen_detector.json`` of 05_evaluation.
    """
    files = [stage.input("04_training", f"checkpoint/{name}") for name in ("weights.safetensors", "preprocessing.json")]
    limits, frozen = (stage.read_json("05_evaluation", f"{name}.json") for name in ("thresholds", "frozen_detector"))
    found = freeze_detector(detector.id, *files, limits)
    changed = [name for name in found if name != "detector" and found[name] != frozen.get(name)]
    if changed:
        raise UserError(f"checkpoint: {', '.join(changed)} differ from frozen_detector.json; run 05_evaluation again")
    return frozen


def load_boxes(hosts, store):
    """Read the 65-px boxes of all hosts into memory.

    Parameters
    ----------
    hosts : pandas.DataFrame
        Host table with cutout_path.
    store : lensaudit.pixels.store.Store
        With ``read_box(cutout_paths, size)``.

    Returns
    -------
    ndarray of shape (n_hosts, 3, 65, 65), float32 [nMgy]
    """
    return np.ascontiguousarray(store.read_box(list(hosts["cutout_path"]), RENDER_SIZE), dtype=np.float32)


def measure_bias(hosts, boxes, rows=None):
    """Measure the hosts alone (paired controls) and fit the injection-free bias of arc_snr.

    Parameters
    ----------
    hosts : pandas.DataFrame
    boxes : ndarray of shape (n_hosts, 3, 65, 65) [nMgy]
    rows : array_like of int, optional
        Positions of the hosts to use, such as the deflector-like ones.

    Returns
    -------
    bias : pandas.DataFrame
        For `detectability.correct_bias`.
    controls : pandas.DataFrame
        Measurements of the hosts, with galaxy_id, corrected for the bias.
    """
    rows = np.arange(len(hosts)) if rows is None else np.asarray(rows)
    controls = measure_arcs(boxes[rows])
    bias = fit_bias(controls)
    return bias, correct_bias(controls, bias).assign(galaxy_id=hosts["galaxy_id"].to_numpy()[rows])


def hash_engine():
    """Return a hash of the code that makes and measures injections."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for pattern in ENGINE_FILES:
        for path in sorted(package.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def run_injections(table, hosts, boxes, detector, config, folder, label="injections", bias=None, block_rows=512,
                   workers=None, measure=True, companion=None, **variants):  # fmt: skip
    """Render every injection into its host, score it and measure its arc.

    Parameters
    ----------
    table : pandas.DataFrame
        Injection table of `injection.priors`, with injection_id and host_index.
    hosts : pandas.DataFrame
        Host table with host_index.
    boxes : ndarray of shape (n_hosts, 3, 65, 65) [nMgy]
        Row by row with `hosts`.
    detector : object
        With ``score(images) -> logits`` and ``id``.
    config : lensaudit.config.Config
    folder : path
        Holds the blocks; finished blocks are kept and used again.
    label : str
        Names the campaign on the terminal and its blocks.
    bias : pandas.DataFrame, optional
        From `measure_bias`; subtracted from arc_snr.
    block_rows : int
        Injections per block; the result does not depend on it.
    workers : int, optional
        Blocks worked on at once, in threads; as many as there are cores by default.
    measure : bool
        False leaves the arcs unmeasured: twice as fast where only scores are wanted.
    companion : object, optional
        A second detector, whose logit of the same images becomes the column ``logit_companion``.
    **variants
        For `injection.inject.inject`, such as ``gain_override`` or ``psf_mode``; they go before what the ``[light]`` of
        the configuration's prior says.

    Returns
    -------
    pandas.DataFrame
        The table with the host's conditions, logit, and, measured, the columns of `detectability.measure_arcs`.

    Raises
    ------
    UserError
        When the table names a host that the host table lacks, or holds an injection_id twice.
    """
    folder = Path(folder)
    position = pd.Series(np.arange(len(hosts)), index=hosts["host_index"].to_numpy())
    unknown = ~table["host_index"].isin(position.index)
    if unknown.any():
        raise UserError(f"{label}: host_index {table.loc[unknown, 'host_index'].iloc[0]} is not in the host table")
    if table["injection_id"].duplicated().any():
        twice = table.loc[table["injection_id"].duplicated(), "injection_id"].iloc[0]
        raise UserError(f"{label}: injection_id {twice} appears twice; ids must be unique in a campaign")
    rows = position.loc[table["host_index"].to_numpy()].to_numpy()
    variants = read_light(load_prior(config.injection.prior), hosts.iloc[rows]) | variants
    common = hash_object({
        "detector": detector.id, "engine": hash_engine(), "seed": config.seed, "injection": config.section("injection"),
        "variants": {k: hashlib.sha256(v.tobytes()).hexdigest() if isinstance(v, np.ndarray) else str(v)
                     for k, v in variants.items()},
        "bias": None if bias is None else bias.to_dict("list"), "measure": measure,
        "companion": None if companion is None else companion.id,
    })  # fmt: skip
    table = table.reset_index(drop=True).astype({name: kind for name, kind in TYPES.items() if name in table})
    context = (table, hosts, boxes, rows, detector, config, bias, variants, common, folder, label, measure, companion)

    def run_block(start):
        return _run_block(start, min(start + block_rows, len(table)), *context)

    starts = list(range(0, len(table), block_rows))
    with _single_threads(), ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        futures = [pool.submit(run_block, start) for start in starts]
        parts = map_shards(lambda future: future.result(), futures, label=label)
    return pd.concat(parts, ignore_index=True) if parts else table.copy()


@contextlib.contextmanager
def _single_threads():
    """Let every block compute with one torch thread: blocks share the cores, and bits do not depend on how many."""
    torch = sys.modules.get("torch")  # loaded by the engine or the detector, if at all
    before = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(before)


def _run_block(start, stop, table, hosts, boxes, rows, detector, config, bias, variants, common, folder, label,
               measure, companion):  # fmt: skip
    block, index = table.iloc[start:stop].reset_index(drop=True), rows[start:stop]
    own = hosts.iloc[index].reset_index(drop=True)
    content = hashlib.sha256(common.encode())
    content.update(pd.util.hash_pandas_object(block, index=False).to_numpy().tobytes())
    content.update(pd.util.hash_pandas_object(own, index=False).to_numpy().tobytes())
    path = folder / f"{label.replace(' ', '_')}-{start:07d}-{content.hexdigest()[:16]}.parquet"
    if path.is_file():
        try:
            done = read_table(path)
            if np.array_equal(done["injection_id"], block["injection_id"]):
                return done
        except UserError:
            path.unlink()
    variants = {k: v[start:stop] if isinstance(v, np.ndarray) else v for k, v in variants.items()}
    images, _ = inject(block, own, boxes[index], config, config.seed, **variants)
    conditions = {name: own[name].to_numpy() for name in HOST_COLUMNS if name in own and name not in block}
    out = block.assign(**conditions, logit=np.asarray(detector.score(images), dtype=np.float64))
    if companion is not None:
        out["logit_companion"] = np.asarray(companion.score(images), dtype=np.float64)
    if measure:
        measured = measure_arcs(images, block["theta_E"])
        if bias is not None:
            measured = correct_bias(measured, bias)
        out = pd.concat([out, measured.drop(columns=[c for c in measured if c in out])], axis=1)
    write_table(path, out)
    return out


def measure_rows(rows, store, bias=None, block=512):
    """Measure stored stamps (lenses or negatives) with the estimators used on injections.

    Parameters
    ----------
    rows : pandas.DataFrame
        With cutout_path; theta_E where known.
    store : lensaudit.pixels.store.Store
    bias : pandas.DataFrame, optional
        From `measure_bias`.
    block : int
        Stamps read at once.

    Returns
    -------
    pandas.DataFrame
        `rows` with the columns of `detectability.measure_arcs`.
    """
    rows = rows.reset_index(drop=True)
    paths = list(rows["cutout_path"])
    theta_E = rows["theta_E"].to_numpy() if "theta_E" in rows else np.full(len(rows), np.nan)
    parts = [measure_arcs(store.read_box(paths[i : i + block], RENDER_SIZE), theta_E[i : i + block])
             for i in range(0, len(paths), block)]  # fmt: skip
    if not parts:
        raise UserError("no stamps to measure; the table of rows is empty")
    measured = pd.concat(parts, ignore_index=True)
    if bias is not None:
        measured = correct_bias(measured, bias)
    return pd.concat([rows, measured.drop(columns=[c for c in measured if c in rows])], axis=1)


def move_hosts(table, hosts, config, population):
    """Put the same arcs into other hosts of like seeing and depth, and measure them there.

    Parameters
    ----------
    table : pandas.DataFrame
        Injection table.
    hosts : pandas.DataFrame
    config : lensaudit.config.Config
    population : str
        ``"deployment"`` or ``"random"``.

    Returns
    -------
    pandas.DataFrame
    """
    moved = swap_hosts(table, hosts, config.seed, population)
    drop = [c for c in moved if c in ("mu", "arc_snr_true") or c.startswith("mag_lensed_")]
    return measure_injections(moved.drop(columns=drop), hosts, config, config.seed)


def make_control(table, kind):
    """Turn closure injections into those of a negative control that keeps the hosts.

    Parameters
    ----------
    table : pandas.DataFrame
        Injection table.
    kind : str
        ``"faint"``: every arc 1 mag fainter than it should be, nothing else changed; ``"red"``: source g-r = 1.15.

    Returns
    -------
    pandas.DataFrame
    """
    table = table.copy()
    if kind == "faint":
        for name in [c for c in table if c.startswith(("mag_source_", "mag_lensed_"))]:
            table[name] = table[name] + 1.0
        table["arc_snr_true"] = table["arc_snr_true"] * 10.0**-0.4
    elif kind == "red":
        shift = table["mag_source_r"] + 1.15 - table["mag_source_g"]
        table["mag_source_g"] = table["mag_source_g"] + shift
        if "mag_lensed_g" in table:
            table["mag_lensed_g"] = table["mag_lensed_g"] + shift
    else:
        raise UserError(f"control {kind!r} unknown; use faint or red, or a variant of the engine")
    return table


def spoil_psfsize(hosts, factor=1.2):
    """Return hosts whose psfsize is wrong by a factor for the engine: a planted error in photometry.

    The covariate psfsize_r of the injections must be taken from the true hosts afterwards (`restore_conditions`).
    """
    return hosts.assign(**{name: hosts[name] * factor for name in hosts if name.startswith("psfsize_")})


def restore_conditions(table, hosts):
    """Put the hosts' published conditions back on injections rendered with spoiled ones."""
    own = hosts.set_index("host_index").loc[table["host_index"].to_numpy()]
    return table.assign(**{name: own[name].to_numpy() for name in HOST_COLUMNS if name in own})


def run_controls(table, twins, hosts, boxes, detector, config, folder, bias=None, scored=()):
    """Run the negative controls of closure, each on a part of the closure set and of the twins.

    Parameters
    ----------
    table, twins : pandas.DataFrame
        Injection tables as drawn, before scoring.
    hosts, boxes, detector, config, folder, bias
        As in `run_injections`.
    scored : (closure set, twins)
        The same two tables scored, of which the same rows become the control "unspoiled".

    Returns
    -------
    dict of name -> (closure part, twins part)
        unspoiled: correct injections, same number; random_hosts: other test galaxies of like seeing and depth; faint:
        every arc 1 mag too faint; red: source g-r = 1.15; gain_150: arc noise at 150 e-/nMgy; gaussian_psf: Gaussian
        of FWHM psfsize; psfsize_20: psfsize 20 % too large for the engine, the covariate as published.
    """
    parts = _take_parts(table, twins, config)
    variants = {"gain_150": {"gain_override": 150.0}, "gaussian_psf": {"psf_mode": "gaussian_psfsize"}}
    out = {"unspoiled": _take_parts(*scored, config)} if scored else {}
    for kind in CONTROLS:
        own = spoil_psfsize(hosts) if kind == "psfsize_20" else hosts
        scored = []
        for name, part in zip(("set", "twins"), parts, strict=True):
            if kind == "random_hosts":
                part = move_hosts(part, hosts, config, "random")
            elif kind in ("faint", "red"):
                part = make_control(part, kind)
            done = run_injections(part, own, boxes, detector, config, folder, f"control {kind} {name}", bias,
                                  **variants.get(kind, {}))  # fmt: skip
            scored.append(restore_conditions(done, hosts))
        out[kind] = tuple(scored)
    return out


def _take_parts(table, twins, config):
    twins = twins.groupby("lens_id", sort=False).head(max(2, config.closure.n_twins // 2))
    # Evenly spread, so that a closure set that is a mixture of draws keeps its shares and with them its weights.
    step = max(1, len(table) // config.closure.n_control)
    return table.iloc[::step].head(config.closure.n_control).reset_index(drop=True), twins.reset_index(drop=True)


def stack_controls(controls):
    """Return the spoiled injections as one table, with columns control and part; the unspoiled stand elsewhere."""
    return pd.concat([
        frame.assign(control=kind, part=part)
        for kind, frames in controls.items() if kind != "unspoiled"
        for part, frame in zip(("set", "twins"), frames, strict=True)
    ], ignore_index=True)  # fmt: skip
