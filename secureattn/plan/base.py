"""What a plan holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from secureattn.approx import Realisation
from secureattn.backends.ckks.costs import TYPICAL, Costs
from secureattn.backends.ckks.dense_layout import DenseLayout
from secureattn.backends.ckks.flooding import Flooding
from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.backends.ckks.units import Path
from secureattn.backends.crypten.runtime import CLIENT, MODEL_OWNER
from secureattn.backends.crypten.shapes import ShapesOnly
from secureattn.events import Recorder
from secureattn.ledger import PLANNED, Ledger
from secureattn.nn.batch import Shape
from secureattn.nn.config import ModelConfig
from secureattn.nn.fold import Folded, fold
from secureattn.nn.model import Model
from secureattn.plan.memory import Memory
from secureattn.plan.party_memory import PartyMemory
from secureattn.protocol import Protocol

_TOGETHER = 1 << 24  # elements of the largest tensor of a part: one-hot rows, a layer's values, or scores


@dataclass(frozen=True)
class CkksPlan:
    """One evaluator's run over one batch of ``capacity`` queries; ``batches`` of them are needed. ``blocks``: parts in
    which an FFN's hidden features are computed, as few as the memory there is allows.
    """

    parameters: CkksParameters
    schedule: frozenset[str]
    points: Mapping[str, int]
    rotations: tuple[int, ...]
    ceilings: Mapping[Path, int]
    worth: frozenset[Path]
    workers: int
    blocks: int
    input_levels: tuple[int, ...]
    dense: DenseLayout | None
    predicted: Mapping[str, float]
    tokens: int
    capacity: int
    batches: int
    depth: int
    output_level: int
    hiding_bits: float | None
    hiding_bits_run: float | None
    recorder: Recorder
    sizes: Mapping[str, int]
    memory: Memory
    seconds: Mapping[str, float]
    flooding: Flooding | None = None

    @property
    def layout(self) -> str:
        """ "batch" or "dense"."""
        return "dense" if self.dense else "batch"

    @property
    def latency_s(self) -> float:
        """Predicted seconds of all batches, messages included (``PLANNED``); what is done once left out."""
        once = self.seconds["keys"] + self.seconds["setup"]
        messages = PLANNED.seconds(self.recorder.total("rounds"), self.recorder.total("bytes_sent"))
        return self.seconds["total"] - once + self.batches * messages


@dataclass(frozen=True)
class MpcPlan:
    """Every party's run over all samples at once. ``largest``: the largest magnitude at its functions, as calibrated;
    ``gross_errors``: how many grossly wrong values local truncation is expected to leave at most, None if exact;
    ``memory``: the peak of every process, the dealer's last.
    """

    recorders: tuple[Recorder, ...]
    ledger: Ledger
    largest: float = 1.0
    gross_errors: float | None = None
    memory: tuple[PartyMemory, ...] = ()

    @property
    def seconds(self) -> Mapping[str, float]:
        """Predicted seconds by phase, and their total."""
        return {**self.ledger.phases, "total": self.ledger.seconds}


@dataclass(frozen=True)
class Plan:
    """What will run: the realisation of every site, the folded program, and one engine's part. ``tokens`` and
    ``lengths``: those of inputs that may have any number, the model's most and all equal unless given. ``new``: where
    tokens are made behind prompts, how many; ``tokens`` then counts all but the last of them too. ``memory_bytes``:
    what a CKKS run should stay below.
    """

    model: Model
    protocol: Protocol
    samples: int
    realisations: Mapping[str, Realisation]
    workers: int = 1
    costs: Costs = TYPICAL
    ckks: CkksPlan | None = None
    mpc: MpcPlan | None = None
    warnings: tuple[str, ...] = field(default=())
    tokens: int | None = None
    lengths: tuple[int, ...] | None = None
    new: int | None = None
    memory_bytes: float = math.inf

    @property
    def shape(self) -> Shape:
        """What is public of the inputs."""
        return Shape(self.samples, self.tokens or self.model.config.tokens, self.lengths)

    def at(self, shape: Shape, *, new: int | None = None) -> Plan:
        """The same for other inputs."""
        if not self.model.config.variable:
            return replace(self, samples=shape.samples)
        return replace(self, samples=shape.samples, tokens=shape.tokens, lengths=shape.lengths, new=new)

    @property
    def config(self) -> ModelConfig:
        """The model's config as the protocol serves it, for as many tokens as the longest input has."""
        served = self.protocol.served(self.model.config, self.model.ranges)
        return replace(served, tokens=self.shape.tokens) if served.variable else served

    @property
    def parts(self) -> list[tuple[int, ...]]:
        """Inputs that run together, by number: of models of tokens as many as memory should hold at once."""
        config = self.config
        if not config.variable:
            return [tuple(range(self.samples))]
        token = max(config.features, 2 * config.hidden, config.heads * self.shape.tokens)
        return self.shape.parts(max(_TOGETHER // token, 1))

    @property
    def batches(self) -> list[list[int]]:
        """Inputs that share ciphertexts, by number."""
        assert self.ckks is not None
        return self.batches_of(self.ckks.capacity)

    def batches_of(self, capacity: int) -> list[list[int]]:
        """The same where so many fit. Of inputs of unequal lengths every batch has as many, the last one some twice:
        then all batches cost the same.
        """
        rows = list(range(self.samples))
        found = [rows[i : i + capacity] for i in range(0, self.samples, capacity)]
        if self.lengths is not None:
            found[-1] += found[-1][:1] * (len(found[0]) - len(found[-1]))
        return found

    def lengths_of(self, rows: Sequence[int]) -> tuple[int, ...] | None:
        """Tokens of some of the inputs, None where all have the same number."""
        return None if self.lengths is None else tuple(self.lengths[row] for row in rows)

    @property
    def title(self) -> str:
        """Model and protocol, for tables."""
        return f"{self.model.config.name} · {self.protocol.name}"

    @property
    def ledger(self) -> Ledger:
        """What the run is modelled to cost; under CKKS, one batch of it."""
        if self.ckks is not None:
            return Ledger.of(self.ckks.recorder, name=self.title, engine="ckks")
        if self.mpc is not None:
            return self.mpc.ledger
        return Ledger(self.title, self.protocol.engine, (), measured=False)

    def folded(self, *, weights: bool = True) -> Folded:
        """The program; without weights it has their shapes alone, for whoever may not see them. A model that has none
        is folded with random numbers.
        """
        model = self.model
        if weights:
            return fold(self.config, model.stand_ins if model.alone else model.weights, self.realisations)
        with ShapesOnly():
            return fold(self.config, model.weight_shapes, self.realisations)


def party_name(rank: int) -> str:
    """What a party is called in reports."""
    return {MODEL_OWNER: "model owner", CLIENT: "client"}.get(rank, f"party {rank}")
