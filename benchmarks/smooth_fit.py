"""Time to fit the smooth completeness model, and its held-out log-score, against peers on the same folds.

Usage: python benchmarks/smooth_fit.py [--rows 100000] [--rounds 3] [--cores 2] [--table FILE --threshold X] [--json]

Without `--table` the injections are simulated: a smooth completeness of theta_E, seeing and depth, with hosts whose
rows are correlated. `--table` takes scored grid injections (Parquet) and a threshold on their logit. Rounds alternate
between the models; times are medians, and the ratios are those of one run on one machine. A peer's time is that of one
fit on all rows; the smooth model's contains its penalties, covariance and hosts, which the peers do not give.
"""

import argparse
import json
import time

import numpy as np
import pandas as pd
from scipy.special import expit, ndtri
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from lensaudit import rng
from lensaudit.artifacts import read_table
from lensaudit.audit import completeness, smooth, smooth_checks
from lensaudit.config import load_config

PER_HOST, LATENT = 25, 0.3
LIMIT = 60.0  # seconds for 1e5 injections on 2 cores


def simulate(n, seed):
    """Return injections with a known completeness, PER_HOST to a host, and their flags."""
    stream = rng.make_stream(seed, "benchmark/smooth")
    host = np.arange(n) // PER_HOST
    n_hosts = host[-1] + 1
    seeing, depth = stream.uniform(0.825, 1.875, n_hosts)[host], stream.uniform(22.25, 25.75, n_hosts)[host]
    theta = stream.uniform(0.375, 3.125, n)
    logit = -1.5 + 2.6 * np.tanh((theta - 1.3) / 0.5) - 1.1 * np.maximum(theta - 2.2, 0.0)
    p = 0.002 + 0.9 * expit(logit - 2.0 * (seeing - 1.3) + 0.8 * (depth - 24.0))
    deviate = np.sqrt(LATENT) * stream.standard_normal(n_hosts)[host] + np.sqrt(1 - LATENT) * stream.standard_normal(n)
    table = pd.DataFrame({"theta_E": theta, "psfsize_r": seeing, "depth_r": depth, "host_index": host,
                          "brickname": (host // 8).astype(str)})  # fmt: skip
    return table, deviate < ndtri(p)


def predict_peer(name, table, flag, query):
    """Fit one of the peers and return its P(recovered) for `query`."""
    x, q = (part[list(smooth.SMOOTH_AXES)].to_numpy(dtype=float) for part in (table, query))
    if name == "boosted trees":
        return HistGradientBoostingClassifier(random_state=0).fit(x, flag).predict_proba(q)[:, 1]
    scale = StandardScaler().fit(x)
    return LogisticRegression().fit(scale.transform(x), flag).predict_proba(scale.transform(q))[:, 1]


def score_peer(name, held, seed):
    """Return a peer's mean held-out log-score, and the smooth model's gain on it with its host-clustered interval."""
    own, p = held.table, np.empty(len(held.table))
    for number in np.unique(own["fold"]):
        rows = (own["fold"] == number).to_numpy()
        p[rows] = predict_peer(name, own[~rows], own.loc[~rows, "flag"], own[rows])
    compared = smooth_checks.HeldOut(own.assign(cells=p), held.draws)
    row = smooth_checks.score_models(compared, seed).set_index("model").loc["cells"]
    return {"log_score": row["log_score"], "gain": row["gain"], "lower": row["gain_lower"], "upper": row["gain_upper"]}


def run(args):
    """Run the benchmark and return its summary."""
    if args.table:
        table = read_table(args.table)
        flag = table["logit"].to_numpy() > args.threshold
    else:
        table, flag = simulate(args.rows, args.seed)
    grid = completeness.make_grid(load_config("demo"))
    inside = completeness.assign_cells(table, grid) >= 0
    table, flag = table[inside].reset_index(drop=True), flag[inside]
    peers, times = ("logistic regression", "boosted trees"), {}
    for _ in range(args.rounds):
        started = time.perf_counter()
        model = smooth.fit_smooth(table, flag)
        times.setdefault("smooth", []).append(time.perf_counter() - started)
        for name in peers:
            started = time.perf_counter()
            predict_peer(name, table, flag, table[:1])
            times.setdefault(name, []).append(time.perf_counter() - started)
    seconds = {name: float(np.median(value)) for name, value in times.items()}
    held = smooth_checks.cross_validate(table, flag, grid, args.seed, model)
    scores = smooth_checks.score_models(held, args.seed).set_index("model")
    found = {name: score_peer(name, held, args.seed) for name in peers}
    found |= {name: {"log_score": row["log_score"], "gain": row["gain"], "lower": row["gain_lower"],
                     "upper": row["gain_upper"]} for name, row in scores.iterrows()}  # fmt: skip
    for name, row in found.items():
        ratio = f"{seconds['smooth'] / seconds[name]:6.2f}" if name in seconds else "     -"
        print(f"{name:20s} fit {seconds.get(name, np.nan):7.2f} s   smooth / this {ratio}   log-score "
              f"{row['log_score']:.4f}   smooth gains {row['gain']:+.4f} ({row['lower']:+.4f}, "
              f"{row['upper']:+.4f})")  # fmt: skip
    passed = seconds["smooth"] * 1e5 / len(table) <= LIMIT
    print(f"{len(table)} injections, {model.n_rounds} rounds, converged: {model.converged}; limit {LIMIT:g} s per 1e5 "
          f"injections: {'met' if passed else 'not met'}")  # fmt: skip
    return {"n": len(table), "cores": args.cores, "seconds": seconds, "n_rounds": model.n_rounds,
            "converged": model.converged, "passed": bool(passed), "scores": found, "seed": args.seed}  # fmt: skip


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--table", default=None, help="scored grid injections")
    parser.add_argument("--threshold", type=float, default=0.0, help="on the logit of --table")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with threadpool_limits(args.cores):
        summary = run(args)
    if args.json:
        print(json.dumps(summary))


if __name__ == "__main__":
    main()
