"""Hashes of the compiled core's output, to compare processors.

    python tests/fingerprints.py elementary|images|mixing    # one line of JSON: name -> hash

numba's NUMBA_CPU_NAME=generic compiles for a CPU without AVX or fused multiply-adds.
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

from fractals import numerics

ROOT = Path(__file__).resolve().parent.parent
Floats = NDArray[np.float32]


def apply_elementwise(function: Callable[..., Any]) -> Callable[..., Floats]:
    """Return a compiled loop over float32 arrays, as the kernels call an elementary function."""

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
    "floor", "nearest", "sine_of_turns", "sine", "cosine", "exponential2", "exponential",
    "logarithm2",
)  # fmt: skip
TWO_ARGUMENTS = ("arctangent2", "power")


def every_scale() -> Floats:
    """Return numbers of both signs over all float32 exponents, with zeros and infinities."""
    bits = np.arange(0, 1 << 32, 40_961, dtype=np.uint32).view(np.float32)
    near = np.linspace(-10, 10, 20_011, dtype=np.float32)
    odd = np.array([0.0, -0.0, np.inf, -np.inf, 0.25, -0.25, 0.5, -0.5, 1, -1], np.float32)
    return np.concatenate([bits[~np.isnan(bits)], near, odd])


def _sha256(array: NDArray[Any]) -> str:
    # IEEE 754 leaves the sign and payload of a NaN open, and images never contain it.
    bare = (
        np.where(np.isnan(array), np.float32(np.nan), array) if array.dtype.kind == "f" else array
    )
    return hashlib.sha256(np.ascontiguousarray(bare).tobytes()).hexdigest()


def elementary_fingerprints() -> dict[str, str]:
    """Return the hash of each elementary function's values over all scales."""
    x = every_scale()
    y, z = np.roll(x, 7919), np.roll(x, 104_729 % len(x))
    found = {name: _sha256(apply_elementwise(getattr(numerics, name))(x)) for name in ONE_ARGUMENT}
    found |= {
        name: _sha256(apply_elementwise(getattr(numerics, name))(x, y)) for name in TWO_ARGUMENTS
    }
    return found | {"fma": _sha256(apply_elementwise(numerics.fma)(x, y, z))}


def image_fingerprints() -> dict[str, Any]:
    """Return two genomes of the mixed family, and hashes of images of different kinds."""
    # Imported here because these load every kernel, which the elementary functions do not need.
    from fractals import BASELINE_KINDS, draw_genome, render, render_baseline

    drawn = {
        "escape": draw_genome(0, 0, "escape"),
        "flame": draw_genome(0, 0, "flame"),
        "two layers": next(
            genome
            for genome in (draw_genome(0, index) for index in range(100))
            if len(genome.layers) == 2
        ),
    }
    found: dict[str, Any] = {
        name: _sha256(render(genome, (48, 32), samples_per_pixel=8))
        for name, genome in drawn.items()
    }
    found |= {kind: _sha256(render_baseline(kind, 0, 1, (48, 32))) for kind in BASELINE_KINDS}
    return found | {f"genome {index}": draw_genome(0, index).to_json() for index in range(2)}


def mixing_fingerprints() -> dict[str, Any]:
    """Return hashes of plans, mixed pixels, resized crops and an order, of a fixed seed."""
    from pipelines.loading.order import EpochOrder
    from pixmix.draws import draw_plan, draw_resized_crop
    from pixmix.fused import mix_batch
    from pixmix.images import PackedImages
    from pixmix.resizing import resized_crop
    from pixmix.settings import PixMixSettings

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (200, 20, 13, 3), dtype=np.uint8)
    mixing_images = PackedImages.pack(generator.integers(0, 256, (9, 22, 17, 3), dtype=np.uint8))
    found: dict[str, Any] = {"order": EpochOrder(20, seed=1, epoch=2).whole().tolist()}
    crops = [
        draw_resized_crop(
            i, seed=1, epoch=2, size=(37, 51), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)
        )
        for i in range(50)
    ]
    found["crops"] = crops[:5]
    large = generator.integers(0, 256, (37, 51, 3), dtype=np.uint8)
    found["resized"] = _sha256(np.stack([resized_crop(large, *crop, (16, 15)) for crop in crops]))
    for name, settings in {
        "paper": PixMixSettings(),
        "all": PixMixSettings(all_ops=True, beta=0.5, severity=10),
    }.items():
        plan = draw_plan(
            np.arange(200), seed=7, epoch=3, settings=settings, size=(20, 13),
            source_size=(28, 21), flip=True, views=2, n_mixing_images=9,
        )  # fmt: skip
        for part, rows in (("samples", plan.samples), ("rounds", plan.rounds)):
            for field in rows.dtype.names or ():
                found[f"{name} {part} {field}"] = _sha256(rows[field])
        mixed = mix_batch(
            images,
            mixing_images,
            range(200),
            seed=7,
            epoch=3,
            settings=settings,
            flip=True,
            padding=4,
        )
        found[f"{name} pixels"] = _sha256(mixed.numpy())
    # Round trip, for the types that JSON returns.
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


FINGERPRINTS = {
    "elementary": elementary_fingerprints,
    "images": image_fingerprints,
    "mixing": mixing_fingerprints,
}


def fingerprints_without_fma(which: str, cache: Path) -> dict[str, Any]:
    """Return the fingerprints of a process without AVX and FMA; cache: an empty folder."""
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
