"""A real etcd cluster on this host, with TLS, for tests and benchmarks; not for production.

Needs the program ``etcd`` and the package cryptography (the extra ``local``).
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from attrs import define, evolve, field
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from novacron import NodeUnavailable

from novacron_consensus_etcd._errors import EtcdError
from novacron_consensus_etcd._settings import EtcdSettings

START_S: Final = 20.0


@define(eq=False)
class LocalCluster:
    """Members of one etcd cluster, as processes with data folders below ``folder``.

    Attributes:
        settings: With which a register reaches all members.
        processes: The members that run, by number.
    """

    folder: Path
    size: int = 1
    processes: dict[int, subprocess.Popen[bytes]] = field(factory=dict, init=False)
    _client_ports: list[int] = field(init=False)
    _peer_ports: list[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        if program() is None:
            raise NodeUnavailable(
                "the program etcd is not installed", hint="scripts/debian-packages installs it"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        _make_certificates(self.folder)
        ports = _free_ports(2 * self.size)
        self._client_ports, self._peer_ports = ports[: self.size], ports[self.size :]

    @property
    def settings(self) -> EtcdSettings:
        return EtcdSettings(
            endpoints=[f"https://127.0.0.1:{port}" for port in self._client_ports],
            ca_file=str(self.folder / "ca.pem"),
            certificate_file=str(self.folder / "client.pem"),
            key_file=str(self.folder / "client-key.pem"),
        )

    def start(self, member: int) -> None:
        """Start a member's process; it goes on with the data that it has."""
        files = {name: str(self.folder / f"{name}.pem") for name in ("ca", "server", "server-key")}
        client = f"https://127.0.0.1:{self._client_ports[member]}"
        peer = f"https://127.0.0.1:{self._peer_ports[member]}"
        everyone = ",".join(
            f"m{number}=https://127.0.0.1:{port}" for number, port in enumerate(self._peer_ports)
        )
        tls: list[str] = []
        for side in ("", "peer-"):
            tls += [f"--{side}cert-file", files["server"], f"--{side}key-file", files["server-key"]]
            tls += [f"--{side}trusted-ca-file", files["ca"], f"--{side}client-cert-auth"]
        with (self.folder / f"m{member}.log").open("ab") as log:
            self.processes[member] = subprocess.Popen(
                [
                    *("etcd", "--name", f"m{member}", "--data-dir", f"{self.folder}/m{member}"),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", everyone, "--initial-cluster-state", "new"),
                    *("--logger", "zap", "--log-level", "warn", *tls),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> None:
        """Until every member's port takes connections. Raises NodeUnavailable."""
        ends = time.monotonic() + START_S
        for member, process in self.processes.items():
            while True:
                try:
                    socket.create_connection(("127.0.0.1", self._client_ports[member]), 1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > ends:
                        raise NodeUnavailable(
                            f"etcd member m{member} did not start",
                            hint=f"its log: {self.folder}/m{member}.log",
                        ) from None
                    time.sleep(0.02)

    def leader(self, *, asked: int | None = None) -> int:
        """The number of the member that leads; waits for one. Raises NodeUnavailable.

        Args:
            asked: Waits until this member knows of a leader, too.
        """
        ends = time.monotonic() + START_S
        while time.monotonic() < ends:
            leads = None
            for member in self.processes:
                found = asyncio.run(_status(self.settings.endpoints[member], self.settings))
                if found is not None and found.leader == found.header.member_id:
                    leads = member
                elif member == asked and (found is None or not found.leader):
                    break
            else:
                if leads is not None:
                    return leads
            time.sleep(0.02)
        raise NodeUnavailable("no etcd member leads", hint=f"their logs: {self.folder}")

    def signal(self, member: int, number: signal.Signals) -> None:
        self.processes[member].send_signal(number)

    def kill(self, member: int) -> None:
        """``kill -9`` a member; its data stay."""
        process = self.processes.pop(member)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for member in list(self.processes):
            self.kill(member)


def program() -> str | None:
    """Where the program etcd is, None if it is not installed."""
    return shutil.which("etcd")


@contextmanager
def local_cluster(folder: Path, size: int = 1) -> Iterator[LocalCluster]:
    """A cluster that runs within the block."""
    cluster = LocalCluster(folder, size)
    try:
        for member in range(size):
            cluster.start(member)
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.stop()


async def _status(endpoint: str, settings: EtcdSettings) -> Any:
    """What a member says of itself; None if it does not answer."""
    from aetcd import rpc  # type: ignore[import-untyped]

    from novacron_consensus_etcd._client import Client

    client = Client(evolve(settings, endpoints=[endpoint], timeout_s=1.0))
    request = rpc.StatusRequest()
    try:
        return await client.call(
            lambda channel, seconds: rpc.MaintenanceStub(channel).Status(request, timeout=seconds)
        )
    except EtcdError:
        return None
    finally:
        await client.close()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _make_certificates(folder: Path) -> None:
    """An authority, a server's and a client's certificate, for a day."""
    authority = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)

    def certificate(name: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        address = x509.IPAddress(ip_address("127.0.0.1"))
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .sign(authority, hashes.SHA256())
        )

    for name in ("ca", "server", "client"):
        key = authority if name == "ca" else ec.generate_private_key(ec.SECP256R1())
        pem = certificate(name, key).public_bytes(serialization.Encoding.PEM)
        (folder / f"{name}.pem").write_bytes(pem)
        if name != "ca":
            secret = key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            path = folder / f"{name}-key.pem"
            path.touch(mode=0o600)
            path.write_bytes(secret)
