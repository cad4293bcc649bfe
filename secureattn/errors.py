"""The errors a user can meet, each one sentence: subject, what is needed, what there is, what to do."""

from collections.abc import Iterable

INSTALL = {
    "plaintext": "pip install torch",
    "ckks": "pip install tenseal zstandard cryptography",
    "crypten": "pip install omegaconf pyyaml cryptography && pip install --no-deps crypten==0.4.1",
    "text": "pip install tokenizers",
    "serve": "pip install fastapi fastapi-offline uvicorn prometheus-client httpx2",
    "ray": "pip install ray",
}
"""Engine, text as input, a server and its clients, or a cluster of them → the command that brings what it needs."""


class SecureAttnError(Exception):
    """Base of every error this library raises on purpose; the command line prints it as one line."""


class InputError(SecureAttnError):
    """Data from outside is unusable: wrong shape, NaN, foreign file, unknown name."""


class ProtocolError(SecureAttnError):
    """A protocol or model description is invalid; lists every violation at once."""

    def __init__(self, subject: str, violations: Iterable[str]) -> None:
        self.violations = tuple(violations)
        super().__init__(f"{subject}: " + "; ".join(self.violations))


class PlanError(SecureAttnError):
    """What was asked cannot be run as asked: levels, security, memory."""


class RangeError(PlanError):
    """A calibrated range leaves the domain of the approximation that must serve it."""


class CapabilityError(SecureAttnError):
    """An operation needs something its engine cannot do, such as a comparison under CKKS."""


class EngineError(SecureAttnError):
    """An engine is missing, or failed while running: a party that died, a key that does not fit."""
