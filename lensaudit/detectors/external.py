"""Bring your own detector: a Python callable, an ONNX file, an exported torch program, or a table of scores.

Everything here takes stamps of shape (N, 3, H, W), float32 [nMgy], bands g, r, z, and gives one number per stamp; what
preprocessing the detector needs is inside it. Loading never executes pickled code: an exported program is looked
through before torch opens it.
"""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lensaudit.artifacts import UserError, hash_file, read_table
from lensaudit.constants import STAMP_SIZE
from lensaudit.detectors.scoring import choose_device


class ExternalDetector:
    """A foreign detector behind the interface of `scoring.Detector`.

    Parameters
    ----------
    function : callable
        Maps ndarray (N, 3, box, box), float32 [nMgy], to N numbers.
    identifier : str
    output : str
        ``"logit"``, or ``"score"`` in [0, 1], which is turned into a logit (clipped at 1e-7 from 0 and 1).
    box : int
        Side of the central box it takes [pixels, odd].
    batch : int
        Most stamps given at once.

    Notes
    -----
    That a score does not depend on its batch is up to the function.
    """

    def __init__(self, function, identifier, output="logit", box=STAMP_SIZE, batch=256):
        if output not in ("logit", "score"):
            raise UserError(f"detector {identifier}: output {output!r} unknown; use logit or score")
        self.function, self.id, self.output, self.box, self.batch = function, identifier, output, box, batch

    def score(self, images, ids=None):
        """Return logits, ndarray of shape (N,), float32; a wrong number of scores or a NaN is an error."""
        images = np.ascontiguousarray(images, dtype=np.float32)
        start = images.shape[-1] // 2 - self.box // 2
        if start < 0:
            raise UserError(f"detector {self.id} takes {self.box} pixels; the stamps have {images.shape[-1]}")
        images = images[:, :, start : start + self.box, start : start + self.box]
        parts = [np.zeros(0)]
        for first in range(0, len(images), self.batch):
            rows = np.ascontiguousarray(images[first : first + self.batch])
            values = np.asarray(self.function(rows), dtype=np.float64).reshape(-1)
            if len(values) != len(rows):
                raise UserError(f"detector {self.id} gave {len(values)} scores for {len(rows)} stamps; give one each")
            parts.append(values)
        values = np.concatenate(parts)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            who = f"object {ids[bad[0]]}" if ids is not None else f"stamp number {bad[0]}"
            raise UserError(f"detector {self.id} gave {values[bad[0]]} for {who}; leave it out or mend the detector")
        return (to_logit(values, self.id) if self.output == "score" else values).astype(np.float32)


def to_logit(score, who):
    """Return log(p / (1 - p)) of scores in [0, 1], clipped at 1e-7 from both ends."""
    score = np.asarray(score, dtype=np.float64)
    if len(score) and not (score.min() >= 0 and score.max() <= 1):
        raise UserError(f"{who}: scores reach from {score.min()} to {score.max()}, outside [0, 1]; call them logit")
    score = np.clip(score, 1e-7, 1 - 1e-7)
    return np.log(score / (1 - score))


def load_onnx(path, output="logit", box=STAMP_SIZE):
    """Load an ONNX file with one input (N, 3, box, box) and one output; needs the extra ``onnx``."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{Path(path).name}: an ONNX detector needs onnxruntime; install the extra 'onnx'") from None
    _require(path)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
    except Exception as error:  # onnxruntime raises classes of its own for every kind of malformed file
        raise UserError(f"{path}: not a readable ONNX file ({error})") from None
    name = session.get_inputs()[0].name
    return ExternalDetector(lambda rows: session.run(None, {name: rows})[0], _identify(path), output, box)


def load_exported(path, output="logit", box=STAMP_SIZE, device="auto"):
    """Load a program saved by `torch.export.save` (.pt2) with a dynamic batch dimension.

    Raises
    ------
    UserError
        When the file is malformed or holds anything that opening it could execute.
    """
    _require(path)
    check_exported(path)
    device = choose_device(device)
    try:
        program = torch.export.load(path).module().to(device)
    except Exception as error:  # torch raises many kinds here
        raise UserError(f"{path}: not a program of torch.export ({type(error).__name__}: {error})") from None

    def run(rows):
        with torch.inference_mode():
            return program(torch.from_numpy(rows).to(device)).float().cpu().numpy()

    return ExternalDetector(run, _identify(path), output, box)


def check_exported(path):
    """Refuse an exported program with compiled code, custom objects, or pickles of anything but tensors.

    Notes
    -----
    torch opens some members of such a file with the full unpickler: those that its configuration marks ``use_pickle``,
    custom objects, and the ``.pt`` members. The first two are refused; the last are read here beforehand with torch's
    restricted unpickler, which knows tensors only. Symbolic shapes are still parsed by sympy: load programs you trust.
    """
    name = ""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(set(names)) < len(names):
                raise UserError(f"{path}: two members have one name; refused")
            for name in names:
                if name.endswith((".so", ".cpp", ".cubin", ".o", ".py")):
                    raise UserError(f"{path}: holds {name}, which would be executed; export the plain program")
                if name.endswith("_config.json"):
                    _check_payloads(path, json.loads(archive.read(name)).get("config", {}))
                elif name.endswith(".pt"):
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True, map_location="cpu")
    except UserError:
        raise
    except zipfile.BadZipFile:
        raise UserError(f"{path}: not a program of torch.export (not an archive)") from None
    except Exception as error:  # whatever a malformed or hostile member makes the readers raise
        raise UserError(f"{path}: {name} is not plain tensors ({type(error).__name__}); refused") from None


def _check_payloads(path, payloads):
    for name, entry in payloads.items():
        kind = str(entry.get("path_name", ""))
        if entry.get("use_pickle", True) or not kind.startswith(("weight_", "tensor_")):
            raise UserError(f"{path}: {name} is stored as a pickle or a custom object; refused, keep plain tensors")


def _require(path):
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")


def _identify(path):
    return f"{Path(path).stem}-{hash_file(path)[:12]}"


def read_scores(path, key="galaxy_id"):
    """Read a table of scores, Parquet or CSV.

    Parameters
    ----------
    path : path
    key : str
        ``galaxy_id`` or ``injection_id``; each value once.

    Returns
    -------
    DataFrame
        `key`, ``logit`` (float64), ``score``; from a column ``logit`` or ``score``.
    """
    path = Path(path)
    _require(path)
    if path.suffix == ".parquet":
        table = read_table(path)
    else:
        try:
            table = pd.read_csv(path, dtype={key: str} if key == "galaxy_id" else None)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise UserError(f"{path.name}: not a readable CSV table ({error})") from None
    if key not in table or not {"logit", "score"} & set(table):
        raise UserError(f"{path.name}: needs columns {key} and logit or score; it has {', '.join(map(str, table))}")
    repeated = table[key][table[key].duplicated()]
    if len(repeated):
        raise UserError(f"{path.name}: {key} {repeated.iloc[0]} stands on more than one row")
    column = "logit" if "logit" in table else "score"
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(float)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UserError(f"{path.name}: {column} of {key} {table[key].iloc[row]} is not a finite number")
    logit = values if column == "logit" else to_logit(values, path.name)
    return pd.DataFrame({key: table[key].to_numpy(), "logit": logit, "score": 1 / (1 + np.exp(-logit))})


def join_scores(rows, scores, key="galaxy_id"):
    """Join scores to rows by key; a missing or an extra key is an error.

    Returns
    -------
    DataFrame
        `rows` in their order with ``logit`` and ``score``.
    """
    wanted, given = set(rows[key]), set(scores[key])
    for lost, what in ((wanted - given, "without a score"), (given - wanted, "scored but not asked for")):
        if lost:
            raise UserError(
                f"{len(lost)} {key} {what}, such as {sorted(lost)[0]}; make the two tables the same objects"
            )
    return rows.merge(scores[[key, "logit", "score"]], on=key, how="left", validate="many_to_one")
