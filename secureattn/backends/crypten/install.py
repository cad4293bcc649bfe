"""Makes ``import crypten`` work on today's torch, and says how to get it where it is missing."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

from secureattn.errors import INSTALL, EngineError

_CONVERTER = "crypten.nn.onnx_converter"


def load_crypten() -> Any:
    """The ``crypten`` module.

    CrypTen's ONNX converter imports internals that torch dropped in 2.6; we never convert ONNX, so an empty module
    stands in for it. Raises EngineError with the commands to run where CrypTen, or what it imports, is missing.
    """
    if _CONVERTER not in sys.modules and "crypten" not in sys.modules:
        sys.modules[_CONVERTER] = _stand_in()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("crypten")
    except ModuleNotFoundError as missing:
        sys.modules.pop(_CONVERTER, None)
        raise EngineError(
            f"the crypten engine needs the Python package {missing.name!r}, which is not installed; "
            f"run {INSTALL['crypten']}"
        ) from missing


def _stand_in() -> ModuleType:
    module = ModuleType(_CONVERTER, "Stands in for CrypTen's ONNX converter, which torch 2.6 and later cannot import.")

    def unavailable(*_: object) -> None:
        raise EngineError("CrypTen's ONNX conversion is not available here; build the network from secureattn.nn")

    names: dict[str, object] = {name: unavailable for name in ("from_onnx", "from_pytorch", "from_tensorflow")}
    vars(module).update(names, TF_AND_TF2ONNX=False)
    return module
