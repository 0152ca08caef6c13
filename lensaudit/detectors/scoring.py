"""Scores of a stored detector: a function of the stamp alone, whatever the batch it comes in."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lensaudit.artifacts import UserError, read_json
from lensaudit.constants import RENDER_SIZE, STAMP_SIZE
from lensaudit.detectors.architectures import list_stages, make_network
from lensaudit.pixels.preprocessing import Preprocessing

# Every forward pass has exactly this many rows (the last one padded), so that the same kernels run on every stamp.
BATCH = {"cpu": 128, "cuda": 1024}


def choose_device(name="auto"):
    """Return the torch device of a name: ``"auto"`` takes CUDA when there is one."""
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' asked for, but torch sees no CUDA device; use auto or cpu")
    return torch.device(name)


def compute_features(network, prepared, device, bfloat16=True):
    """Run the body in padded batches of fixed size.

    Parameters
    ----------
    network : Network
        In eval mode, on `device`.
    prepared : Tensor of shape (N, 3, crop, crop)
        Preprocessed stamps, any device.
    device : torch.device
    bfloat16 : bool
        Mixed precision in the body.

    Returns
    -------
    Tensor of shape (N, n_features), float32, on the CPU
    """
    size, parts = BATCH[device.type], []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        for start in range(0, len(prepared), size):
            rows = prepared[start : start + size]
            batch = torch.zeros((size, *rows.shape[1:]), dtype=torch.float32, device=device)
            batch[: len(rows)] = rows
            features = network.body(batch.contiguous(memory_format=torch.channels_last))
            parts.append(features[: len(rows)].float().cpu())
    return torch.cat(parts) if parts else torch.zeros((0, network.head.in_features))


def apply_head(network, features):
    """Return logits, ndarray of shape (N,), float32, from features on the CPU; row by row in float64.

    A matrix product may sum a row differently in another batch; this sum cannot.
    """
    weight = network.head.weight[0].detach().double().cpu()
    bias = network.head.bias[0].detach().double().cpu()
    return ((features.double() * weight).sum(1) + bias).float().numpy()


class Detector:
    """A network with its preprocessing, ready to score.

    Parameters
    ----------
    network : Network
    preprocessing : Preprocessing
    device : torch.device
    identifier : str
    bfloat16 : bool

    Notes
    -----
    On one machine the logit of a stamp is the same bits in any batch, order and box size (65 or 101). Between machines,
    thread counts or devices bfloat16 kernels may differ by up to 0.05 in the logit.
    """

    def __init__(self, network, preprocessing, device, identifier, bfloat16=True):
        self.network = network.to(device, memory_format=torch.channels_last).eval()
        self.preprocessing, self.device, self.id, self.bfloat16 = preprocessing, device, identifier, bfloat16

    @property
    def box(self):
        """Smallest stored box the detector can score [pixels]: 65, or 101 for a crop of 101."""
        return RENDER_SIZE if self.preprocessing.crop <= RENDER_SIZE else STAMP_SIZE

    def penultimate(self, images, ids=None):
        """Return the features before the logit, ndarray of shape (N, n_features), float32; see `score`."""
        return self._features(images, ids).numpy()

    def layers(self, images, ids=None):
        """Return the features after every stage but the last, averaged over the image, and those of `penultimate`.

        Returns
        -------
        dict of str -> ndarray of shape (N, n_channels), float32
            Such as layer1, layer2, layer3 and penultimate.
        """
        stages = list(list_stages(self.network.body).items())[:-1]
        found = {name: [torch.zeros((0, 1))] for name, _ in stages}
        hooks = [
            module.register_forward_hook(lambda _module, _given, out, name=name: found[name].append(
                out.float().mean((2, 3)).cpu()))
            for name, module in stages
        ]  # fmt: skip
        try:
            last = self.penultimate(images, ids)
        finally:
            for hook in hooks:
                hook.remove()
        # Only the last batch is filled up, so that its surplus rows stand at the end.
        rows = {name: torch.cat(parts[1:] or parts)[: len(last)].numpy() for name, parts in found.items()}
        return rows | {"penultimate": last}

    def score(self, images, ids=None):
        """Score stamps.

        Parameters
        ----------
        images : ndarray of shape (N, 3, S, S), float32 [nMgy]
            Bands g, r, z; S is 65 or 101.
        ids : sequence of str, length N, optional
            Named when a stamp is refused.

        Returns
        -------
        ndarray of shape (N,), float32
            Logits.
        """
        return apply_head(self.network, self._features(images, ids))

    def _features(self, images, ids):
        images = torch.as_tensor(np.ascontiguousarray(images, dtype=np.float32))
        blocks, size = [], 2 * BATCH[self.device.type]
        for start in range(0, len(images), size):  # larger blocks fall out of the cache
            part = slice(start, start + size)
            rows = images[part].to(self.device)
            prepared = self.preprocessing.apply(rows, None if ids is None else list(ids)[part])
            blocks.append(compute_features(self.network, prepared, self.device, self.bfloat16))
        return torch.cat(blocks) if blocks else torch.zeros((0, self.network.head.in_features))


def load_detector(folder, device="auto"):
    """Load a checkpoint folder: weights as plain tensors, the rest as JSON; nothing in it is executed.

    Parameters
    ----------
    folder : path
        Holds ``weights.safetensors``, ``config.json``, ``preprocessing.json``, ``model.json``.
    device : str or torch.device

    Returns
    -------
    Detector
        ``.id`` is the model id, which contains the manifest's hash.

    Raises
    ------
    UserError
        When a file is missing or malformed, or the weights or the preprocessing are not those of the model id.
    """
    folder, device = Path(folder), choose_device(device)
    settings, model = read_json(folder / "config.json"), read_json(folder / "model.json")
    preprocessing = Preprocessing.from_dict(read_json(folder / "preprocessing.json"))
    if preprocessing.checksum() != model["preprocessing_sha256"]:
        raise UserError(
            f"{folder.name}/preprocessing.json: not the preprocessing this model was trained with; train again"
        )
    tensors = read_tensors(folder / "weights.safetensors")
    if hash_tensors(tensors) != model["weights_sha256"]:
        raise UserError(f"{folder.name}/weights.safetensors: not the weights model.json describes; train again")
    network = make_network(settings["architecture"])
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{folder.name}/weights.safetensors: does not fit {settings['architecture']} ({error})"
        ) from None
    return Detector(network, preprocessing, device, model["model_id"], bool(settings["bfloat16"]))


def read_tensors(path):
    """Read a safetensors file as a dict of CPU tensors, with one clear error when it is missing or malformed."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run 04_training first") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); delete it and train again") from None


def hash_tensors(tensors):
    """Return the sha256 of named tensors: names, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def score_table(detector, store, rows, block=2048):
    """Score stored stamps.

    Parameters
    ----------
    detector : Detector, or any object with ``score(images, ids)``
    store : Store
    rows : DataFrame
        Unique ``galaxy_id`` with ``cutout_path``; the caller leaves out what is not quality_ok.
    block : int
        Stamps read at once.

    Returns
    -------
    DataFrame
        ``galaxy_id``, ``cutout_path``, ``logit`` (float32), ``score`` = 1 / (1 + exp(-logit)), in the order of `rows`.
    """
    repeated = rows["galaxy_id"][rows["galaxy_id"].duplicated()]
    if len(repeated):
        raise UserError(f"galaxy_id {repeated.iloc[0]} stands on more than one row; scores are joined by key")
    size = getattr(detector, "box", STAMP_SIZE)
    logits = [np.zeros(0, np.float32)]
    for start in range(0, len(rows), block):
        part = rows.iloc[start : start + block]
        images = store.read_box(part["cutout_path"], size)
        logits.append(np.asarray(detector.score(images, list(part["galaxy_id"])), dtype=np.float32))
    logit = np.concatenate(logits)
    out = pd.DataFrame({"galaxy_id": rows["galaxy_id"].to_numpy(), "cutout_path": rows["cutout_path"].to_numpy()})
    return out.assign(logit=logit, score=1.0 / (1.0 + np.exp(-logit.astype(np.float64))))
