"""A transformer encoder over any engine: for classes or vectors, norms before the parts or after the sums."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from secureattn.approx import Realisation
from secureattn.approx.attention import Call
from secureattn.approx.layernorm import rmsnorm
from secureattn.nn.fold import Folded, FoldedLayer, Linear, in_blocks
from secureattn.nn.reading import Reading
from secureattn.tensor import Backend, Tensor, Weight

Function = Callable[[Tensor], Tensor]


class Cache:
    """Keys and values ``[B,H,T,Dh]`` of the tokens of earlier passes, by layer, on the engine they were made by."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def tokens(self) -> int:
        """T."""
        return next((k.shape[-2] for k, _ in self.kept.values()), 0)

    def extended(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values with those of this pass behind them, which are kept."""
        if layer in self.kept:
            before = self.kept[layer]
            k, v = before[0].extended(k), before[1].extended(v)
        else:
            k, v = k.lasting(), v.lasting()
        self.kept[layer] = (k, v)
        return k, v


class Encoder:
    """Tokens ``[B,S,F]`` (one-hot of a vocabulary, or looked-up rows ``[B,S,D]``: see ``ModelConfig.input``) → class
    scores ``[B,1,C]`` or vectors ``[B,1,D]``.

    Public is how many tokens each input has, and no more: what lies behind its end is hidden from attention and mean.
    ``blocks``: an FFN's hidden features are computed in so many parts, one after the other, that fewer are held at
    once; ``layers``: the numbers of those that run, all unless given.
    """

    def __init__(
        self, folded: Folded, backend: Backend, *, blocks: int = 1, layers: Sequence[int] | None = None
    ) -> None:
        self.folded = folded
        self.backend = backend
        self.layers = range(len(folded.layers)) if layers is None else layers
        self._ffns = {i: in_blocks(folded.config, folded.layers[i], blocks) for i in self.layers}
        self._weights: dict[int, tuple[Weight, Weight]] = {}
        for linear in self._linears():
            self._weights[id(linear)] = (backend.matrix(linear.weight), backend.weight(linear.bias))
        self._extras: dict[int, dict[str, Weight]] = {
            id(layer): {name: backend.weight(value) for name, value in layer.extras.items()} for layer in folded.layers
        }
        self._positions: dict[tuple[int, int], Weight] = {}

    def __call__(self, x: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """The whole network; regions ``embed``, ``layer.i/attention``, ``layer.i/ffn``, ``head``.

        ``lengths``: tokens of each input, of which there may be fewer than S; all have S unless given.
        """
        reading = Reading.of(self.folded.config, x.shape[:2], lengths)
        return self._head(self._stream(x, reading, None), reading)

    def _stream(self, x: Tensor, reading: Reading, cache: Cache | None) -> Tensor:
        """What the last layer leaves, ``[B,S,D]``."""
        if self.folded.embed is not None:
            with self.backend.region("embed"):
                x = self._embed(x, self.folded.embed, reading)
        for i in self.layers:
            x = self.layer(i, x, reading, cache)
        return x

    def layer(self, i: int, x: Tensor, reading: Reading | None = None, cache: Cache | None = None) -> Tensor:
        """One block, ``[B,S,D]`` → ``[B,S,D]``; region ``layer.i``. ``cache``: keys and values of tokens before, to
        which those of this pass are added.
        """
        reading = reading or Reading.of(self.folded.config, x.shape[:2])
        region, layer, after = self.backend.region, self.folded.layers[i], self.folded.config.norm_after
        with region(f"layer.{i}"):
            if self.folded.config.parallel:
                return self._parallel(i, x, reading, cache)
            for name, part in (("attention", self._attention), ("ffn", self._ffn)):
                with region(name):
                    x = x.refresh("input")
                    made, kept = part(x if after else self._norm(x, layer, name), i, reading, cache)
                    x = (x if kept is None else kept) + made
                    x = self._norm(x, layer, name) if after else x
            return x

    def _parallel(self, i: int, x: Tensor, reading: Reading, cache: Cache | None) -> Tensor:
        """A block whose attention and FFN read the same normed stream."""
        with self.backend.region("attention"):
            x = x.refresh("input")
            normed = self._norm(x, self.folded.layers[i], "attention")
            seen, _ = self._attention(normed, i, reading, cache)
        with self.backend.region("ffn"):
            fed, _ = self._ffn(normed, i, reading, cache)
            return x + (seen + fed)

    def _embed(self, x: Tensor, embed: Linear, reading: Reading) -> Tensor:
        weight, bias = self._weights[id(embed)]
        if embed.bias.ndim == 2 and len(embed.bias) > reading.tokens:
            there = (reading.past, reading.past + reading.tokens)
            if there not in self._positions:
                self._positions[there] = self.backend.weight(embed.bias[slice(*there)])
            bias = self._positions[there]
        x = x.linear(weight, bias)
        return rmsnorm(x, inverse_rms=self._outer("embed/norm")) if self.folded.config.embed_norm else x

    def _attention(self, x: Tensor, i: int, reading: Reading, cache: Cache | None) -> tuple[Tensor, Tensor | None]:
        config, layer, variant = self.folded.config, self.folded.layers[i], self.folded.config.variant_of(i)
        qkv = self._linear(x, layer.qkv).refresh("qkv")
        own, shared = config.heads * config.head_width, config.shared_heads * config.head_width
        q = reading.turned(qkv.take(-1, slice(0, own)).split_heads(config.heads))
        k = reading.turned(qkv.take(-1, slice(own, own + shared)).split_heads(config.shared_heads))
        v = qkv.take(-1, slice(own + shared, own + 2 * shared)).split_heads(config.shared_heads)
        if cache is not None:
            k, v = cache.extended(i, k, v)
        groups, mask = config.heads // config.shared_heads, reading.mask
        if groups > 1:
            q = q.group_heads(groups)
            mask = mask if mask is None or mask.shape[2] == 1 else np.tile(mask, (1, 1, groups, 1))
        call = Call(
            functions={site: at_site(site, layer.functions[f"attention/{site}"]) for site in variant.sites},
            power=config.power,
            epsilon=layer.attention_epsilon,
            scale=layer.score_scale,
            mask=mask,
            weights={name.removeprefix("attention/"): w for name, w in self._extras[id(layer)].items()},
        )
        context = variant.run(q, k, v, call)
        context = (context.ungroup_heads(groups) if groups > 1 else context).merge_heads()
        return self._linear(context.refresh("context"), layer.output), self._kept(qkv, own + 2 * shared)

    def _ffn(self, x: Tensor, i: int, reading: Reading, cache: Cache | None) -> tuple[Tensor, Tensor | None]:
        config, layer = self.folded.config, self.folded.layers[i]
        activation = at_site(config.activation, layer.functions[f"ffn/{config.activation}"])
        total, kept = None, None
        for part, (into, out) in enumerate(self._ffns[i]):
            made, width = self._linear(x, into), out.weight.shape[1]
            alone = made.shape[-1] == width
            hidden = activation(made if alone else made.take(-1, slice(0, width)))
            hidden = hidden * made.take(-1, slice(width, 2 * width)) if config.gated else hidden
            kept = kept if part else self._kept(made, (1 + config.gated) * width)
            sums = self._linear(hidden, out)
            total = sums if total is None else total + sums
        assert total is not None
        return total, kept

    def _kept(self, made: Tensor, start: int) -> Tensor | None:
        """What a linear layer made for the sum, beside its ``start`` other outputs."""
        width = self.folded.config.width
        return made.take(-1, slice(start, start + width)) if self.folded.config.norm_after else None

    def _head(self, x: Tensor, reading: Reading) -> Tensor:
        with self.backend.region("head"):
            return self._output(x.refresh("input"), reading)

    def _output(self, x: Tensor, reading: Reading) -> Tensor:
        config, folded = self.folded.config, self.folded
        if config.final_norm:
            x = rmsnorm(x, inverse_rms=self._outer("head/norm"))
        if config.output == "next":
            pass
        elif config.pooling == "first":
            x = x.take(1, 0)
        elif config.output == "scores" and not config.pooler:
            assert folded.head is not None  # mean and head commute; C classes are fewer sums than D features
            scores = self._linear(x, folded.head)
            return scores.sum(1) if not config.variable else reading.mean(scores)  # 1/S is folded
        else:
            x = reading.mean(x)
        if folded.pooler is not None:
            x = self._outer("head/tanh")(self._linear(x, folded.pooler))
        x = x if folded.head is None else self._linear(x, folded.head)
        return x * self._outer("head/unit")(x.inner(x)) if config.unit else x

    def _norm(self, x: Tensor, layer: FoldedLayer, part: str) -> Tensor:
        """The norm but for its gain and bias, which are in the next layer: nothing is left of a BatchNorm."""
        site = f"{part}/norm"
        if site not in layer.functions:
            return x.observe("norm")
        function = at_site("norm", layer.functions[site])
        alpha = self._extras[id(layer)].get(site)
        return rmsnorm(x, inverse_rms=function) if alpha is None else function(x * alpha)

    def _outer(self, site: str) -> Function:
        return at_site(site.rsplit("/", 1)[-1], self.folded.outer[site])

    def _linears(self) -> list[Linear]:
        folded = self.folded
        found = [folded.embed]
        for i in self.layers:
            found += [folded.layers[i].qkv, folded.layers[i].output, *itertools.chain(*self._ffns[i])]
        return [linear for linear in (*found, folded.pooler, folded.head) if linear is not None]

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
