"""Uniform numbers that belong to a place rather than to a turn: the same whatever was drawn before, and by whom."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_LOW_BITS = np.uint64(11)


def uniforms(seed: int, *counters: ArrayLike) -> NDArray[np.float64]:
    """One number in [0, 1) for each combination of a seed and counters, such as prompt, sample and position.

    A hash, not a sequence: the number of a place does not depend on batches, on processes, or on what else is drawn.
    Each counter is added to the state, which is then mixed with the finaliser of SplitMix64 (Steele, Lea and Flood,
    2014); its upper 53 bits are the number.

    Args:
        seed: Any integer.
        *counters: Integers, alone or in arrays `[B]`; alone they count for every entry.

    Returns:
        float64, of the shape that the counters broadcast to.
    """
    state = _mixed(np.asarray(seed % 2**64, dtype=np.uint64))
    for counter in counters:
        with np.errstate(over="ignore"):  # the arithmetic is modulo 2^64
            state = _mixed(state + np.asarray(counter).astype(np.uint64) * _STEP)
    return np.asarray((state >> _LOW_BITS) * 2.0**-53, dtype=np.float64)


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        state = state + _STEP
        state = (state ^ (state >> _SHIFTS[0])) * _MULTIPLIERS[0]
        state = (state ^ (state >> _SHIFTS[1])) * _MULTIPLIERS[1]
        return state ^ (state >> _SHIFTS[2])
