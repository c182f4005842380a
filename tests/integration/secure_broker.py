"""A real broker behind TLS, client certificates, SCRAM, OAuth tokens and access control lists.

It has a door for the tests themselves, without TLS, behind which everyone may do everything.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from .broker import BrokerFiles, free_ports, running_broker

USERS = ("sedflow", "writer")
"""Who may log in with the password."""
PASSWORD = "correct-horse-battery"  # noqa: S105
PROPERTIES = """\
listeners=PLAINTEXT://127.0.0.1:{open_port},SASL_SSL://127.0.0.1:{sasl_port},\
SSL://127.0.0.1:{tls_port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{open_port},SASL_SSL://127.0.0.1:{sasl_port},\
SSL://127.0.0.1:{tls_port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={folder}/server.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.pem
listener.name.ssl.ssl.client.auth=required
ssl.principal.mapping.rules=RULE:^.*CN=([^,]+).*$/$1/,DEFAULT
sasl.enabled.mechanisms=SCRAM-SHA-512,OAUTHBEARER
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=\
org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.oauthbearer.sasl.jaas.config=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""


@dataclass(frozen=True)
class SecureBroker:
    """Addresses of the broker's doors, and the folder of its certificates.

    `ca.pem` signed the broker's certificate, for 127.0.0.1 alone, and `client.pem` of the user
    `sedflow`; `other-ca.pem` did not, but signed `stranger.pem`.
    """

    open: str
    sasl: str
    tls: str
    folder: Path

    def allow(
        self, user: str, kind: str, name: str, *operations: str, prefixed: bool = False
    ) -> None:
        """Give a user rights on a TOPIC, GROUP or TRANSACTIONAL_ID, or on all that begin so."""
        rules = [
            self._rule(user, kind, name, operation, prefixed=prefixed) for operation in operations
        ]
        self._add(rules)

    def deny(self, user: str, kind: str, name: str, operation: str) -> None:
        """Take a right back."""
        self._add([self._rule(user, kind, name, operation, AclPermissionType.DENY)])

    def _add(self, rules: list[AclBinding]) -> None:
        admin = AdminClient({"bootstrap.servers": self.open})
        for done in admin.create_acls(rules).values():
            done.result()

    @staticmethod
    def _rule(
        user: str,
        kind: str,
        name: str,
        operation: str,
        verdict: Any = AclPermissionType.ALLOW,
        *,
        prefixed: bool = False,
    ) -> AclBinding:
        return AclBinding(
            ResourceType[kind],
            name,
            ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL,
            f"User:{user}",
            "*",
            AclOperation[operation],
            verdict,
        )


@contextmanager
def secure_broker() -> Iterator[SecureBroker]:
    """Start it. Raises BrokerUnavailableError without Java 17 or Maven."""
    with tempfile.TemporaryDirectory(prefix="sedflow-secure-") as name:
        folder = Path(name)
        write_certificates(folder)
        ports = dict(
            zip(
                ("open_port", "sasl_port", "tls_port", "controller_port"),
                free_ports(4),
                strict=True,
            )
        )
        scram = [f"SCRAM-SHA-512=[name={name},password={PASSWORD}]" for name in USERS]
        files = BrokerFiles(
            folder, PROPERTIES.format(folder=folder, **ports), ports["controller_port"]
        )
        addresses = [f"127.0.0.1:{ports[n]}" for n in ("open_port", "sasl_port", "tls_port")]
        with running_broker(files, addresses[0], add_scram=scram):
            yield SecureBroker(*addresses, folder)


def write_certificates(folder: Path) -> None:
    """Write the certificates and keys that `SecureBroker` tells of."""
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other-ca.pem")
    write_pair(ca.issue_cert("127.0.0.1"), folder / "server.pem")
    write_pair(ca.issue_cert("sedflow.example", common_name="sedflow"), folder / "client.pem")
    write_pair(other.issue_cert("sedflow.example", common_name="sedflow"), folder / "stranger.pem")


def write_pair(certificate: trustme.LeafCert, path: Path) -> None:
    """Write key and certificates into one file; Kafka wants the key as PKCS 8."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    path.write_bytes(pem + chain)
