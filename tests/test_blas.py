"""Matrix work that must not spin: BLAS stays on one thread inside, and has its threads back afterwards."""

from __future__ import annotations

import numpy as np
import pytest

from secureattn.blas import _BLAS, one_thread
from secureattn.fit import fourier_extension, remez


def threads() -> int:
    """The most threads that numpy's BLAS may use; other packages bring their own."""
    return max(library["num_threads"] for library in _BLAS.info() if library["user_api"] == "blas")


@pytest.fixture(autouse=True)
def three_threads() -> object:
    with _BLAS.limit(limits=3, user_api="blas"):
        if threads() != 3:
            pytest.skip("this BLAS has no threads to limit")
        yield


def test_inside_it_is_one() -> None:
    @one_thread
    def inside() -> int:
        return threads()

    assert inside() == 1
    assert threads() == 3


def test_after_an_error_they_are_back() -> None:
    @one_thread
    def failing() -> None:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        failing()
    assert threads() == 3


@pytest.mark.parametrize("fit", [lambda f: fourier_extension(f, (-1, 1), harmonics=4), lambda f: remez(f, (-1, 1), 5)])
def test_fits_factorise_on_one(fit: object) -> None:
    seen = set()

    def exp(x: np.ndarray) -> np.ndarray:
        seen.add(threads())
        return np.exp(x)

    fit(exp)  # type: ignore[operator]
    assert seen == {1}
    assert threads() == 3
