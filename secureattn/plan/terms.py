"""What a key owner needs of a plan, all of it public: to make keys, encrypt, refresh and decrypt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from secureattn.backends.ckks.dense_layout import DenseLayout
from secureattn.backends.ckks.flooding import Flooding
from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.errors import InputError, PlanError
from secureattn.nn.batch import Shape
from secureattn.nn.config import ModelConfig
from secureattn.plan.base import Plan

DAMAGED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
"""What reading a document raises where something is missing or of another kind."""


@dataclass(frozen=True)
class Terms:
    """``config``: the model as served, for as many tokens as planned; ``rotations``: steps that need a key;
    ``input_levels``: of a query's ciphertexts; ``tokens``, padded, and ``capacity`` queries share a ciphertext of the
    batch layout, ``dense`` is the other one; ``samples``: queries planned for; ``ragged``: inputs have lengths of their
    own; ``rounds`` and ``refreshes``: messages that a batch asks for, and ciphertexts in all of them; ``input_range``:
    what the model was calibrated on, None for tokens.
    """

    config: ModelConfig
    parameters: CkksParameters
    rotations: tuple[int, ...]
    input_levels: tuple[int, ...]
    tokens: int
    capacity: int
    samples: int
    ragged: bool
    rounds: int
    refreshes: int
    dense: DenseLayout | None = None
    flooding: Flooding | None = None
    input_range: tuple[float, float] | None = None

    @classmethod
    def of(cls, plan: Plan) -> Terms:
        """Of a plan under CKKS; PlanError for another."""
        layout = plan.ckks
        if layout is None:
            raise PlanError(f"{plan.title} runs on {plan.protocol.engine}; keys and queries are for plans under CKKS")
        return cls(
            config=plan.config,
            parameters=layout.parameters,
            rotations=layout.rotations,
            input_levels=layout.input_levels,
            tokens=layout.tokens,
            capacity=layout.capacity,
            samples=plan.samples,
            ragged=plan.lengths is not None,
            rounds=layout.recorder.total("rounds"),
            refreshes=layout.recorder.total("refreshes"),
            dense=layout.dense,
            flooding=layout.flooding,
            input_range=None if plan.config.variable else plan.model.ranges.input,
        )

    @property
    def most(self) -> int:
        """Queries that the planned batches hold."""
        return -(-self.samples // self.capacity) * self.capacity

    @property
    def slots(self) -> int:
        """Queries that one set of ciphertexts holds."""
        return min(self.samples, self.capacity) if self.dense else self.capacity

    @property
    def most_rounds(self) -> int:
        """Refreshes of a query at most, of all its batches: whoever asks for more wants something else."""
        return self.rounds * -(-self.samples // self.capacity)

    def batches(self, shape: Shape) -> list[list[int]]:
        """Inputs that share ciphertexts, by number, as ``Plan.batches_of`` has them."""
        rows = list(range(shape.samples))
        found = [rows[i : i + self.capacity] for i in range(0, shape.samples, self.capacity)]
        if self.ragged:
            found[-1] += found[-1][:1] * (len(found[0]) - len(found[-1]))
        return found

    def check(self, shape: Shape) -> None:
        """InputError for inputs that no query of this plan can hold."""
        if not 1 <= shape.samples <= self.most:
            raise InputError(f"{shape.samples} inputs, a query of this plan holds 1 to {self.most}; plan for as many")
        if shape.lengths is not None and not self.ragged:
            raise InputError("inputs of unequal lengths need a plan for such; plan for a batch like this")
        if shape.tokens > self.config.tokens or (shape.tokens < self.config.tokens and not self.ragged):
            most = f"up to {self.config.tokens}" if self.ragged else f"{self.config.tokens}"
            raise InputError(f"inputs of {shape.tokens} tokens, the plan is for {most}; plan for a batch like this")

    def document(self) -> dict[str, Any]:
        """As JSON."""
        options = ("dense", "flooding")
        return {
            "config": json.loads(self.config.to_json()),
            "parameters": asdict(self.parameters),
            **{name: value and asdict(value) for name in options for value in [getattr(self, name)]},
            **{
                name: getattr(self, name)
                for name in self.__dataclass_fields__
                if name not in ("config", "parameters", *options)
            },
        }

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Terms:
        """From JSON, which may come from anybody; InputError where it is damaged, PlanError below 128 bits."""
        try:
            dense, flooding, parameters = document["dense"], document["flooding"], document["parameters"]
            bounds = document["input_range"]
            found = cls(
                config=ModelConfig.of(document["config"], "terms"),
                parameters=CkksParameters(
                    whole(parameters["ring_degree"]),
                    wholes(parameters["prime_bits"]),
                    whole(parameters["scale_bits"]),
                ),
                rotations=wholes(document["rotations"]),
                input_levels=wholes(document["input_levels"]),
                **{name: whole(document[name]) for name in ("tokens", "capacity", "samples", "rounds", "refreshes")},
                ragged=flag(document["ragged"]),
                dense=None if dense is None else DenseLayout(**_wholes_by_name(dense)),
                flooding=None
                if flooding is None
                else Flooding(**{name: whole(value) for name, value in flooding.items()}),
                input_range=None if bounds is None else interval(bounds),
            )
        except DAMAGED as error:
            raise InputError(f"the terms of a plan are damaged ({error!r}); ask for them again") from error
        found._check()
        return found

    def _check(self) -> None:
        """InputError where parts contradict each other."""
        slots, levels = self.parameters.slots, self.parameters.levels
        capacity = self.dense.batch if self.dense else slots // max(self.tokens, 1)
        fits = self.dense is None or self.dense.slots == slots
        ciphertexts = 1 if self.dense else self.config.features
        if not (
            fits
            and self.tokens >= self.config.tokens >= 1
            and 1 <= self.capacity == capacity
            and self.samples >= 1
            and len(self.input_levels) == ciphertexts
            and all(0 <= level <= levels for level in self.input_levels)
            and len(self.rotations) <= slots
            and all(0 <= step < slots for step in self.rotations)
            and self.rounds >= 0
            and self.refreshes >= 0
        ):
            raise InputError("the terms of a plan contradict themselves; ask for them again")


def whole(value: Any) -> int:
    """A whole number of a document; TypeError for anything else."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value


def wholes(value: Any) -> tuple[int, ...]:
    """Whole numbers of a document's list; TypeError for anything else."""
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return tuple(map(whole, value))


def _wholes_by_name(value: Any) -> dict[str, int]:
    return {name: whole(one) for name, one in value.items()}


def flag(value: Any) -> bool:
    """True or false of a document; TypeError for anything else."""
    if type(value) is not bool:
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def interval(value: Any) -> tuple[float, float]:
    """Two numbers of a document in ascending order; TypeError or ValueError for anything else."""
    low, high = value
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)) or not low < high:
        raise TypeError(f"{value!r} is no interval")
    return low, high
