"""A pre-norm transformer encoder with a classification head, over any engine."""

from __future__ import annotations

from collections.abc import Callable

from secureattn.approx import Realisation
from secureattn.approx.layernorm import rmsnorm
from secureattn.approx.power_softmax import power_softmax, power_softmax_length_agnostic
from secureattn.approx.softmax import RowWeights, quad, softmax
from secureattn.nn.fold import Folded, FoldedLayer, Linear
from secureattn.tensor import Backend, Tensor, Weight

Function = Callable[[Tensor], Tensor]


class Encoder:
    """Tokens ``[B,S,F]`` → class scores ``[B,1,C]``."""

    def __init__(self, folded: Folded, backend: Backend) -> None:
        self.folded = folded
        self.backend = backend
        self._weights: dict[int, tuple[Weight, Weight]] = {}
        for linear in _linears(folded):
            self._weights[id(linear)] = (backend.weight(linear.weight), backend.weight(linear.bias))

    def __call__(self, x: Tensor) -> Tensor:
        """The whole network; regions ``embed``, ``layer.i/attention``, ``layer.i/ffn``, ``head``."""
        region = self.backend.region
        with region("embed"):
            x = self._linear(x, self.folded.embed)
        for i, layer in enumerate(self.folded.layers):
            with region(f"layer.{i}"):
                with region("attention"):
                    x = x.refresh("input")
                    x = x + self._attention(x, layer)
                with region("ffn"):
                    x = x.refresh("input")
                    x = x + self._ffn(x, layer)
        with region("head"):
            # Mean over tokens and the linear head commute; C classes are fewer sums than D features.
            return self._linear(x.refresh("input"), self.folded.head).sum(1)

    def _attention(self, x: Tensor, layer: FoldedLayer) -> Tensor:
        heads, width = self.folded.config.heads, self.folded.config.width
        qkv = self._linear(_norm(x, layer.attention_norm), layer.qkv).refresh("qkv")
        q, k, v = (qkv.take(-1, slice(i * width, (i + 1) * width)).split_heads(heads) for i in range(3))
        weights = self._row_weights(q.scores(k).refresh("scores"), layer)
        context = (weights.numerator.refresh("numerator").mix(v) * weights.factor).merge_heads()
        return self._linear(context.refresh("context"), layer.output)

    def _row_weights(self, s: Tensor, layer: FoldedLayer) -> RowWeights:
        config = self.folded.config
        reciprocal = at_site("normaliser", layer.normaliser)
        if config.attention == "power_softmax":
            return power_softmax(s, p=config.power, epsilon=layer.attention_epsilon, reciprocal=reciprocal)
        if config.attention == "power_softmax_length_agnostic":
            return power_softmax_length_agnostic(
                s, p=config.power, epsilon=layer.attention_epsilon, reciprocal=reciprocal
            )
        if config.attention == "quad":
            return quad(s, reciprocal=reciprocal)
        assert layer.exp is not None
        return softmax(s, exp=at_site("exp", layer.exp), reciprocal=reciprocal)

    def _ffn(self, x: Tensor, layer: FoldedLayer) -> Tensor:
        hidden = self._linear(_norm(x, layer.ffn_norm), layer.ffn_in)
        return self._linear(at_site("gelu", layer.gelu)(hidden), layer.ffn_out)

    def _linear(self, x: Tensor, linear: Linear) -> Tensor:
        weight, bias = self._weights[id(linear)]
        return x.linear(weight, bias)


def at_site(site: str, function: Realisation) -> Function:
    """A function in a region of its own, which shows its argument and allows a refresh on either side."""

    def apply(x: Tensor) -> Tensor:
        x = x.observe(site).refresh(f"{site}.in")
        with x.backend.region(site):
            y = function(x)
        return y.refresh(f"{site}.out")

    return apply


def _norm(x: Tensor, inverse_rms: Realisation | None) -> Tensor:
    if inverse_rms is None:
        return x.observe("norm")
    return rmsnorm(x, inverse_rms=at_site("norm", inverse_rms))


def _linears(folded: Folded) -> list[Linear]:
    found = [folded.embed]
    for layer in folded.layers:
        found += [layer.qkv, layer.output, layer.ffn_in, layer.ffn_out]
    return [*found, folded.head]
