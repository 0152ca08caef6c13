"""Random streams keyed by (seed, name, id), so that no draw depends on batch, order, shard or worker.

Every random number of the project comes from here. A stream is a Philox generator whose key is a hash of the seed and
the stream's name and whose counter starts at the object's id, in steps of 2**64, so streams of different ids never
overlap.
"""

import hashlib

import numpy as np


def make_key(seed, name):
    """Return the 128-bit Philox key of a named stream.

    Parameters
    ----------
    seed : int
    name : str

    Returns
    -------
    ndarray of shape (2,), uint64
    """
    digest = hashlib.blake2b(f"{int(seed)}/{name}".encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype="<u8").copy()


def hash_id(text):
    """Return a stable 63-bit integer for a text id, for use as the id of a stream."""
    return int.from_bytes(hashlib.blake2b(str(text).encode(), digest_size=8).digest(), "little") >> 1


def make_stream(seed, name, key=0):
    """Return the generator of one (seed, name, id).

    Parameters
    ----------
    seed : int
    name : str
        Says what the numbers are for; two uses never share a name.
    key : int or str
        Id of the object; a text is hashed.

    Returns
    -------
    numpy.random.Generator
    """
    number = hash_id(key) if isinstance(key, str) else int(key)
    counter = np.array([0, 0, number & 0xFFFFFFFFFFFFFFFF, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=make_key(seed, name), counter=counter))


def draw_uniforms(seed, name, ids, n):
    """Draw `n` uniforms per id, independent of which other ids are drawn with it.

    Parameters
    ----------
    seed : int
    name : str
    ids : sequence of int or str, length N
    n : int

    Returns
    -------
    ndarray of shape (N, n), float64 in [0, 1)
    """
    key = make_key(seed, name)
    out = np.empty((len(ids), n))
    for row, item in enumerate(ids):
        number = hash_id(item) if isinstance(item, str) else int(item)
        counter = np.array([0, 0, number & 0xFFFFFFFFFFFFFFFF, 0], dtype=np.uint64)
        out[row] = np.random.Generator(np.random.Philox(key=key, counter=counter)).random(n)
    return out


def hash_order(seed, name, ids):
    """Return a uniform hash in [0, 1) per text id; the K smallest are a sample that ignores row order.

    Parameters
    ----------
    seed : int
    name : str
    ids : sequence of str, length N

    Returns
    -------
    ndarray of shape (N,), float64 in [0, 1)
    """
    prefix = f"{int(seed)}/{name}/"
    values = [
        int.from_bytes(hashlib.blake2b((prefix + str(i)).encode(), digest_size=8).digest(), "little") for i in ids
    ]
    return np.asarray(values, dtype=np.float64) / 2.0**64
