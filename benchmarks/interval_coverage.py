"""Coverage of the completeness intervals, for independent trials and for reused hosts and bricks, by simulation.

Usage: python benchmarks/interval_coverage.py [--sets 40] [--seed 1] [--json] [--out FILE]

Goal: the coverage of the 68 and 95 % intervals, averaged over p uniform in [0.02, 0.98] and within [0.02, 0.1],
[0.1, 0.9] and [0.9, 0.98], lies within 2.5 points of nominal for n >= 20 independent trials, and with clustered hosts
and bricks not below nominal - 2.5 points. Independent trials: the binomial sum over k is exact, p on a fine grid;
Wilson and Clopper-Pearson stand beside Jeffreys. Clustered: `completeness.count_cells` itself on the demo grid, 539
cells of 204 injections, 51 hosts of a column at 4 per cell, every cell with its own p, the intraclass correlation 0.35
(`hosts`) and 0.35 with 0.10 between the hosts of a brick (`bricks`, 13 per column, the demo grid's median; `few
bricks`, 5). `beta-binomial` has that correlation at every p; `latent normal` at p = 0.5 and less towards 0 and 1, and
shares a host's and brick's value among the 11 radii, as one galaxy is shared. The bricks of a beta-binomial are copied
flags.

Prediction, written before the first run. Independent: Jeffreys within 1 point of nominal on the whole range and in
[0.1, 0.9] at every n; at n = 20 the ends fail at 68 % by some 5 points, either way, since k takes few values there and
the bound at k = 0 is set to 0; from n = 50 on they pass. Wilson about as good in the middle and too wide at the ends
for 68 %; Clopper-Pearson 3 to 15 points above nominal. Clustered: hosts pass. Bricks fall below in the estimator of rho
as it was, since the residuals are taken about a cell's own mean, which lowers every pair product by 1/n_eff of the
variance; with few bricks 95 % intervals hold about 90 %. Latent-normal cells cover too often at the ends, where the
pooled rho is larger than theirs.

What came out. Independent: the ends pass at n = 20 too (the fear was wrong); the closest calls among n = 20 to 120 are
-2.5 points at n = 44 (68 %, ends) and +2.4 at n = 23 (95 %, ends). Wilson is as good at the ends as Jeffreys;
Clopper-Pearson 2 to 21 points above at 68 %. Clustered: as feared, 62 % and 92 % with few bricks.
`stats.pair_correlation` now takes the cell's estimated mean into account, and every scene passes. `averages_95` is the
coverage of flat averages along theta_E, whose interval comes from resampled bricks; without a sufficient cell (few
bricks) there is none.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats as sps

from lensaudit import rng, stats
from lensaudit.audit import completeness
from lensaudit.config import load_config

RANGES = {"all": (0.02, 0.98), "low": (0.02, 0.1), "middle": (0.1, 0.9), "high": (0.9, 0.98)}
LEVELS = (0.68, 0.95)
METHODS = {"jeffreys": stats.jeffreys_interval, "wilson": stats.wilson_interval, "exact": stats.clopper_pearson}
SIZES = (20, 50, 100, 200, 500)
SCENES = {  # model, bricks per column, correlation inside a host, between the hosts of a brick
    "beta-binomial, hosts": ("beta", 13, 0.35, 0.0),
    "latent normal, hosts": ("normal", 13, 0.35, 0.0),
    "beta-binomial, bricks": ("beta", 13, 0.35, 0.10),
    "latent normal, bricks": ("normal", 13, 0.35, 0.10),
    "beta-binomial, few bricks": ("beta", 5, 0.35, 0.10),
    "latent normal, few bricks": ("normal", 5, 0.35, 0.10),
}
N_HOSTS, PER_HOST = 51, 4
CONFIG = load_config("demo")
GRID = completeness.make_grid(CONFIG)
N_RADII, N_COLUMNS = len(GRID["theta_E"]), len(GRID["seeing"]) * len(GRID["depth"])
GOAL = 0.025


def cover_independent(n, level, method, step=2e-4):
    """Return the exact coverage of n independent trials as a dict over `RANGES`."""
    k, p = np.arange(n + 1), np.arange(0.02 + step / 2, 0.98, step)
    lower, upper = METHODS[method](k, n, level)
    inside = (lower <= p[:, None]) & (p[:, None] <= upper)
    cover = np.sum(sps.binom.pmf(k, n, p[:, None]) * inside, axis=1)
    return {name: float(cover[(p > low) & (p < high)].mean()) for name, (low, high) in RANGES.items()}


def draw_flags(model, p, brick, rho_h, rho_b, stream):
    """Return flags of shape (radii, hosts, 4) of one column; `p` (radii,), `brick` (hosts,) number of each host."""
    shape = (len(p), len(brick), PER_HOST)
    p = p[:, None, None]
    if model == "normal":
        # Two latent normals of correlation r exceed their medians together with correlation 2/pi asin(r).
        r_h, r_b = np.sin(0.5 * np.pi * np.array([rho_h, rho_b]))
        common = np.sqrt(r_b) * stream.standard_normal(brick.max() + 1)[brick]
        common = common + np.sqrt(r_h - r_b) * stream.standard_normal(len(brick))
        latent = common[None, :, None] + np.sqrt(1.0 - r_h) * stream.standard_normal(shape)
        return latent < sps.norm.ppf(p)
    # Flags copied from the brick's with probability c, otherwise drawn from the host's own beta-distributed chance;
    # the host's correlation is then c^2 + (1 - c)^2 rho with c^2 = rho_b.
    c = np.sqrt(rho_b)
    rho = (rho_h - rho_b) / (1.0 - c) ** 2
    own = stream.beta(p * (1.0 / rho - 1.0), (1.0 - p) * (1.0 / rho - 1.0), (*shape[:2], 1))
    copied = (stream.random((shape[0], brick.max() + 1)) < p[:, :, 0])[:, brick, None]
    return np.where(stream.random(shape) < c, copied, stream.random(shape) < own)


def draw_set(scene, number, seed):
    """Return one grid of scored injections and the true p of its cells (radii, columns)."""
    model, n_bricks, rho_h, rho_b = SCENES[scene]
    stream = rng.make_stream(seed, f"benchmarks/coverage/{scene}", number)
    n_cells = N_RADII * N_COLUMNS
    p = (0.02 + 0.96 * (stream.permutation(n_cells) + stream.random(n_cells)) / n_cells).reshape(N_RADII, N_COLUMNS)
    parts = []
    for column in range(N_COLUMNS):
        i_seeing, i_depth = divmod(column, len(GRID["depth"]))
        brick = np.arange(N_HOSTS) % n_bricks
        flag = draw_flags(model, p[:, column], brick, rho_h, rho_b, stream)
        radius, host, _ = np.indices(flag.shape)
        parts.append(pd.DataFrame({
            "theta_E": np.asarray(GRID["theta_E"])[radius.ravel()], "psfsize_r": GRID["seeing"][i_seeing],
            "depth_r": GRID["depth"][i_depth], "host_index": column * N_HOSTS + host.ravel(),
            "brickname": (column * n_bricks + brick[host.ravel()]).astype(str),
            "logit": np.where(flag, 1.0, -1.0).ravel(),
        }))  # fmt: skip
    return pd.concat(parts, ignore_index=True), p


def cover_clustered(scene, n_sets, seed):
    """Return coverage over `RANGES` and `LEVELS`, its standard error from the sets, and the mean correlations."""
    rows, averages = [], []
    for number in range(n_sets):
        table, p = draw_set(scene, number, seed)
        hosts = table.drop_duplicates("host_index").assign(footprint_weight=1.0, deflector_weight=1.0)
        cells = completeness.count_cells(table, GRID, {"t": 0.0}, CONFIG, hosts).assign(p=p.ravel(), number=number)
        rows.append(cells)
        averages.append(cover_averages(cells, table))
    cells = pd.concat(rows, ignore_index=True)
    out = {"rho_host": cells["rho_host"].mean(), "rho_brick": cells["rho_brick"].mean(), "n_eff": cells["n_eff"].mean()}
    out["averages_95"] = np.nanmean(averages) if np.isfinite(averages).any() else np.nan
    for level in LEVELS:
        bounds = cells[f"lower_{100 * level:.0f}"], cells[f"upper_{100 * level:.0f}"]
        inside = (bounds[0] <= cells["p"]) & (cells["p"] <= bounds[1])
        for name, (low, high) in RANGES.items():
            own = cells["p"].between(low, high)
            per_set = inside[own].groupby(cells["number"][own]).mean()
            out[f"{name}_{100 * level:.0f}"] = inside[own].mean()
            out[f"{name}_{100 * level:.0f}_error"] = per_set.std() / np.sqrt(len(per_set)) if n_sets > 1 else np.nan
    return {key: None if np.isnan(value) else round(float(value), 5) for key, value in out.items()}


def cover_averages(cells, table):
    """Return the share of flat averages along theta_E whose 95 % interval holds the mean p; NaN without any cell."""
    table, own = table.assign(untied=False), cells[cells["sufficient"]]
    if own.empty:
        return np.nan
    averages = completeness.average_cells(cells, ("theta_E",), table, GRID, {"t": 0.0}, CONFIG, "flat")
    truth = averages["theta_E"].map(own.groupby("theta_E")["p"].mean())
    return averages.assign(inside=truth.between(averages["lower"], averages["upper"]))["inside"][truth.notna()].mean()


def run(n_sets, seed):
    """Return the summary: coverages, and what misses the goal."""
    independent = {f"{m}, n = {n}, {100 * level:.0f} %": cover_independent(n, level, m)
                   for m in METHODS for n in SIZES for level in LEVELS}  # fmt: skip
    clustered = {scene: cover_clustered(scene, n_sets, seed) for scene in SCENES}
    missed = [f"{key}, {name}: {value:.4f}" for key, row in independent.items() if key.startswith("jeffreys")
              for name, value in row.items() if abs(value - float(key.split()[-2]) / 100) > GOAL]  # fmt: skip
    missed += [f"{scene}, {name}, {100 * level:.0f} %: {row[f'{name}_{100 * level:.0f}']:.4f}"
               for scene, row in clustered.items() for name in RANGES for level in LEVELS
               if row[f"{name}_{100 * level:.0f}"] < level - GOAL]  # fmt: skip
    return {"seed": seed, "n_sets": n_sets, "n_cells_per_set": N_RADII * N_COLUMNS, "n_per_cell": N_HOSTS * PER_HOST,
            "goal": GOAL, "independent": independent, "clustered": clustered, "missed": missed}  # fmt: skip


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=40, help="simulated grids per scene")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default=None, help="file for the summary")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    summary = run(args.sets, args.seed)
    print(pd.DataFrame(summary["independent"]).T.round(4).to_string())
    print(pd.DataFrame(summary["clustered"]).astype(float).round(4).to_string())
    print("outside the goal:", *(summary["missed"] or ["none"]), sep="\n  ")
    if args.out:
        Path(args.out).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(summary))


if __name__ == "__main__":
    main()
