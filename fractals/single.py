"""Which numbers the kernels can hold: those of float32."""

LARGEST_SINGLE = (2 - 2**-23) * 2.0**127


def fits_single(value: float) -> bool:
    """Return whether a number is finite in float32; NaN is not."""
    return abs(value) <= LARGEST_SINGLE
