"""Certificates for the processes of a run: an authority, and a folder for each role to take to its machine.

The authority's key never leaves the folder it was made in; it makes further roles, or new certificates once old ones
expire, and nothing else. Keys are ECDSA on P-256, readable by their owner alone. Nothing is overwritten.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secureattn.backends.crypten.tls import AUTHORITY, CERTIFICATE, KEY, ROLE
from secureattn.errors import InputError

KEPT = "authority"
"""The folder of the authority's key: for the machine where certificates are made, and no other."""

AUTHORITY_KEY = "ca-key.pem"
DAYS = 90

_AUTHORITY_DAYS = 3650
_EARLIER = timedelta(minutes=5)  # for clocks that are late
_ROLES = re.compile(r"owner|client|dealer|party-\d+")


def make(
    folder: Path,
    roles: Sequence[str],
    *,
    hosts: Mapping[str, Sequence[str]] | None = None,
    days: int = DAYS,
    start: datetime | None = None,
) -> list[Path]:
    """A folder for each role in ``folder``, by the authority in it, which is made where there is none.

    ``hosts``: IP addresses, by role, outside which a certificate is refused. InputError for a role that is none or has
    its folder already.
    """
    hosts = hosts or {}
    _check(folder, roles, hosts)
    start = start or datetime.now(timezone.utc) - _EARLIER
    folder.mkdir(parents=True, exist_ok=True)
    authority, key = _authority(folder / KEPT, start)
    made = []
    for role in roles:
        own = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(role, own, hosts.get(role, ()), authority, key, (start, timedelta(days=days)))
        made.append(_folder(folder / role))
        _write(made[-1] / KEY, _private(own))
        _write(made[-1] / CERTIFICATE, certificate.public_bytes(Encoding.PEM))
        _write(made[-1] / AUTHORITY, authority.public_bytes(Encoding.PEM))
    return made


def _check(folder: Path, roles: Sequence[str], hosts: Mapping[str, Sequence[str]]) -> None:
    for role in roles:
        if not _ROLES.fullmatch(role):
            raise InputError(f"a role is owner, client, dealer or party-N, not {role!r}")
        if (folder / role).exists():
            raise InputError(f"{folder / role} exists and is never overwritten; move it away, or choose another folder")
    for role, addresses in hosts.items():
        if role not in roles:
            raise InputError(f"--hosts names {role}, which is none of the roles asked for ({', '.join(roles)})")
        for address in addresses:
            try:
                ip_address(address)
            except ValueError as failure:
                raise InputError(f"a certificate is kept to IP addresses, not to {address!r}") from failure


def _authority(folder: Path, start: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The one in a folder, or a new one."""
    if not folder.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _authority_certificate(key, start)
        _write(_folder(folder) / AUTHORITY_KEY, _private(key))
        _write(folder / AUTHORITY, certificate.public_bytes(Encoding.PEM))
        return certificate, key
    try:
        certificate = x509.load_pem_x509_certificate((folder / AUTHORITY).read_bytes())
        kept = load_pem_private_key((folder / AUTHORITY_KEY).read_bytes(), None)
    except (OSError, ValueError, TypeError) as failure:
        raise InputError(f"{folder} holds no {AUTHORITY} and {AUTHORITY_KEY} to sign with: {failure}") from failure
    if not isinstance(kept, ec.EllipticCurvePrivateKey) or kept.public_key() != certificate.public_key():
        raise InputError(f"{folder / AUTHORITY_KEY} is not the key of {AUTHORITY} beside it; choose another folder")
    return certificate, kept


def _authority_certificate(key: ec.EllipticCurvePrivateKey, start: datetime) -> x509.Certificate:
    # a name of its own, so that two authorities are never taken for each other
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"SecureAttn authority {os.urandom(8).hex()}")])
    named = _builder(name, name, key, (start, timedelta(days=_AUTHORITY_DAYS)))
    return (
        named.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, SHA256())
    )


def _certificate(
    role: str,
    own: ec.EllipticCurvePrivateKey,
    addresses: Sequence[str],
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    valid: tuple[datetime, timedelta],
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role)])
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(ROLE + role)]
    names += [x509.IPAddress(ip_address(address)) for address in addresses]
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    return (
        _builder(name, authority.subject, own, valid)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(both, critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(signer, critical=False)
        .sign(key, SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, valid: tuple[datetime, timedelta]
) -> x509.CertificateBuilder:
    start, lasts = valid
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    """Of a key that signs certificates, or handshakes."""
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _folder(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


def _write(path: Path, text: bytes) -> None:
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
