"""SEAL's memory as arrays: what is read and written in place, what is refused, and the way by files without it."""

from __future__ import annotations

import ctypes
import gc
import mmap
import struct
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tenseal")

from secureattn.backends.ckks import memory, seal
from secureattn.backends.ckks import residues as ring
from secureattn.backends.ckks.evaluator import SealEvaluator
from secureattn.backends.ckks.keys import KeyOwner
from secureattn.backends.ckks.memory import Layout
from secureattn.backends.ckks.parameters import CkksParameters, chain
from secureattn.backends.ckks.seal import Layouts, sealapi

RINGS = {12: CkksParameters(1 << 12, (30, 24, 30), 24), 13: chain(1 << 13, 3), 14: chain(1 << 14, 5)}
NONE = Layouts(None, None)
SEED = 20251122

linux_only = pytest.mark.skipif(
    sys.platform != "linux" or sys.implementation.name != "cpython", reason="layouts are known of CPython on Linux"
)

Array = np.ndarray


class Sides:
    """Both roles on a ring, and a vector."""

    def __init__(self, parameters: CkksParameters) -> None:
        self.parameters = parameters
        self.owner = KeyOwner.generate(parameters, ())
        assert self.owner.evaluation_keys is not None
        self.device = SealEvaluator(parameters, self.owner.evaluation_keys)
        self.ring = self.device._ring
        self.x = np.random.default_rng([SEED, parameters.ring_degree]).uniform(-1, 1, parameters.slots)

    def fresh(self, level: int | None = None) -> Any:
        return self.device.load(self.owner.encrypt(self.x, level))

    def decrypted(self, ct: Any) -> Array:
        return self.owner.decrypt(self.device.save(ct))


@pytest.fixture(scope="module")
def sides() -> Callable[[int], Sides]:
    made = {bits: Sides(parameters) for bits, parameters in RINGS.items()}
    return made.__getitem__


@pytest.fixture
def small(sides: Callable[[int], Sides]) -> Sides:
    return sides(13)


@linux_only
def test_layouts_are_found_here() -> None:
    found = seal.layouts()
    assert found.ciphertext is not None
    assert found.plaintext is not None
    assert found.ciphertext.data == found.ciphertext.count + 8


# ---- reading and writing ----------------------------------------------------------------------------------------

LEVELS = [(bits, level) for bits, p in RINGS.items() for level in range(p.levels + 1)]


@linux_only
@pytest.mark.parametrize(("bits", "level"), LEVELS)
def test_residues_in_place_are_those_of_the_file(sides: Callable[[int], Sides], bits: int, level: int) -> None:
    s = sides(bits)
    ct = s.fresh(level)
    made = [ct] + ([s.device.square(ct)] if level else [])
    for size, one in enumerate(made, 2):
        residues = s.device.residues(one)
        assert residues.shape == (size, level + 1, s.parameters.ring_degree)
        assert residues.base is not None  # a view
        assert np.array_equal(residues, ring.unpack_ciphertext(s.ring._file(one)))
    plain = s.ring.encode(s.x, level, s.parameters.scales[level])
    found = s.ring.plaintext_residues(plain)
    assert found.shape == (level + 1, s.parameters.ring_degree)
    assert np.array_equal(found, ring.unpack_plaintext(s.ring._file(plain), s.parameters.ring_degree))


@linux_only
@pytest.mark.parametrize("kind", ["ciphertext", "plaintext"])
def test_a_view_keeps_its_object_alive(small: Sides, kind: str) -> None:
    thing = small.fresh() if kind == "ciphertext" else small.ring.encode(small.x, 3, 2.0**40)
    view = small.device.residues(thing) if kind == "ciphertext" else small.ring.plaintext_residues(thing)
    alive, kept = weakref.ref(thing), view.copy()
    del thing
    gc.collect()
    assert alive() is not None
    others = [small.fresh() for _ in range(3)]  # would be given the memory, had it been freed
    part = view[..., :5]
    assert np.array_equal(view, kept)
    del view, others
    gc.collect()
    assert alive() is not None
    del part
    gc.collect()
    assert alive() is None


@linux_only
def test_writing_through_a_view_is_seen_by_seal(small: Sides) -> None:
    ct = small.fresh()
    view = small.device.residues(ct)
    for at, prime in enumerate(small.parameters.primes[:4]):
        view[:, at] = 2 * view[:, at] % np.uint64(prime)
    assert np.abs(small.decrypted(ct) - 2 * small.x).max() < 1e-6


@linux_only
def test_what_seal_writes_is_seen_through_a_view(small: Sides) -> None:
    ct, other = small.fresh(), small.fresh()
    view = small.device.residues(ct)
    expected = ring.addmod(view, small.device.residues(other), small.parameters.primes)
    small.ring.evaluator.add_inplace(ct, other)
    assert np.array_equal(view, expected)


@linux_only
@pytest.mark.parametrize("is_ntt", [False, True])
def test_the_form_is_set(small: Sides, is_ntt: bool) -> None:
    ct = small.ring.from_residues(small.device.residues(small.fresh()).copy(), 2.0**40, is_ntt=is_ntt)
    assert ct.is_ntt_form() == is_ntt
    memory.mark_ntt(ct, not is_ntt)
    assert ct.is_ntt_form() == (not is_ntt)
    assert (ct.size(), ct.coeff_modulus_size(), ct.scale) == (2, 4, 2.0**40)


# ---- what is refused --------------------------------------------------------------------------------------------


class Stand:
    """Words laid out as SEAL's objects are, behind a Python object whose second field is their address: a float."""

    def __init__(self, header: list[int], values: list[int], *, capacity: int | None = None, count: int | None = None):
        self.values = (ctypes.c_uint64 * len(values))(*values)
        size = len(values)
        tail = [7, 7, size if capacity is None else capacity, size if count is None else count]
        words = [*header, *tail, ctypes.addressof(self.values)]
        self.words = (ctypes.c_uint64 * 32)(*words)  # as many as are read, and more
        self.thing = pointing_at(ctypes.addressof(self.words))


def pointing_at(address: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", address))[0])


HEADER, VALUES = [11, 12, 13, 14, 5], [3, 1, 4, 1, 5, 9, 2, 6]


def array(values: list[int]) -> Array:
    return np.array(values, dtype=np.uint64)


@linux_only
def test_a_layout_by_hand() -> None:
    stand = Stand(HEADER, VALUES)
    found = Layout.found(stand.thing, HEADER, array(VALUES))
    assert found == Layout(count=8 * 8, data=8 * 9)
    words = found.words(stand.thing)
    assert words.tolist() == VALUES
    words[3] = 77
    assert stand.values[3] == 77


@linux_only
def test_a_ciphertext_can_borrow_memory(small: Sides) -> None:
    """Where this is not recognised, processes copy what others have made."""
    layout, ct = seal.layouts().ciphertext, small.fresh(0)
    assert layout is not None
    assert layout.borrowed is not None
    header, words = [*small.ring.parms_ids[0], 1, 2, small.parameters.ring_degree, 1, 0, 1], layout.words(ct)
    assert not layout.lend(ct, header, words)  # it has memory of its own
    assert not layout.lend(sealapi.Ciphertext(), header[1:], words)
    assert not Layout(layout.count, layout.data).lend(sealapi.Ciphertext(), header, words)
    assert small.device.level(ct) == 0


@linux_only
@pytest.mark.parametrize(
    ("stand", "header", "values"),
    [
        (Stand(HEADER, VALUES), [*HEADER[:4], 6], VALUES),
        (Stand(HEADER, VALUES), HEADER[:4], VALUES),
        (Stand(HEADER, VALUES), [*HEADER, 7], VALUES),
        (Stand(HEADER, VALUES), HEADER, VALUES[:7]),
        (Stand(HEADER, VALUES), HEADER, [*VALUES, 0]),
        (Stand(HEADER, VALUES), HEADER, [*VALUES[:7], 7]),
        (Stand(HEADER, VALUES), HEADER, [4, *VALUES[1:]]),
        (Stand(HEADER, VALUES, capacity=9), HEADER, VALUES),
        (Stand(HEADER, VALUES, count=7), HEADER, VALUES),
    ],
    ids=["header", "shorter", "longer", "fewer", "more", "last", "first", "capacity", "count"],
)
def test_what_differs_is_refused(stand: Stand, header: list[int], values: list[int]) -> None:
    assert Layout.found(stand.thing, header, array(values)) is None


@linux_only
@pytest.mark.parametrize("address", [0, 1, 8, 4095, 1 << 20, (1 << 47) - 64, 1 << 47, 1 << 63, (1 << 64) - 8])
def test_addresses_that_are_none_are_refused(address: int) -> None:
    """They are read by the kernel, which fails where there is no memory; the same for the address of the values."""
    assert Layout.found(pointing_at(address), HEADER, array(VALUES)) is None
    stand = Stand(HEADER, VALUES)
    stand.words[9] = address
    assert Layout.found(stand.thing, HEADER, array(VALUES)) is None


@linux_only
def test_memory_that_ends_too_early_is_refused() -> None:
    """An object in the last bytes before memory that nobody may read."""
    page = mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    area = mmap.mmap(-1, 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    stand = Stand(HEADER, VALUES)
    (ctypes.c_uint64 * 10).from_address(start + page - 80)[:] = stand.words[:10]
    thing = pointing_at(start + page - 80)
    assert Layout.found(thing, HEADER, array(VALUES)) is not None  # while the page behind can be read
    assert libc.mprotect(start + page, page, 0) == 0
    try:
        assert Layout.found(thing, HEADER, array(VALUES)) is None
    finally:
        assert libc.mprotect(start + page, page, mmap.PROT_READ | mmap.PROT_WRITE) == 0


class Slotted:
    __slots__ = ("a", "b")


OBJECTS: list[Any] = [None, True, 0, -1, 1 << 200, 1.5, "text", b"", b"bytes" * 100, (), (1, 2), [], {}, len, memory]
ARRAYS: list[Any] = [np.zeros(100, dtype=np.uint64), np.uint64(5)]
EMPTY = [sealapi.Plaintext(), sealapi.Ciphertext(), sealapi.SecretKey(), sealapi.PublicKey()]
STRANGERS = [*OBJECTS, object(), Slotted(), Slotted, *ARRAYS, sealapi.Modulus(12289), *EMPTY]


@linux_only
@pytest.mark.parametrize("thing", STRANGERS, ids=lambda thing: type(thing).__name__)
def test_objects_that_are_none_of_seals_are_refused(thing: Any) -> None:
    assert Layout.found(thing, HEADER, array(VALUES)) is None


@linux_only
def test_a_ciphertext_is_no_plaintext(small: Sides) -> None:
    ct = small.fresh(0)
    residues = small.device.residues(ct)
    (scale,) = struct.unpack("<Q", struct.pack("<d", ct.scale))
    degree, parms_id = small.parameters.ring_degree, list(small.ring.parms_ids[0])
    header = [*parms_id, 1, 2, degree, 1, scale, 1]
    assert Layout.found(ct, header, residues.reshape(-1)) == seal.layouts().ciphertext
    assert Layout.found(ct, [*parms_id, degree, scale], residues.reshape(-1)) is None
    for at in range(len(header)):
        other = [word + (i == at) for i, word in enumerate(header)]
        assert Layout.found(ct, other, residues.reshape(-1)) is None


def test_other_systems_have_no_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(HEADER, VALUES)
    sought = (stand.thing, HEADER, array(VALUES))
    monkeypatch.setattr(memory, "sys", SimpleNamespace(platform="darwin", implementation=sys.implementation))
    assert Layout.found(*sought) is None
    pypy = SimpleNamespace(platform="linux", implementation=SimpleNamespace(name="pypy"))
    monkeypatch.setattr(memory, "sys", pypy)
    assert Layout.found(*sought) is None


@linux_only
def test_a_system_that_forbids_reading_has_no_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(HEADER, VALUES)

    def refused(*_: Any) -> int:
        return -1

    for library in (SimpleNamespace(), SimpleNamespace(process_vm_readv=refused)):
        monkeypatch.setattr(memory.ctypes, "CDLL", lambda *_, library=library, **__: library)
        assert Layout.found(stand.thing, HEADER, array(VALUES)) is None


# ---- without a layout -------------------------------------------------------------------------------------------


@pytest.fixture(params=["in place", "by files"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "by files":
        monkeypatch.setattr(seal, "layouts", lambda: NONE)
    elif seal.layouts() == NONE:
        pytest.skip("no layout is known here")
    return request.param


@pytest.fixture
def by_files(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """What a computation gives where no layout is known."""

    def run(compute: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(seal, "layouts", lambda: NONE)
            return compute()

    return run


def test_encrypted_and_decrypted(way: str, small: Sides) -> None:
    for level in range(4):
        blob = small.owner.encrypt(small.x, level)
        ct = small.device.load(blob)
        assert (small.device.level(ct), ct.size(), ct.scale) == (level, 2, small.parameters.scales[level])
        assert len(blob) < 0.55 * len(small.device.save(ct))  # seeded
        assert np.abs(small.owner.decrypt(blob) - small.x).max() < 1e-7
        assert np.abs(small.decrypted(ct) - small.x).max() < 1e-7


def test_refreshed(way: str, small: Sides) -> None:
    ct = small.fresh(1)
    for level in (1, 3):
        mask = small.device.draw_mask(ct.scale, level)
        (answer,) = small.owner.refresh([small.device.mask(ct, mask)], [level])
        fresh = small.device.unmask(answer, mask)
        assert small.device.level(fresh) == level
        assert np.abs(small.decrypted(fresh) - small.x).max() < 1e-7


def test_results_are_narrowed(way: str, small: Sides) -> None:
    blob = small.device.save_result(small.device.rerandomise(small.fresh()))
    assert np.abs(small.owner.decrypt(blob) - small.x).max() < 1e-6


def test_sent_between_processes(way: str, small: Sides) -> None:
    ct = small.fresh()
    for one in (ct, small.device.square(ct)):
        sent = small.device.memory(one).copy()
        again = small.device.over(sent.reshape(-1), one.size(), 3, one.scale)
        assert np.array_equal(small.device.residues(again), sent)
        assert np.shares_memory(small.device.residues(again), sent) == (way == "in place")
        assert again.is_ntt_form()
        assert again.scale == one.scale
        assert np.abs(small.decrypted(again) - small.decrypted(one)).max() == 0


def test_borrowed_memory_is_neither_written_nor_freed(small: Sides) -> None:
    """What is computed from a ciphertext over memory of ours goes elsewhere; and the memory outlives it."""
    ct = small.fresh()
    words = small.device.memory(ct).copy()
    kept = words.copy()
    for _ in range(20):
        over = small.device.over(words.reshape(-1), 2, 3, ct.scale)
        made = [small.device.square(over), small.device.rescale(over), small.device.add(over, over), over]
        small.device.accumulate(made[2], over)
        del over, made
        assert np.array_equal(words, kept)
    assert np.abs(small.decrypted(small.device.over(words.reshape(-1), 2, 3, ct.scale)) - small.x).max() < 1e-7


def test_both_ways_give_the_same_bits(small: Sides, by_files: Callable[[Callable[[], Any]], Any]) -> None:
    device, ct, other = small.device, small.fresh(), small.fresh(2)
    weights = np.random.default_rng(SEED).integers(-(1 << 40), 1 << 40, size=(3, 2))

    def shifted() -> Array:
        return np.array(device.residues(device.shift(ct, 5)))

    def multiplied() -> Array:
        made = device.multiply_matrix(weights, [ct, other], 2, 2.0**41)
        assert [one.scale for one in made] == [2.0**41] * 3
        return np.stack([np.array(device.residues(one)) for one in made])

    def rewritten() -> Array:
        return np.array(device.residues(device.from_residues(np.array(device.residues(ct)), ct.scale)))

    def transformed() -> Array:
        return small.ring.ntt(small.ring.coefficients(np.array(device.residues(ct)[0])))

    serialisable = small.owner._encryptor.encrypt_zero_symmetric(small.ring.parms_ids[2])

    def seeded() -> tuple[Any, ...]:
        stored = small.ring.seeded(serialisable, 2, 2.0**40)
        return stored.residues.tolist(), stored.scale, stored.is_ntt, stored.seed

    for compute in (shifted, multiplied, rewritten, transformed):
        assert np.array_equal(compute(), by_files(compute))
    assert seeded() == by_files(seeded)
    for save in (lambda: device.save(ct), lambda: device.save(device.square(ct)), lambda: device.save_result(ct)):
        assert save() == by_files(save)


def test_encrypted_weights_times_a_vector(way: str, small: Sides) -> None:
    """A matrix product, then the value: 2·x − 3·x/2^20."""
    cts = [small.fresh(), small.fresh()]
    weights = np.array([[2 << 20, -3]])
    (made,) = small.device.multiply_matrix(weights, cts, 3, cts[0].scale * 2.0**20)
    assert np.abs(small.decrypted(made) - (2 - 3 * 2.0**-20) * small.x).max() < 1e-6


def test_no_file_is_left_behind(small: Sides, by_files: Callable[[Callable[[], Any]], Any]) -> None:
    def left() -> set[str]:
        folders = [folder for folder in map(Path, ("/dev/shm", "/tmp")) if folder.is_dir()]
        return {path.name for folder in folders for path in folder.glob("secureattn-*")}

    before = left()
    by_files(lambda: small.decrypted(small.fresh()))
    assert left() <= before
