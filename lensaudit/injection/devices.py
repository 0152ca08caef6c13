"""Where and how much at once injections are rendered."""

import contextlib

import numpy as np
import torch

from lensaudit.constants import RENDER_SIZE

STAMP_BYTES = 6e6  # of device memory per injection at `RENDER_SIZE`: cells, maps, spectra and what torch keeps of them


@contextlib.contextmanager
def single_thread():
    """Run torch on one thread of the processor inside the block.

    The last bit of some kernels depends on how work is cut among threads, and waiting threads cost more than they bring
    at this size; use several workers instead.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_device(name="auto"):
    """Return the torch device of a configuration's ``device``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_batch(device, size):
    """Return how many injections to render together: 64 on a CPU, where more do not fit the cache, else by memory."""
    if device.type == "cpu":
        return 64
    free, _ = torch.cuda.mem_get_info(device)
    return int(np.clip(0.5 * free / (STAMP_BYTES * (size / RENDER_SIZE) ** 2), 1, 4096))
