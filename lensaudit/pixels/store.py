"""Stamps in sharded arrays that memory-map: written once by several processes, resumed, and read by key.

A shard is one ``stamps/shard-NNNN.npy`` of shape (n, 3, 101, 101), float32 [nMgy]; ``stamps.parquet`` says which row
holds which object. An object whose pixels could not be had is a row of NaN with its reason, never a missing row.
"""

import functools
import inspect
import os
from pathlib import Path

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError, hash_file, hash_object, read_json, read_table, write_atomic, write_json
from lensaudit.artifacts import write_table as write_parquet
from lensaudit.constants import BANDS, PIXEL_SCALE, STAMP_SIZE
from lensaudit.pixels.quality import measure_quality
from lensaudit.shards import map_shards

BLOCK = 128  # stamps read and measured at once, so that temporaries stay small
PIPELINE = "lensaudit-stamps-1"

IN_FLUX = (
    "core_brightness_r", "core_max_r", "annulus_brightness_r", "annulus_std_r", "outer_brightness_r", "mad_r", "std_r",
    "median_r", "mean_r", "percentile_1_r", "percentile_99_r", "background_r", "radial_gradient_r",
)  # fmt: skip

_source = None  # the pixel source of this worker process


def write_stamps(stage, source, galaxies, config):
    """Read the stamps of all objects, measure their quality, and store both.

    Parameters
    ----------
    stage : Stage
        Receives ``stamps/shard-NNNN.npy`` and ``stamps.parquet``.
    source : pixel source
        ``read(galaxies) -> (images float32 (N, 3, 101, 101) [nMgy], reasons list of str)``; picklable, deterministic
        per object. An optional text attribute ``identity`` names its contents; else the source's code stands for it.
    galaxies : DataFrame
        One row per object, unique ``galaxy_id``, with the columns the source needs.
    config : Config
        ``cutouts.shard_rows``, ``cutouts.workers``.

    Returns
    -------
    DataFrame
        ``galaxy_id``, ``cutout_path`` ("stamps/shard-0000.npy#12"), ``reason`` ("" when fine), the columns of
        `measure_quality`.

    Notes
    -----
    Objects are ordered by split and brick, so that a stage that needs one split opens (and verifies) few shards. A
    shard whose key, size and hash are intact is not made again; the bytes do not depend on the number of workers.
    """
    repeated = galaxies["galaxy_id"][galaxies["galaxy_id"].duplicated()]
    if len(repeated):
        raise UserError(f"galaxy_id {repeated.iloc[0]} stands on more than one row; give every object once")
    order = [name for name in ("split", "brickname", "galaxy_id") if name in galaxies]
    galaxies = galaxies.sort_values(order, kind="stable", ignore_index=True)
    identity = _identify(stage, source)
    rows = config.cutouts.shard_rows
    shards = []
    for number, start in enumerate(range(0, len(galaxies), rows)):
        part = galaxies.iloc[start : start + rows].reset_index(drop=True)
        key = hash_object([identity, PIPELINE, list(part["galaxy_id"])])
        shards.append((str(stage.folder), number, part, key))
    waiting = [shard for shard in shards if not _is_intact(shard)]
    map_shards(
        _write_shard, waiting, config.cutouts.workers, label="stamps", initializer=_start_worker,
        initargs=(source, config.cutouts.workers > 1),
    )  # fmt: skip
    for folder, number, _, _ in shards:
        stage.output(_name_shard(folder, number)[0])
    index = pd.concat([read_table(_name_shard(f, n, True)[1]) for f, n, _, _ in shards], ignore_index=True)
    return stage.write_table("stamps.parquet", index, units=dict.fromkeys(IN_FLUX, "nMgy/pixel"))


def _identify(stage, source):
    """What the pixels depend on besides the object: the files the stage has read, and the source's identity or code."""
    if getattr(source, "identity", ""):
        return [str(source.identity), stage.list_read()]
    try:
        folder = Path(inspect.getsourcefile(type(source))).parent
    except (TypeError, OSError):
        return [type(source).__name__, stage.list_read()]
    code = {path.name: hash_file(path) for path in sorted(folder.glob("*.py"))}
    return [code, stage.list_read()]


def _name_shard(folder, number, absolute=False):
    names = (f"stamps/shard-{number:04d}.npy", f"state/shard-{number:04d}.parquet", f"state/shard-{number:04d}.json")
    return tuple(Path(folder) / name for name in names) if absolute else names


def _is_intact(shard):
    folder, number, part, key = shard
    array, table, mark = _name_shard(folder, number, True)
    if not (array.is_file() and table.is_file() and mark.is_file()):
        return False
    try:
        found = read_json(mark)
    except UserError:
        return False
    return found == {"key": key, "rows": len(part), "array": hash_file(array), "table": hash_file(table)}


def _start_worker(source, limit_threads):
    global _source
    _source = source
    if limit_threads:  # one thread per process; the processes share the cores
        import threadpoolctl

        os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", NUMBA_NUM_THREADS="1")
        threadpoolctl.threadpool_limits(1)


def _write_shard(shard):
    """Write one shard: the array, its quality table, and last of all the mark that says both are whole."""
    folder, number, part, key = shard
    array, table, mark = _name_shard(folder, number, True)
    mark.unlink(missing_ok=True)
    for stale in array.parent.glob(f".{array.name}.*"):  # what a kill left half-written
        stale.unlink(missing_ok=True)
    blocks = []
    with write_atomic(array) as temporary:
        shape = (len(part), 3, STAMP_SIZE, STAMP_SIZE)
        images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        for start in range(0, len(part), BLOCK):
            rows = part.iloc[start : start + BLOCK].reset_index(drop=True)
            stamps, quality = _read_block(rows)
            images[start : start + len(rows)] = stamps
            blocks.append(quality)
        images.flush()
        del images
    quality = pd.concat(blocks, ignore_index=True)
    paths = [f"{_name_shard(folder, number)[0]}#{row}" for row in range(len(part))]
    front = pd.DataFrame({"galaxy_id": part["galaxy_id"], "cutout_path": paths, "reason": quality.pop("reason")})
    write_parquet(table, pd.concat([front, quality], axis=1))
    write_json(mark, {"key": key, "rows": len(part), "array": hash_file(array), "table": hash_file(table)})
    return len(part)


def _read_block(rows):
    images, reasons = _source.read(rows)
    images = np.asarray(images, dtype=np.float32)
    expected = (len(rows), 3, STAMP_SIZE, STAMP_SIZE)
    if images.shape != expected or len(reasons) != len(rows):
        raise UserError(
            f"the pixel source returned shape {images.shape} with {len(reasons)} reasons for objects "
            f"{rows['galaxy_id'].iloc[0]} ...; expected {expected}"
        )
    failed = np.array([bool(reason) for reason in reasons])
    if failed.any():
        images = images.copy()
        images[failed] = np.nan
    quality = measure_quality(images)
    quality.loc[failed, "reason"] = [str(r) for r in reasons if r]
    return images, quality.assign(quality_ok=quality["quality_ok"] & ~failed)


class Store:
    """Stamps of a finished stage, read by `cutout_path`.

    Parameters
    ----------
    locate : callable
        Gives the path of a shard by its name, such as ``stamps/shard-0000.npy``; asked once per shard.
    """

    def __init__(self, locate):
        self._locate, self._open = locate, {}

    def __getstate__(self):
        return {"_locate": self._locate, "_open": {}}

    def read(self, cutout_paths):
        """Return whole stamps in the order asked, ndarray of shape (N, 3, 101, 101), float32 [nMgy]."""
        return self.read_box(cutout_paths, STAMP_SIZE)

    def read_box(self, cutout_paths, size):
        """Return the central box of stamps in the order asked.

        Parameters
        ----------
        cutout_paths : sequence of str, length N
        size : int
            Odd side of the box [pixels]; it shares the stamp's centre pixel.

        Returns
        -------
        ndarray of shape (N, 3, size, size), float32 [nMgy]
        """
        if size % 2 == 0 or not 0 < size <= STAMP_SIZE:
            raise UserError(f"box of {size} pixels: give an odd side of at most {STAMP_SIZE}")
        start = STAMP_SIZE // 2 - size // 2
        names, rows = _split_paths(cutout_paths)
        out = np.empty((len(rows), 3, size, size), dtype=np.float32)
        for name in pd.unique(names):
            array = self._array(name)
            where = np.flatnonzero(names == name)
            where = where[np.argsort(rows[where], kind="stable")]
            if rows[where[-1]] >= len(array) or rows[where[0]] < 0:
                raise UserError(f"{name} has {len(array)} rows; row {rows[where[-1]]} was asked for")
            out[where] = array[rows[where], :, start : start + size, start : start + size]
        return out

    def _array(self, name):
        if name not in self._open:
            self._open[name] = np.load(self._locate(name), mmap_mode="r", allow_pickle=False)
        return self._open[name]


def _split_paths(cutout_paths):
    names, rows = [], []
    for path in cutout_paths:
        name, _, row = str(path).partition("#")
        if not row.isdigit():
            raise UserError(f"cutout_path {path!r} is not of the form stamps/shard-0000.npy#12")
        names.append(name)
        rows.append(int(row))
    return np.asarray(names, dtype=object), np.asarray(rows, dtype=np.int64)


def open_store(stage, upstream="03_cutouts"):
    """Open the stamps of `upstream`, a declared input of `stage` (verified shard by shard when opened) or itself."""
    if stage.name == upstream:
        return Store(stage.folder.joinpath)
    return Store(functools.partial(stage.input, upstream))


def make_manifest(samples, stamps, config):
    """Join the samples and their stamps by galaxy_id into the training manifest (SPEC 2.7's columns).

    Parameters
    ----------
    samples : DataFrame
        Unique ``galaxy_id``, label, split, weights, survey columns.
    stamps : DataFrame
        What `write_stamps` returned.
    config : Config

    Returns
    -------
    DataFrame
        In the order of `samples`. Columns that have no meaning for a simulated or sliced stamp (``cutout_url``,
        ``timestamp``) are empty texts: no clock enters an artifact.

    Raises
    ------
    UserError
        When an object stands on one side only.
    """
    lost = set(samples["galaxy_id"]) ^ set(stamps["galaxy_id"])
    if lost:
        raise UserError(f"samples and stamps differ in {len(lost)} galaxy_id, such as {sorted(lost)[0]}; run 03 again")
    table = samples.merge(stamps, on="galaxy_id", validate="one_to_one", how="left", suffixes=("", "_stamp"))
    extra = {
        "filename": table["cutout_path"].str.partition("#")[0], "timestamp": "", "pipeline_version": PIPELINE,
        "cutout_url": "", "layer": config.survey.layer, "bands_requested": "".join(BANDS),
        "size": np.int64(STAMP_SIZE), "pixel_scale": PIXEL_SCALE,
    }  # fmt: skip
    if "cutout_type" not in table:
        extra["cutout_type"] = np.where(table["label"] == 1, "positive", "negative")
    return table.assign(**extra)
