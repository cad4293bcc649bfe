"""GELU in its tanh form, ``x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))``, which GPT-2 was trained with."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from secureattn.approx import gelu
from secureattn.approx.generic import Smooth
from secureattn.approx.realisation import Builder, Interval, Realisation, measured

TRUE = functools.partial(torch.nn.functional.gelu, approximate="tanh")
RANGE = "symmetric"
LIKE = "gelu"
"""The function whose realisation a protocol means for this one too, unless it names another."""
_SMOOTH = Smooth("gelu_tanh", TRUE, parity="even", linear=0.5)


def _as_gelu(kind: str) -> Builder:
    """GELU's own stand-in, measured against this form; the two differ by 4.8e-4 at most."""

    def build(domain: Interval) -> Realisation:
        made = replace(gelu.REALISATIONS[kind](domain), function="gelu_tanh")
        return made if made.changes_model else measured(made, TRUE)

    build.__doc__ = gelu.REALISATIONS[kind].__doc__
    return build


REALISATIONS: dict[str, Builder] = {
    **_SMOOTH.builders(),
    **{kind: _as_gelu(kind) for kind in gelu.REALISATIONS if kind not in _SMOOTH.builders()},
}
CHANGES_MODEL = gelu.CHANGES_MODEL
