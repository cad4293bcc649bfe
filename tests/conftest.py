"""Settings of all tests: hypothesis draws the same examples on every run and prints what failed; costs measured on this
machine change no test; no process computes in several threads.
"""

import importlib
import os
import tempfile
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
from hypothesis import settings

# Before torch and numpy are loaded, and for the processes that tests start as well: as many test processes as cores run
# at once, and threads that wait for each other by spinning take from the others what they do not use.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    """A cache folder of the tests' own, for the commands they run as well."""
    cache = getattr(config, "cache", None)
    os.environ["XDG_CACHE_HOME"] = str(cache.mkdir("home")) if cache is not None else tempfile.mkdtemp()


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[Callable[[str], ModuleType]]:
    """Modules of the benchmarks, by name."""
    from helpers import BENCHMARKS

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module
