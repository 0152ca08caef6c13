"""Training of a detector on stored stamps: one readable loop, resumed exactly after a kill.

Recipe (SPEC 4.3): AdamW, cosine learning rate, weighted BCE (or focal) averaged over the weights, flips and quarter
turns, bfloat16, best validation AUC kept, early stopping. Small shifts, noise and PSF jitter, ensembles and a
guaranteed share of confusers per batch are left; the share that occurs is recorded.
"""

import csv
import dataclasses
import functools
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from lensaudit import rng
from lensaudit.artifacts import UserError, describe_run, hash_file, hash_object, write_atomic, write_json
from lensaudit.constants import RENDER_SIZE, STAMP_SIZE
from lensaudit.detectors import architectures, scoring
from lensaudit.detectors.scoring import apply_head, choose_device, compute_features, hash_tensors, read_tensors
from lensaudit.pixels import preprocessing as preprocessing_module
from lensaudit.pixels.preprocessing import make_preprocessing
from lensaudit.shards import map_shards
from lensaudit.stats import Ranking

CHECKPOINT = ("weights.safetensors", "config.json", "preprocessing.json", "model.json", "metrics.csv")
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # Lin et al. 2017


def train_detector(manifest, store, config, folder, manifest_hash, device="auto"):
    """Train on the train split, choose the epoch on the validation split, and write ``<folder>/checkpoint/``.

    Parameters
    ----------
    manifest : DataFrame
        Training manifest: ``galaxy_id``, ``cutout_path``, ``label``, ``split``, ``sample_weight``, ``quality_ok``;
        ``pool`` when present. Rows that are not quality_ok are left out; the test split is never read.
    store : Store
    config : Config
        Section ``training`` and the seed.
    folder : path
        Of the stage; the resumable state stands in ``<folder>/state/``.
    manifest_hash : str
        sha256 of the manifest; the model id contains it.
    device : str or torch.device

    Returns
    -------
    DataFrame
        One row per epoch: ``epoch``, ``loss``, ``val_auc``, ``learning_rate``, ``n_images``, ``n2_share_min``,
        ``n2_share_max``, ``is_best``.

    Notes
    -----
    Order, flips and initial weights come from named streams of the seed, per epoch, so that a run that was killed and
    resumed gives the same bits as one that was not (same device and thread count). A state whose data, recipe or code
    differ is not resumed.
    """
    folder, settings, device = Path(folder), config.training, choose_device(device)
    rows = select_rows(manifest)
    key = describe_key(rows, config, manifest_hash, device)
    run = Run(settings, config.seed, device, key, folder / "state" / "training.safetensors")
    run.resume()
    data = {}
    if not run.is_finished():
        data = {split: prepare_split(rows[split], store, settings, device) for split in ("train", "val")}
    while not run.is_finished():
        started = time.monotonic()
        train_epoch(run, data["train"])
        run.finish_epoch(data["val"])
        _report(run, time.monotonic() - started)
    write_checkpoint(folder / "checkpoint", run, config, manifest_hash, {k: len(v) for k, v in rows.items()})
    return pd.DataFrame(run.metrics).assign(is_best=lambda t: t["epoch"] == run.best_epoch)


def train_detectors(manifest, store, configs, folders, manifest_hash, device="auto"):
    """Train several detectors on the same stamps: at once on a CPU, where they share the threads, in turn on a GPU.

    Parameters
    ----------
    manifest, store, manifest_hash, device
        As `train_detector` takes them.
    configs, folders : sequence
        Of each detector.

    Returns
    -------
    list of DataFrame
        As `train_detector`.
    """
    task = functools.partial(_train_shard, manifest, store, manifest_hash, device)
    shards = list(zip(configs, folders, strict=True))
    if choose_device(device).type != "cpu":
        return map_shards(task, shards)
    threads = max(1, torch.get_num_threads() // len(shards))
    return map_shards(task, shards, len(shards), initializer=torch.set_num_threads, initargs=(threads,))


def _train_shard(manifest, store, manifest_hash, device, shard):
    config, folder = shard
    return train_detector(manifest, store, config, folder, manifest_hash, device)


def make_companion(config):
    """Return the configuration of the second detector: the same recipe with the next seed and `companion_clip`."""
    return dataclasses.replace(
        config, seed=config.seed + 1, training=dataclasses.replace(config.training, clip=config.training.companion_clip)
    )


def select_rows(manifest):
    """Return the accepted train and val rows, ordered by galaxy_id, so that row order changes nothing."""
    missing = sorted({"galaxy_id", "cutout_path", "label", "split", "sample_weight", "quality_ok"} - set(manifest))
    if missing:
        raise UserError(f"training manifest: column(s) {', '.join(missing)} missing")
    good = manifest[manifest["quality_ok"]].sort_values("galaxy_id", ignore_index=True)
    rows = {split: good[good["split"] == split].reset_index(drop=True) for split in ("train", "val")}
    for split, part in rows.items():
        if part["label"].nunique() < 2:
            raise UserError(
                f"training manifest: split {split!r} needs accepted rows of both labels, has {len(part)} rows"
            )
    return rows


def describe_key(rows, config, manifest_hash, device):
    """Return the hash of everything the result depends on; a stored state with another key is not resumed."""
    modules = (architectures, scoring, preprocessing_module, sys.modules[__name__])
    code = [hash_file(module.__file__) for module in modules]
    keys = [list(part["galaxy_id"]) for part in rows.values()]
    return hash_object([config.section("training"), config.seed, manifest_hash, device.type, code, keys])


def prepare_split(rows, store, settings, device, block=1024):
    """Preprocess all stamps of a split and keep them on the device.

    Returns
    -------
    dict
        ``images`` Tensor (N, crop, crop, 3), bfloat16 or float32 (channels last); ``label``, ``weight`` Tensor (N,)
        float32; ``is_n2`` ndarray (N,) bool.
    """
    spec = make_preprocessing(settings.preprocessing, settings.clip, settings.crop)
    kind = torch.bfloat16 if settings.bfloat16 else torch.float32
    images = torch.empty((len(rows), spec.crop, spec.crop, 3), dtype=kind, device=device)
    box = RENDER_SIZE if spec.crop <= RENDER_SIZE else STAMP_SIZE
    for start in range(0, len(rows), block):
        part = rows.iloc[start : start + block]
        stamps = torch.from_numpy(store.read_box(part["cutout_path"], box)).to(device)
        images[start : start + len(part)] = spec.apply(stamps, list(part["galaxy_id"])).permute(0, 2, 3, 1).to(kind)
    pool = rows["pool"].to_numpy(dtype=object) if "pool" in rows else np.full(len(rows), "", dtype=object)
    return {
        "images": images, "label": torch.tensor(rows["label"].to_numpy(np.float32), device=device),
        "weight": torch.tensor(rows["sample_weight"].to_numpy(np.float32), device=device), "is_n2": pool == "N2",
    }  # fmt: skip


def draw_batches(label, settings, seed, epoch):
    """Draw the order of one epoch: positives `positive_repeats` times, shuffled, cut in nearly equal batches.

    Returns
    -------
    list of (rows ndarray of int64, turns ndarray of int64 in 0-7)
        A turn is a quarter turn (0-3) plus 4 for a flip.
    """
    stream = rng.make_stream(seed, "training/epoch", epoch)
    index = np.concatenate([np.arange(len(label))] + [np.flatnonzero(label == 1)] * (settings.positive_repeats - 1))
    order = index[stream.permutation(len(index))]
    turns = stream.integers(0, 8, len(order))
    n = max(1, math.ceil(len(order) / settings.batch_size))
    return list(zip(np.array_split(order, n), np.array_split(turns, n), strict=True))


def turn_images(images, turns):
    """Apply flips and quarter turns, per image.

    Parameters
    ----------
    images : Tensor of shape (N, S, S, 3)
    turns : ndarray of shape (N,), 0-7

    Returns
    -------
    Tensor of shape (N, 3, S, S), channels last in memory
    """
    out = torch.empty_like(images)
    for turn in range(8):
        where = torch.as_tensor(np.flatnonzero(turns == turn), device=images.device)
        part = images[where]
        part = part.flip(2) if turn >= 4 else part
        out[where] = torch.rot90(part, int(turn % 4), (1, 2))
    return out.permute(0, 3, 1, 2)


def compute_loss(logit, label, weight, kind="bce"):
    """Return the loss averaged over the weights: ``bce`` or ``focal`` (alpha 0.25, gamma 2)."""
    loss = functional.binary_cross_entropy_with_logits(logit, label, reduction="none")
    if kind == "focal":
        right = torch.exp(-loss)
        balance = FOCAL_ALPHA * label + (1 - FOCAL_ALPHA) * (1 - label)
        loss = balance * (1 - right) ** FOCAL_GAMMA * loss
    elif kind != "bce":
        raise UserError(f"training.loss {kind!r} unknown; known are bce, focal")
    return (weight * loss).sum() / weight.sum()


def train_epoch(run, data):
    """One pass over the epoch's batches; leaves the mean loss and the confuser shares in ``run.progress``."""
    settings, device = run.settings, run.device
    batches = draw_batches(data["label"].cpu().numpy(), settings, run.seed, run.epoch)
    # Cosine over cosine_epochs, stepped per epoch.
    rate = 0.5 * settings.learning_rate * (1 + math.cos(math.pi * min(run.epoch / settings.cosine_epochs, 1.0)))
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.network.train()
    total, shares, started = 0.0, [], time.monotonic()
    for number, (rows, turns) in enumerate(batches):
        where = torch.as_tensor(rows, device=device)
        images = turn_images(data["images"][where], turns)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bfloat16):
            features = run.network.body(images)
        logit = run.network.head(features.float())[:, 0]
        loss = compute_loss(logit, data["label"][where], data["weight"][where], settings.loss)
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.optimizer.step()
        total += loss.item() * len(rows)
        shares.append(float(data["is_n2"][rows].mean()))
        if sys.stderr.isatty() or number % 20 == 0:
            left = (time.monotonic() - started) * (len(batches) / (number + 1) - 1)
            print(f"epoch {run.epoch + 1}: {number + 1}/{len(batches)} batches, {left:.0f} s left   ", end="\r",
                  file=sys.stderr, flush=True)  # fmt: skip
    n = sum(len(rows) for rows, _ in batches)
    run.progress = {"loss": total / n, "learning_rate": rate, "n_images": n, "n2_share_min": min(shares),
                    "n2_share_max": max(shares)}  # fmt: skip


class Run:
    """The state of a training run: network, optimiser, epoch, metrics and best weights, saved after every epoch.

    Parameters
    ----------
    settings : TrainingConfig
    seed : int
    device : torch.device
    key : str
        From `describe_key`.
    path : path
        Of the state file, plain tensors with a JSON header.
    """

    def __init__(self, settings, seed, device, key, path):
        self.settings, self.seed, self.device, self.key, self.path = settings, seed, device, key, Path(path)
        start = int(rng.make_stream(seed, "training/weights").integers(2**31))
        network = make_seeded(settings.architecture, start)
        self.network = network.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.epoch, self.metrics, self.progress = 0, [], {}
        self.best_epoch, self.best_auc, self.best = 0, -math.inf, self.copy_weights()

    def copy_weights(self):
        """Return the weights as contiguous CPU tensors."""
        return {name: value.detach().cpu().contiguous().clone() for name, value in self.network.state_dict().items()}

    def is_finished(self):
        """Whether all epochs are done, or `patience` of them passed without a better validation AUC."""
        return self.epoch >= self.settings.epochs or self.epoch - self.best_epoch >= self.settings.patience > 0

    def finish_epoch(self, val):
        """Score the validation split, note the metrics, keep the best weights, save the state."""
        self.network.eval()
        images = val["images"].permute(0, 3, 1, 2)
        features = compute_features(self.network, images, self.device, self.settings.bfloat16)
        logit, label = apply_head(self.network, features), val["label"].cpu().numpy()
        auc = float(Ranking(logit, label).auc()[0])
        self.epoch += 1
        self.metrics.append({"epoch": self.epoch, "val_auc": auc, **self.progress})
        if auc > self.best_auc:
            self.best_epoch, self.best_auc, self.best = self.epoch, auc, self.copy_weights()
        self.save()

    def save(self):
        """Write the whole state atomically: a kill leaves the former one."""
        from safetensors.torch import save_file

        tensors = {f"network/{k}": v for k, v in self.copy_weights().items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{k}": v.detach().cpu().contiguous() for k, v in state.items()}
        header = {"key": self.key, "epoch": self.epoch, "metrics": self.metrics, "best_epoch": self.best_epoch,
                  "best_auc": self.best_auc}  # fmt: skip
        with write_atomic(self.path) as temporary:
            save_file(tensors, temporary, metadata={"state": json.dumps(header)})

    def resume(self):
        """Load the stored state when it belongs to the same data, recipe and code; returns whether it did."""
        from safetensors import SafetensorError, safe_open

        for stale in self.path.parent.glob(f".{self.path.name}.*"):  # what a kill left half-written
            stale.unlink(missing_ok=True)
        if not self.path.is_file():
            return False
        try:
            with safe_open(self.path, "pt") as handle:
                header = json.loads(handle.metadata()["state"])
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"{self.path}: not a readable training state ({error}); delete it to start anew") from None
        if header["key"] != self.key:
            print("training: the stored state is of other data, recipe or code; starting anew", file=sys.stderr)
            return False
        parts = {"network": {}, "best": {}, "optimizer": {}}
        for name, value in read_tensors(self.path).items():
            part, _, rest = name.partition("/")
            parts[part][rest] = value
        self.network.load_state_dict(parts["network"])
        state = {}
        for name, value in parts["optimizer"].items():
            number, _, entry = name.partition("/")
            state.setdefault(int(number), {})[entry] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.best = parts["best"]
        self.epoch, self.metrics = header["epoch"], header["metrics"]
        self.best_epoch, self.best_auc = header["best_epoch"], header["best_auc"]
        print(f"training: resumed after epoch {self.epoch}", file=sys.stderr)
        return True


def make_seeded(architecture, seed):
    """Return a new network; apart so that a test may put a small one in its place."""
    return architectures.make_network(architecture, seed)


def write_checkpoint(folder, run, config, manifest_hash, n_rows):
    """Write the checkpoint folder: weights, configuration, preprocessing, model id, metrics, run_info.

    Returns
    -------
    str
        The model id, ``<architecture>-<first 12 of the manifest's hash>-<first 12 of the weights' hash>``.
    """
    from safetensors.torch import save_file

    folder, settings = Path(folder), config.training
    spec = make_preprocessing(settings.preprocessing, settings.clip, settings.crop)
    weights = hash_tensors(run.best)
    identifier = f"{settings.architecture}-{manifest_hash[:12]}-{weights[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomic(folder / "weights.safetensors") as temporary:
        save_file(run.best, temporary)
    write_json(folder / "config.json", config.section("training") | {"seed": config.seed})
    write_json(folder / "preprocessing.json", spec.to_dict())
    write_json(folder / "model.json", {
        "model_id": identifier, "manifest_sha256": manifest_hash, "weights_sha256": weights,
        "preprocessing_sha256": spec.checksum(), "best_epoch": run.best_epoch, "val_auc": run.best_auc,
        "n_epochs": run.epoch, "n_train": n_rows["train"], "n_val": n_rows["val"],
        "n_parameters": sum(p.numel() for p in run.network.parameters()),
    })  # fmt: skip
    with (
        write_atomic(folder / "metrics.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as handle,
    ):
        writer = csv.DictWriter(handle, fieldnames=list(run.metrics[0]))
        writer.writeheader()
        writer.writerows(run.metrics)
    write_json(folder / "run_info.json", describe_run() | {"seed": config.seed, "device": run.device.type,
                                                           "threads": torch.get_num_threads()})  # fmt: skip
    return identifier


def register_checkpoint(stage, folder="checkpoint"):
    """Register a checkpoint's files as outputs of the stage (run_info.json holds a clock time and is not one).

    Parameters
    ----------
    stage : lensaudit.artifacts.Stage
    folder : str
        Inside the stage's folder.

    Returns
    -------
    path
        The checkpoint folder.
    """
    for name in CHECKPOINT:
        path = stage.output(f"{folder}/{name}")
    return path.parent


def _report(run, seconds):
    last, left = run.metrics[-1], (run.settings.epochs - run.epoch) * seconds
    print(f"clip {run.settings.clip:g}, epoch {run.epoch}/{run.settings.epochs}: loss {last['loss']:.4f}, "
          f"validation AUC {last['val_auc']:.4f}, {seconds:.0f} s, {left:.0f} s left", file=sys.stderr, flush=True)
