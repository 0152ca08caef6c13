"""Rungs of the ablation ladder that need training: clip 20 against 10 (in raw-MAD units), and the training seed.

Trains the detector of a profile anew for every clip and seed, sets its thresholds on the validation negatives, and runs
both ends of the ladder and the held-out lenses through it. Injections and seed of the ladder are the profile's own, so
that sets are paired. Prints the table of every detector and the rungs, and writes them to ``ladder_trainings.csv`` and
``ladder_retrained.csv`` in ``benchmarks/results``, where `audit.ladder.read_retrained` finds them. About a training and
ten seconds for every clip and seed; every finished one is kept under ``artifacts/<profile>/ladder_retrained`` and used
again while data, recipe and code are the same.

    python benchmarks/ladder_retrained.py --profile demo --clips 10 20 --seeds 20261 20262 20263
"""

import argparse
import dataclasses
import sys

import numpy as np
import pandas as pd
from scipy import stats as sps

from lensaudit import survey
from lensaudit.artifacts import Stage, find_root, hash_file, hash_object, write_atomic
from lensaudit.audit import campaign, completeness, held_out, ladder, scores, thresholds
from lensaudit.config import load_config
from lensaudit.detectors import scoring
from lensaudit.detectors.training import describe_key, select_rows, train_detector
from lensaudit.pixels.store import open_store

UPSTREAM = ("00_survey", "03_cutouts", "05_evaluation", "06_injection_realism")


def read_inputs(config):
    """Return the manifest with its hash, stamps, hosts, their boxes and the held-out lenses of a finished profile."""
    stage = Stage("ladder_retrained", config, inputs=UPSTREAM)
    manifest, store = stage.read_table("03_cutouts", "training_manifest.parquet"), open_store(stage, "03_cutouts")
    hosts = stage.read_table("06_injection_realism", "hosts.parquet")
    measured = stage.read_table("06_injection_realism", "lens_measurements.parquet")
    scored = stage.read_table("05_evaluation", "test_scores.parquet", ["galaxy_id", "cutout_path", "logit"])
    truth = survey.read_truth(stage, "lenses") if config.survey.simulated else None
    return {
        "manifest": manifest, "hash": hash_file(stage.input("03_cutouts", "training_manifest.parquet")), "store": store,
        "hosts": hosts, "boxes": campaign.load_boxes(hosts, store), "folder": stage.folder,
        "lenses": held_out.join_lenses(held_out.score_lenses(measured, scored), truth),
    }  # fmt: skip


def measure_detector(inputs, config, clip, seed):
    """Train one detector and return its completeness at both ends and its recall, one row per weighting and threshold.

    A table finished earlier, from the same data, recipe and code, is read instead.
    """
    own = dataclasses.replace(config, seed=seed, training=dataclasses.replace(config.training, clip=float(clip)))
    device = scoring.choose_device(config.device)
    key = hash_object([describe_key(select_rows(inputs["manifest"]), own, inputs["hash"], device), config.seed,
                       campaign.hash_engine(), config.section("ladder"), config.section("evaluation")])  # fmt: skip
    folder = inputs["folder"] / f"clip-{clip:g}-seed-{seed}"
    path = folder / f"completeness-{key[:16]}.csv"
    if path.is_file():
        return pd.read_csv(path)
    train_detector(inputs["manifest"], inputs["store"], own, folder, inputs["hash"], config.device)
    detector = scoring.load_detector(folder / "checkpoint", config.device)
    accepted = inputs["manifest"][inputs["manifest"]["quality_ok"]]
    val = accepted[accepted["split"] == "val"]
    joined = scores.join_scores(val, scoring.score_table(detector, inputs["store"], val))
    limits = thresholds.set_thresholds(joined, config.evaluation, config.seed)[0]
    lenses = inputs["lenses"].drop(columns=["logit", "score"], errors="ignore")
    lenses["logit"] = scoring.score_table(detector, inputs["store"], lenses)["logit"].to_numpy()
    ends = [rung for rung in ladder.list_rungs() if rung.name in ladder.ENDS]
    scored = ladder.run_ladder(inputs["hosts"], inputs["boxes"], detector, config, folder / "state", ends)
    table = ladder.tabulate_ladder(scored, lenses, completeness.take_thresholds(limits, ladder.POINTS), config)
    table = table[table["kind"].isin(["end", "observed"])].assign(clip=float(clip), seed=seed)
    table = table[["clip", "seed", "rung", "weighting", "threshold_name", "completeness"]]
    with write_atomic(path) as temporary:
        table.to_csv(temporary, index=False)
    return table


def summarise(levels):
    """Return the rungs `clip_20` and `seeds` in the columns of the ladder's table.

    Notes
    -----
    clip_20: mean over the seeds of the paired difference, with the 95 per cent interval of Student's t; two seeds at
    least. seeds: 0, with the lowest and highest seed at clip 10 about their mean: what training alone scatters. The
    seeds share injections and sky, which the intervals therefore know nothing of.
    """
    rows = []
    for (weighting, point), part in levels.groupby(["weighting", "threshold_name"], sort=False):
        rows += [{"rung": rung, "weighting": weighting, "threshold_name": point, "n": part["seed"].nunique()}
                 for rung in ("clip_20", "seeds")]  # fmt: skip
        for end, prefix in zip(ladder.ENDS, ("first_in", "last_out"), strict=True):
            table = part[part["rung"] == end].pivot(index="seed", columns="clip", values="completeness")
            change = (table[20.0] - table[10.0]).dropna() if {10.0, 20.0} <= set(table) else pd.Series(dtype=float)
            n = len(change)
            half = sps.t.ppf(0.975, n - 1) * change.std() / np.sqrt(n) if n > 1 else np.nan
            for row, value, low, high in (
                (rows[-2], change.mean(), change.mean() - half, change.mean() + half),
                (rows[-1], 0.0, table[10.0].min() - table[10.0].mean(), table[10.0].max() - table[10.0].mean()),
            ):  # fmt: skip
                row |= {prefix: value, f"{prefix}_lower": low, f"{prefix}_upper": high}
    return pd.DataFrame(rows)


def main(arguments=None):
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clips", type=float, nargs="+", default=[10.0, 20.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[20261, 20262, 20263])
    options = parser.parse_args(arguments)
    config = load_config(options.profile, options.device)
    inputs = read_inputs(config)
    levels = pd.concat([measure_detector(inputs, config, clip, seed) for seed in options.seeds
                        for clip in options.clips], ignore_index=True)  # fmt: skip
    print(levels.pivot_table(index=["threshold_name", "weighting", "rung"], columns=["clip", "seed"],
                             values="completeness").round(3).to_string())  # fmt: skip
    found = summarise(levels)
    print(found.round(3).to_string(index=False))
    for name, table in (("ladder_retrained", found), ("ladder_trainings", levels)):
        # The profile says whose they are; the manifest of its stamps, which data they were made from.
        table = table.assign(profile=config.profile, manifest=inputs["hash"][:16])
        with write_atomic(find_root() / "benchmarks" / "results" / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
