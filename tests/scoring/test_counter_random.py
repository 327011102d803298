"""Numbers by place: golden ones, independence of order, and that they look uniform and unrelated."""

import numpy as np

from tokencredit.scoring.counter_random import uniforms

MASK = 2**64 - 1


def by_hand(seed: int, *counters: int) -> float:
    """The same in Python's whole numbers."""

    def mixed(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    state = mixed(seed & MASK)
    for counter in counters:
        state = mixed((state + counter * 0x9E3779B97F4A7C15) & MASK)
    return (state >> 11) * 2.0**-53


def test_first_output_of_splitmix64() -> None:
    # The published first output for seed 0 is e220a8397b1dcdaf; its upper 53 bits are the number.
    assert float(uniforms(0)) == (0xE220A8397B1DCDAF >> 11) * 2.0**-53


def test_equals_whole_number_arithmetic() -> None:
    places = [(0, 0), (3, 1), (2**40, 7)]
    found = uniforms(5, [a for a, _ in places], [b for _, b in places], 1)
    assert found.tolist() == [by_hand(5, a, b, 1) for a, b in places]
    assert float(uniforms(-1, 4)) == by_hand(-1, 4)


def test_number_of_a_place_does_not_depend_on_the_batch() -> None:
    rows = np.arange(100)
    whole = uniforms(1, rows, 3)
    assert np.array_equal(whole[::-1], uniforms(1, rows[::-1], 3))
    assert whole[42] == uniforms(1, 42, 3)


def test_uniform_and_unrelated() -> None:
    grid = uniforms(0, np.arange(300)[:, None], np.arange(300))
    # 90,000 numbers in 100 bins of 900: χ² with 99 degrees of freedom is below 149 with probability 0.999.
    counts = np.bincount((grid * 100).astype(int).ravel(), minlength=100)
    assert float(((counts - 900) ** 2 / 900).sum()) < 149
    # Neighbours along either counter, and the same places under another seed: |r| < 4 / sqrt(n).
    for other in (np.roll(grid, 1, 0), np.roll(grid, 1, 1), uniforms(1, np.arange(300)[:, None], np.arange(300))):
        assert abs(np.corrcoef(grid.ravel(), other.ravel())[0, 1]) < 4 / 300
