"""A pre-norm transformer encoder with a classification head, over any engine."""

from __future__ import annotations

from collections.abc import Callable

from secureattn.approx import Realisation
from secureattn.approx.attention import Call
from secureattn.approx.layernorm import rmsnorm
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
            self._weights[id(linear)] = (backend.matrix(linear.weight), backend.weight(linear.bias))
        self._extras: dict[int, dict[str, Weight]] = {
            id(layer): {name: backend.weight(value) for name, value in layer.extras.items()} for layer in folded.layers
        }

    def __call__(self, x: Tensor) -> Tensor:
        """The whole network; regions ``embed``, ``layer.i/attention``, ``layer.i/ffn``, ``head``."""
        region = self.backend.region
        with region("embed"):
            x = self._linear(x, self.folded.embed)
        for i in range(len(self.folded.layers)):
            x = self.layer(i, x)
        with region("head"):
            # Mean over tokens and the linear head commute; C classes are fewer sums than D features.
            return self._linear(x.refresh("input"), self.folded.head).sum(1)

    def layer(self, i: int, x: Tensor) -> Tensor:
        """One block, ``[B,S,D]`` → ``[B,S,D]``; region ``layer.i``."""
        region, layer = self.backend.region, self.folded.layers[i]
        with region(f"layer.{i}"):
            with region("attention"):
                x = x.refresh("input")
                x = x + self._attention(x, layer)
            with region("ffn"):
                x = x.refresh("input")
                return x + self._ffn(x, layer)

    def _attention(self, x: Tensor, layer: FoldedLayer) -> Tensor:
        config = self.folded.config
        qkv = self._linear(self._norm(x, layer, "attention"), layer.qkv).refresh("qkv")
        width = config.width
        q, k, v = (qkv.take(-1, slice(i * width, (i + 1) * width)).split_heads(config.heads) for i in range(3))
        call = Call(
            functions={site: at_site(site, layer.functions[f"attention/{site}"]) for site in config.variant.sites},
            power=config.power,
            epsilon=layer.attention_epsilon,
            scale=layer.score_scale,
            weights={name.removeprefix("attention/"): w for name, w in self._extras[id(layer)].items()},
        )
        context = config.variant.run(q, k, v, call).merge_heads()
        return self._linear(context.refresh("context"), layer.output)

    def _ffn(self, x: Tensor, layer: FoldedLayer) -> Tensor:
        hidden = self._linear(self._norm(x, layer, "ffn"), layer.ffn_in)
        activation = self.folded.config.activation
        return self._linear(at_site(activation, layer.functions[f"ffn/{activation}"])(hidden), layer.ffn_out)

    def _norm(self, x: Tensor, layer: FoldedLayer, part: str) -> Tensor:
        """The norm but for its gain and bias, which are in the next layer: nothing is left of a BatchNorm."""
        site = f"{part}/norm"
        if site not in layer.functions:
            return x.observe("norm")
        function = at_site("norm", layer.functions[site])
        alpha = self._extras[id(layer)].get(site)
        return rmsnorm(x, inverse_rms=function) if alpha is None else function(x * alpha)

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


def _linears(folded: Folded) -> list[Linear]:
    found = [folded.embed]
    for layer in folded.layers:
        found += [layer.qkv, layer.output, layer.ffn_in, layer.ffn_out]
    return [*found, folded.head]
