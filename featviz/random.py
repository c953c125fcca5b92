"""Random numbers as arguments: a key of integers gives a generator of its own."""

import hashlib

import numpy as np


def generator(*key: int) -> np.random.Generator:
    """Return the generator of a key; different keys give independent streams.

    key: integers of any size and sign; (1, 2) and (12,) differ.
    Returns a Philox 4x64-10 generator (Salmon et al. 2011), the same on any machine.
    """
    text = ",".join(str(int(part)) for part in key).encode()
    digest = hashlib.blake2b(text, digest_size=16, person=b"pixmix-featviz").digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
