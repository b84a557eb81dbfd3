"""The cluster's own certificate authority, and kubeconfig files that log in with it."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = dt.timedelta(days=3650)


class Authority:
    """A certificate authority that lives as long as its cluster; files in PEM."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.certificate_file = folder / "ca.crt"
        self.key_file = folder / "ca.key"
        self._key = _new_key(self.key_file)
        self._name = _name("devcluster-ca", None)
        builder = _builder(self._name, self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        _write_certificate(self.certificate_file, builder.sign(self._key, hashes.SHA256()))

    def issue(
        self,
        file_name: str,
        common_name: str,
        *,
        organization: str | None = None,
        hosts: Sequence[str] = (),
    ) -> None:
        """Write `<file_name>.crt` and `.key`, good for clients and for servers at `hosts`."""
        key = _new_key(self.folder / f"{file_name}.key")
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        subject = _name(common_name, organization)
        builder = _builder(subject, self._name, key.public_key()).add_extension(
            x509.ExtendedKeyUsage(usage), critical=False
        )
        if hosts:
            names = x509.SubjectAlternativeName([_host(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        _write_certificate(self.folder / f"{file_name}.crt", certificate)

    def write_kubeconfig(self, path: Path, *, server: str, file_name: str) -> None:
        """A kubeconfig that holds everything it needs, for the identity `file_name`."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "devcluster",
                    "cluster": {
                        "server": server,
                        "certificate-authority-data": _encoded(self.certificate_file),
                    },
                }
            ],
            "users": [
                {
                    "name": file_name,
                    "user": {
                        "client-certificate-data": _encoded(self.folder / f"{file_name}.crt"),
                        "client-key-data": _encoded(self.folder / f"{file_name}.key"),
                    },
                }
            ],
            "contexts": [
                {"name": "devcluster", "context": {"cluster": "devcluster", "user": file_name}}
            ],
            "current-context": "devcluster",
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(config, indent=2))


def write_service_account_keys(folder: Path) -> None:
    """`sa.key` and `sa.pub`: what service account tokens are signed and checked with."""
    key = _new_key(folder / "sa.key")
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / "sa.pub").write_bytes(public)


def _new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # A minute back: clocks of the host and of a reader may differ a little.
        .not_valid_before(now - dt.timedelta(minutes=1))
        .not_valid_after(now + _LIFETIME)
    )


def _name(common_name: str, organization: str | None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization is not None:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
