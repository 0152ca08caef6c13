"""The one way work is cut: an ordered list of shards, each a pure function of its arguments, run in a process pool.

A Spark back end over the same functions is left for the survey-scale profile.
"""

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor


def map_shards(function, shards, workers=1, label="", initializer=None, initargs=()):
    """Apply `function` to every shard and return the results in the order of the shards.

    Parameters
    ----------
    function : callable
        Picklable, pure; takes one shard.
    shards : sequence
        Picklable arguments.
    workers : int
        Processes; 1 or fewer runs in this process. The results do not depend on it.
    label : str
        Named in the progress line on stderr; empty for none.
    initializer, initargs
        Run once per worker process.

    Returns
    -------
    list

    Notes
    -----
    Processes are spawned, never forked: a fork after torch has started threads can hang.
    """
    shards = list(shards)
    workers = min(int(workers), len(shards), os.cpu_count() or 1)
    started, results = time.monotonic(), []
    if workers <= 1:
        if initializer is not None:
            initializer(*initargs)
        for shard in shards:
            results.append(function(shard))
            _report(label, len(results), len(shards), started)
        return results
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=initializer, initargs=initargs) as pool:
        for result in pool.map(function, shards):
            results.append(result)
            _report(label, len(results), len(shards), started)
    return results


def _report(label, done, total, started):
    if not label:
        return
    left = (time.monotonic() - started) * (total - done) / done
    end = "\n" if done == total else "\r"
    print(f"{label}: {done}/{total}, {left:.0f} s left   ", end=end, file=sys.stderr, flush=True)
