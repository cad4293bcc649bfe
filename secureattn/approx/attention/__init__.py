"""Attention variants, by family; each file lists its own in ``VARIANTS``. Files are found by themselves."""

from __future__ import annotations

import importlib
import pkgutil

from secureattn.approx.attention.base import Attention, Call, RowWeights


def _variants() -> dict[str, Attention]:
    found = (importlib.import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__))
    return {variant.name: variant for module in found for variant in getattr(module, "VARIANTS", ())}


VARIANTS = _variants()
"""Name → variant."""


def realisations(name: str) -> dict[str, Attention]:
    """The ways to compute a variant's function, by kind: itself under its own name, others without its prefix.

    Domain: the names of ``VARIANTS``.
    Error: none.
    Cost: none.
    Source: none.
    """
    others = {v.name.removeprefix(f"{name}_"): v for v in VARIANTS.values() if v.same_as == name}
    return {name: VARIANTS[name], **others}


__all__ = ["VARIANTS", "Attention", "Call", "RowWeights", "realisations"]
