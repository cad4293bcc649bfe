"""The helper that the tests lean on fails when it should."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import assert_close


def test_equal_and_nearly_equal_values_pass() -> None:
    assert_close([1.0, 2.0], np.array([1.0, 2.0 + 1e-9]), 1.1e-9, "the second is off by 1e-9")
    assert_close(3.0, 3, 0.0, "the same number")


def test_the_worst_element_is_named_with_its_index() -> None:
    actual = np.zeros((2, 3))
    actual[0, 1], actual[1, 2] = 0.5, -2.0
    with pytest.raises(AssertionError, match=r"error 2.000e\+00 at \(1, 2\) exceeds 1.000e-03 \(why\): got .*-2.0.*"):
        assert_close(actual, np.zeros((2, 3)), 1e-3, "why")


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.1]),
        ([1.0, float("nan")], [1.0, 2.0]),
        ([float("nan")], [float("nan")]),
        ([float("inf")], [float("inf")]),
        ([1.0], [1.0, 1.0]),
        ([[1.0]], [1.0]),
        ([], []),
    ],
    ids=["off", "nan", "nan twice", "inf twice", "longer", "another shape", "empty"],
)
def test_wrong_data_fails(actual: list[float], expected: list[float]) -> None:
    with pytest.raises(AssertionError):
        assert_close(actual, expected, 1e-3, "deliberately wrong")
