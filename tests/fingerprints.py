"""Hashes of what the compiled core gives, to compare one processor with another.

    python tests/fingerprints.py elementary|pictures      # one line of JSON: name -> sha256 or genome

numba's own NUMBA_CPU_NAME=generic compiles for a processor without AVX or fused multiply-adds.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from fractals import elementary

ROOT = Path(__file__).resolve().parent.parent
Floats = NDArray[np.float32]


def mapped(function: Any) -> Callable[..., Floats]:
    """Return a compiled loop over float32 arrays, as the kernels use an elementary function."""

    @numba.njit(error_model="numpy")
    def one(x: Floats, out: Floats) -> None:
        for i in range(len(out)):
            out[i] = function(x[i])

    @numba.njit(error_model="numpy")
    def two(x: Floats, y: Floats, out: Floats) -> None:
        for i in range(len(out)):
            out[i] = function(x[i], y[i])

    @numba.njit(error_model="numpy")
    def three(x: Floats, y: Floats, z: Floats, out: Floats) -> None:
        for i in range(len(out)):
            out[i] = function(x[i], y[i], z[i])

    def apply(*arrays: Floats) -> Floats:
        out = np.empty(len(arrays[0]), np.float32)
        (one, two, three)[len(arrays) - 1](*(np.asarray(a, np.float32) for a in arrays), out)
        return out

    return apply


ONE_ARGUMENT = (
    "floor", "nearest", "sine_of_turns", "sine", "cosine", "exponential2", "exponential", "logarithm2",
    "logarithm",
)  # fmt: skip
TWO_ARGUMENTS = ("arctangent2", "power")


def every_scale() -> Floats:
    """Return numbers of both signs over all of float32's exponents, with zeros and infinities."""
    bits = np.arange(0, 1 << 32, 40_961, dtype=np.uint32).view(np.float32)
    near = np.linspace(-10, 10, 20_011, dtype=np.float32)
    odd = np.array([0.0, -0.0, np.inf, -np.inf, 0.25, -0.25, 0.5, -0.5, 1, -1], np.float32)
    return np.concatenate([bits[~np.isnan(bits)], near, odd])


def _sha256(array: NDArray[Any]) -> str:
    # The sign and payload of a NaN are left open by IEEE 754, and a picture never shows them.
    bare = (
        np.where(np.isnan(array), np.float32(np.nan), array) if array.dtype.kind == "f" else array
    )
    return hashlib.sha256(np.ascontiguousarray(bare).tobytes()).hexdigest()


def elementary_fingerprints() -> dict[str, str]:
    """Return the hash of each elementary function's values over all scales."""
    x = every_scale()
    y, z = np.roll(x, 7919), np.roll(x, 104_729 % len(x))
    found = {name: _sha256(mapped(getattr(elementary, name))(x)) for name in ONE_ARGUMENT}
    found |= {name: _sha256(mapped(getattr(elementary, name))(x, y)) for name in TWO_ARGUMENTS}
    return found | {"fma": _sha256(mapped(elementary.fma)(x, y, z))}


def picture_fingerprints() -> dict[str, Any]:
    """Return hashes of three small pictures of different kinds, and two drawn genomes."""
    from fractals import draw_genome, render  # loads every kernel
    from fractals.genome import ChaosLayer
    from fractals.sampling import draft

    def first(wanted: str, family: Any) -> Any:
        for attempt in range(1000):
            genome = draft(5, 0, family, attempt)
            if genome is not None and (wanted != "two layers" or len(genome.layers) == 2):
                return genome
        raise LookupError(wanted)

    found: dict[str, Any] = {}
    for wanted, family in (("escape", "escape"), ("two layers", "mixed"), ("flame", "flame")):
        genome = first(wanted, family)
        assert any(isinstance(each.fractal, ChaosLayer) for each in genome.layers) == (
            wanted != "escape"
        )
        found[wanted] = _sha256(render(genome, (48, 32), samples_per_pixel=8))
    for index in range(2):
        found[f"genome {index}"] = draw_genome(0, index).to_json()
    return found


FINGERPRINTS = {"elementary": elementary_fingerprints, "pictures": picture_fingerprints}


def on_a_plain_processor(which: str, cache: Path) -> dict[str, Any]:
    """Return the fingerprints that a process without AVX and FMA finds; cache: an empty folder."""
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, which],
        env=os.environ | plain,
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(FINGERPRINTS[sys.argv[1]]()))
