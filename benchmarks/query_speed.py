"""Speed of queries of a selection function, beside a table look-up of scipy that gives the value alone.

Usage: python benchmarks/query_speed.py [--folder PRODUCT] [--n 1000000] [--repeats 5] [--json]

Without a folder a product of the default size (539 cells) is made from drawn counts. Repeats alternate between the
jobs; medians of processor time are printed, with the ratio to the peer.

peer       scipy's RegularGridInterpolator, nearest cell, without interval, support or reason
query      `SelectionFunction.query`
composed   the same of a product with a constant and a table of factors
"""

import argparse
import json
import statistics
import time
import warnings

import numpy as np
import pandas as pd
from scipy.interpolate import RegularGridInterpolator

from lensaudit import stats
from lensaudit.audit.completeness import AXES
from lensaudit.config import CompletenessConfig
from lensaudit.selection import Factor, SelectionFunction


def make_selection():
    """Return a selection function of the default grid with drawn counts, one cell in ten without support."""
    section, rng = CompletenessConfig(), np.random.default_rng(1)
    axes = {axis: list(getattr(section, axis)) for axis in AXES}
    cells = pd.DataFrame({a: v.ravel() for a, v in zip(AXES, np.meshgrid(*axes.values(), indexing="ij"), strict=True)})
    k = rng.integers(0, 200, len(cells))
    cells = cells.assign(threshold_name="fpr_1e-2", completeness=k / 200, n_eff=120.0, untied_fraction=0.0,
                         sufficient=rng.random(len(cells)) > 0.1, reason="", rho_host=0.0, rho_brick=0.0)  # fmt: skip
    for level, name in ((0.68, "68"), (0.95, "95")):
        cells[f"lower_{name}"], cells[f"upper_{name}"] = stats.jeffreys_interval(0.6 * k, np.full(len(k), 120.0), level)
    return SelectionFunction(cells, {
        "axes": axes, "thresholds": {"fpr_1e-2": 0.0}, "default": "fpr_1e-2", "version": "drawn",
        "blocked_by": ["drawn"],
        "prior_name": "collett", "simulated": True, "realism": {"outcome": "NO-GO"}, "rules": {"min_bricks": 3},
        "closure": {"closes": None, "verdict": "not tested"},
    })  # fmt: skip


def measure(jobs, repeats):
    """Return the median processor time [s] of each job, repeats alternating."""
    seconds = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder")
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    product = SelectionFunction.load(options.folder, override_no_go=True) if options.folder else make_selection()
    rng = np.random.default_rng(0)
    points = [rng.uniform(c[0], c[-1], options.n) for c in product.axes.values()]
    p = product.parts()[0].table["p"].to_numpy().reshape(product.shape)
    peer = RegularGridInterpolator(tuple(product.axes.values()), p, method="nearest")
    depth = pd.DataFrame({"depth": product.axes["depth"], "p": 0.8, "sigma": 0.02})
    composed = product * Factor(0.9, 0.02, "constant") * Factor(depth, name="table")
    jobs = {"peer": lambda: peer(np.stack(points, axis=1)), "query": lambda: product.query(*points),
            "composed": lambda: composed.query(*points)}  # fmt: skip
    seconds = measure(jobs, options.repeats)
    if options.json:
        print(json.dumps({"benchmark": "query_speed", "n": options.n, "seconds": seconds,
                          "ratio": {name: value / seconds["peer"] for name, value in seconds.items()}}))  # fmt: skip
        return
    for name, value in seconds.items():
        print(f"{name:10s} {value:7.3f} s for {options.n:,} queries, {value / seconds['peer']:5.1f} times the peer")


if __name__ == "__main__":
    main()
