"""SEAL's own memory as arrays: the residues of a ciphertext or plaintext, neither copied nor written to a file.

The bindings give no access to residues but through files, which SEAL compresses: 20 ms for 2 MiB, half of what a
multiplication by a weight matrix takes. So the objects' C++ layout is read directly. It is not a documented interface:
``Layout.found`` recognises it on an object whose every field is known, through system calls that fail instead of
crashing, and where it is not there (another compiler, another SEAL) files are used instead.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_INSTANCE_VALUE = 16  # pybind11 keeps the C++ object's address behind CPython's object header
_IS_NTT = 32  # of a ciphertext: one byte behind the 32 of parms_id
_READ_WORDS = 18


@dataclass(frozen=True)
class Layout:
    """Byte offsets in a SEAL object: its number of words, the address of its first, and the flag that says it is not
    the object's own (SEAL's ``Pointer::Aliasing``), None where that was not recognised.
    """

    count: int
    data: int
    borrowed: int | None = None

    def words(self, thing: Any) -> Words:
        """Every residue of the object, as one row that shares its memory and keeps it alive."""
        at = _address(thing)
        count = ctypes.c_uint64.from_address(at + self.count).value
        data = ctypes.c_uint64.from_address(at + self.data).value
        return np.asarray(_Borrowed(thing, data, count))

    @classmethod
    def found(cls, thing: Any, header: list[int], values: Words) -> Layout | None:
        """The layout of an object that starts with the words ``header`` and holds ``values``; None if unlike any known.

        Behind the header come two words of the memory pool's handle, capacity, count, and the address of the data.
        """
        if sys.implementation.name != "cpython" or not sys.platform.startswith("linux"):
            return None
        start = _read(id(thing) + _INSTANCE_VALUE, 1)
        raw = _read(start[0], _READ_WORDS) if start else None
        at = len(header)
        if raw is None or raw[:at] != header or raw[at + 2] != values.size or raw[at + 3] != values.size:
            return None
        if _read(raw[at + 4], values.size) != values.tolist():
            return None
        # Behind the address: where to return it to, of which the second is a record that begins with it, and the flag.
        own = raw[at + 5] and _read(raw[at + 6], 1) == [raw[at + 4]] and not raw[at + 7] & 0xFF
        return cls(count=8 * (at + 3), data=8 * (at + 4), borrowed=8 * (at + 7) if own else None)

    def lend(self, empty: Any, header: list[int], words: Words) -> bool:
        """Let an empty object, which starts with ``header`` from now on, have words that it neither owns nor frees, and
        that must outlive it; False, and nothing done, where the object is not as expected.
        """
        at = _address(empty)
        if self.borrowed is None or self.count != 8 * (len(header) + 3):
            return False
        if any(_word(at + i).value for i in range(self.count - 8, self.data + 24, 8)):  # capacity … where to return it
            return False
        for i, value in enumerate(header):
            _word(at + 8 * i).value = value
        _word(at + self.count - 8).value = _word(at + self.count).value = words.size
        _word(at + self.data).value = words.ctypes.data
        ctypes.c_uint8.from_address(at + self.borrowed).value = 1
        return True


class _Borrowed:
    """Memory of another object, for numpy, which keeps what it borrows from alive."""

    def __init__(self, owner: Any, address: int, count: int) -> None:
        self.owner = owner
        self.__array_interface__ = {"shape": (count,), "typestr": "<u8", "data": (address, False), "version": 3}


def mark_ntt(ciphertext: Any, is_ntt: bool) -> None:
    """Set a ciphertext's form; only where its layout was found."""
    ctypes.c_uint8.from_address(_address(ciphertext) + _IS_NTT).value = is_ntt


def _word(address: int) -> ctypes.c_uint64:
    return ctypes.c_uint64.from_address(address)


def _address(thing: Any) -> int:
    return ctypes.c_uint64.from_address(id(thing) + _INSTANCE_VALUE).value


class _Span(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def _read(address: int, words: int) -> list[int] | None:
    """Words of this process, copied by the kernel; None where there is no such memory."""
    target = (ctypes.c_uint64 * words)()
    try:
        copy = ctypes.CDLL(None, use_errno=True).process_vm_readv
    except (AttributeError, OSError):
        return None
    here, there = _Span(ctypes.addressof(target), 8 * words), _Span(address, 8 * words)
    copy.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    copy.restype = ctypes.c_ssize_t
    copied = copy(os.getpid(), ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0)
    return list(target) if copied == 8 * words else None
