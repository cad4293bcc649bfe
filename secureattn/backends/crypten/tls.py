"""Who is at the other end of a connection: TLS 1.3 in which both sides show a certificate that names their role.

A process keeps in a folder of its own ``ca.pem``, whose signature makes a certificate one of this run, ``cert.pem`` and
``key.pem``. A role is a URI among the names of a certificate, so that one made for the client serves no dealer; where a
certificate names addresses too, it serves nowhere else.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from secureattn.errors import EngineError, InputError

AUTHORITY, CERTIFICATE, KEY = "ca.pem", "cert.pem", "key.pem"
ROLE = "urn:secureattn:role:"

_OTHERS = 0o077  # permission bits of whoever is not the owner
_VERIFY = {
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
}
_ALERTS = {
    "CERTIFICATE_EXPIRED": "it refuses this process's certificate, which has expired",
    "UNKNOWN_CA": "it refuses this process's certificate, which is not from its authority",
    "CERTIFICATE_REQUIRED": "it wants a certificate",
}
_REASONS = {
    "HTTP_REQUEST": "it does not speak TLS",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
    "UNSUPPORTED_PROTOCOL": "it does not speak TLS 1.3",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
}
_PARTING_S = 1.0


class Refused(EngineError):
    """Whoever is at the other end is not let in, or does not let this process in; says why in a few words."""


def role_of(name: str) -> str:
    """A process's name as one word, as certificates and ``--rank`` have it: "model owner" → "owner"."""
    return {"model owner": "owner"}.get(name, name.replace(" ", "-"))


@dataclass(frozen=True)
class Identity:
    """What a process proves its role with, and what it asks of others."""

    calling: ssl.SSLContext
    called: ssl.SSLContext

    @classmethod
    def load(cls, folder: Path, role: str) -> Identity:
        """From a folder, or its subfolder for the role; InputError where a file is missing, open to others, expired or
        made for another role.
        """
        folder = folder / role if (folder / role).is_dir() else folder
        for name in (AUTHORITY, CERTIFICATE, KEY):
            if not (folder / name).is_file():
                raise InputError(f"{folder} has no {name}; make certificates with secureattn certificates")
        mode = (folder / KEY).stat().st_mode & 0o777
        if mode & _OTHERS:
            raise InputError(f"{folder / KEY} can be read by others (mode {mode:04o}); run chmod 600 {folder / KEY}")
        _check_own(folder / CERTIFICATE, role)
        return cls.of(folder)

    @classmethod
    def of(cls, folder: Path) -> Identity:
        """The same without a look at what the certificate says."""
        return cls(*(_context(folder, protocol) for protocol in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)))

    def shake(self, connection: socket.socket, *, called: bool) -> ssl.SSLSocket:
        """A handshake within the connection's timeout; takes the connection over. Refused says why it failed."""
        context = self.called if called else self.calling
        wrapped = context.wrap_socket(connection, server_side=called, do_handshake_on_connect=False)
        try:
            wrapped.do_handshake()
        except OSError as failure:
            part(wrapped)
            raise refusal(failure) from failure
        return wrapped


def part(connection: socket.socket) -> None:
    """Close, but let what was said last arrive: with input unread, the system would reset the connection at once."""
    deadline = time.monotonic() + _PARTING_S
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(_PARTING_S)
        while time.monotonic() < deadline and connection.recv(1 << 16):
            pass
    connection.close()


def check_role(connection: ssl.SSLSocket, role: str) -> None:
    """Refuse a peer whose certificate names another role than ``role``, or other addresses than the peer's."""
    names: Any = (connection.getpeercert() or {}).get("subjectAltName", ())
    roles = [value.removeprefix(ROLE) for kind, value in names if kind == "URI" and value.startswith(ROLE)]
    if roles != [role]:
        raise Refused(f"its certificate is for {' and '.join(roles) or 'no role'}, not for {role}")
    addresses = [value for kind, value in names if kind == "IP Address"]
    here = connection.getpeername()[0]
    if addresses and here not in addresses:
        raise Refused(f"its certificate is for {' and '.join(addresses)}, not for {here}")


def refusal(failure: OSError) -> OSError | Refused:
    """Refused, in a few words about the other side; a connection that merely went stays what it is."""
    if isinstance(failure, TimeoutError):
        return Refused("it did not say who it is in time")
    if isinstance(failure, ssl.SSLCertVerificationError):
        return Refused(_VERIFY.get(failure.verify_code, "its certificate is not from the authority in ca.pem"))
    if not isinstance(failure, ssl.SSLError):
        return failure
    if isinstance(failure, ssl.SSLEOFError):
        return ConnectionResetError("it went during the handshake")
    said = str(failure.reason or failure)
    if "ALERT_" in said:
        alert = said.partition("ALERT_")[2]
        return Refused(_ALERTS.get(alert, f"it refuses this process's TLS ({alert.replace('_', ' ').lower()})"))
    return Refused(_REASONS.get(said, f"its TLS is broken ({said.replace('_', ' ').lower()})"))


def _context(folder: Path, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the role is checked in place of a host's name
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    try:
        context.load_verify_locations(folder / AUTHORITY)
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY, password=lambda: "")  # never asks at a terminal
    except (ssl.SSLError, ValueError) as failure:
        raise InputError(
            f"{folder} cannot be used for TLS: {AUTHORITY}, {CERTIFICATE} and {KEY} must be PEM, and {KEY} the "
            "certificate's own, without a password"
        ) from failure
    return context


def _check_own(path: Path, role: str) -> None:
    """Refuse to start with a certificate that all others would refuse."""
    from cryptography import x509

    try:
        own = x509.load_pem_x509_certificate(path.read_bytes())
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as failure:
        raise InputError(
            f"{path} is no certificate that names a role; make one with secureattn certificates"
        ) from failure
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    roles = [uri.removeprefix(ROLE) for uri in uris if uri.startswith(ROLE)]
    if roles != [role]:
        raise InputError(f"{path} is for {' and '.join(roles) or 'no role'}, and this process is {role}")
    now = datetime.now(timezone.utc)
    if not own.not_valid_before_utc <= now <= own.not_valid_after_utc:
        since, until = (f"{day:%Y-%m-%d %H:%M}" for day in (own.not_valid_before_utc, own.not_valid_after_utc))
        raise InputError(f"{path} is valid from {since} to {until} UTC, not now; make another one")
