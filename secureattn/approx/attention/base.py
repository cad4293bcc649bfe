"""What an attention variant is: a formula over queries, keys and values, and what it asks of engine and model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from secureattn.tensor import Capability, Public, Tensor, Weight

Function = Callable[[Tensor], Tensor]
Shape = tuple[int, ...]
Floor = Callable[[float, int, int], float]
"""From ε and the most and the least keys that a row sees to the least value a site's argument can take."""


@dataclass(frozen=True)
class RowWeights:
    """Attention weights not yet divided: ``numerator [B,H,S,S]`` times ``factor [B,H,S,1]``.

    Kept apart so that attention may divide after mixing, where the depth of the reciprocal runs beside the product
    with the values instead of after it.
    """

    numerator: Tensor
    factor: Tensor

    def weights(self) -> Tensor:
        """``[B,H,S,S]``, each row summing to 1, or to Σ/(ε+Σ) where the kind has an ε."""
        return self.numerator * self.factor


@dataclass(frozen=True)
class Call:
    """What a variant may use in one layer: its functions by site, its constants, the layer's weights for it.

    ``mask``: zeros and ones that broadcast to the scores, 0 where a key is hidden; None hides nothing.
    ``scale``: what the scores are multiplied by on their way, 1 unless the slope of the function that reads them, or
    the factor of a homogeneous normaliser, was folded into the queries; a constant added to them must be too.
    """

    functions: Mapping[str, Function]
    power: int = 2
    epsilon: float = 1.0
    scale: float = 1.0
    mask: Public | None = None
    weights: Mapping[str, Weight] = field(default_factory=dict)

    def __getitem__(self, site: str) -> Function:
        return self.functions[site]

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """``q·kᵀ [B,H,S,S]``, and a place to refresh."""
        return q.scores(k).refresh("scores")

    def mix(self, weights: RowWeights | Tensor, v: Tensor) -> Tensor:
        """Weighted values ``[B,H,S,Dh]``; a place to refresh before them."""
        if isinstance(weights, RowWeights):
            return weights.numerator.refresh("numerator").mix(v) * weights.factor
        return weights.refresh("numerator").mix(v)


@dataclass(frozen=True)
class Attention:
    """One attention variant.

    ``run(q, k, v, call)``: ``[B,H,S,Dh]`` each → context ``[B,H,S,Dh]``; q comes divided by √Dh. ``sites``: where it
    computes functions of one variable, site → function. ``on_scores``: the site whose argument is linear in the scores
    up to constants, so the slope of its polynomial can go into the queries. ``homogeneous``: degree of the numerators
    in the scores, from the power, so a factor of the normaliser can. ``prescale``: factor of the queries, from the
    number of keys. ``floors``: least arguments of sites. ``bears``: the largest relative error that sites may have, and
    ``spread``: by which factors such errors move the ends of other sites' domains. ``parameters``: shapes of what it
    learns, from heads and tokens; ``weights`` makes of them what ``call.weights`` holds, from the parameters and the
    number of tokens.
    ``masks``: whether it can hide keys (``Call.mask``).
    ``same_as``: the variant whose function this one computes in another way. ``remark``: what else it needs, in words.
    """

    name: str
    formula: str
    run: Callable[[Tensor, Tensor, Tensor, Call], Tensor]
    source: str
    sites: Mapping[str, str] = field(default_factory=dict)
    needs: frozenset[Capability] = frozenset()
    on_scores: str | None = None
    homogeneous: Callable[[int], int] | None = None
    prescale: Callable[[int], float] = lambda keys: 1.0
    floors: Mapping[str, Floor] = field(default_factory=dict)
    bears: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    parameters: Callable[[int, int], Mapping[str, Shape]] = lambda heads, tokens: {}
    weights: Callable[[Mapping[str, torch.Tensor], int], Mapping[str, torch.Tensor]] = lambda parameters, tokens: {}
    masks: bool = False
    same_as: str | None = None
    remark: str = ""

    @property
    def demands(self) -> str:
        """What it needs, in words: capabilities, divisions, functions of one variable."""
        counts: dict[str, int] = {}
        for function in self.sites.values():
            counts[function] = counts.get(function, 0) + 1
        parts = [capability.value for capability in sorted(self.needs, key=lambda c: c.value)]
        parts += [f"{n} × {function}" if n > 1 else function for function, n in counts.items()]
        parts += [self.remark] if self.remark else []
        return ", ".join(parts) or "nothing"
