"""How precise a run is where that depends on what comes out of the model: ``[precision.OUTPUT]`` of a protocol.

A class, or a text's vector, bears errors in the fourth decimal. A greedy continuation may not: where the scores of two
tokens all but tie, the error decides which of them comes, and all that comes after follows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from secureattn.nn.config import OUTPUTS

FIT = "fit"


@dataclass(frozen=True)
class Precision:
    """``error``: of every function whose realisation is chosen by its error, sites that have one of their own left
    out; ``fractional_bits``: binary places of numbers on shares, "fit" for as many as the model's range leaves room
    for. None leaves either as it is.
    """

    error: float | None = None
    fractional_bits: Any = None

    def of(self, functions: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
        """Functions with this error, where their options name one."""
        return {name: self._options(options) for name, options in functions.items()}

    def _options(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**options, "error": self.error} if self.error is not None and "error" in options else options


def read(raw: Mapping[str, Any]) -> dict[str, Precision]:
    """What a protocol says of precision, by output; to be read once there are no ``violations``."""
    return {output: Precision(**said) for output, said in raw.get("precision", {}).items()}


def violations(raw: Mapping[str, Any]) -> list[str]:
    """Whatever is wrong with it; numbers of binary places are checked as those of [mpc] are."""
    precision = raw.get("precision", {})
    if not isinstance(precision, dict) or not all(isinstance(said, dict) for said in precision.values()):
        return [f"precision must be sections [precision.OUTPUT], one an output, not {precision!r}"]
    wrong = [f"precision.{name}: the output is none of {', '.join(OUTPUTS)}" for name in precision.keys() - {*OUTPUTS}]
    known = {f.name for f in fields(Precision)}
    for output, said in precision.items():
        wrong += [f"precision.{output}: unknown option {key!r}" for key in said if key not in known]
        error = said.get("error", 1.0)
        if isinstance(error, bool) or not isinstance(error, int | float) or not 0 < error < math.inf:
            wrong.append(f"precision.{output}: error must be a positive number, not {error!r}")
        if "fractional_bits" in said and raw.get("engine") != "crypten":
            wrong.append(f"precision.{output}: fractional_bits belong to engine 'crypten', not {raw.get('engine')!r}")
    return wrong
