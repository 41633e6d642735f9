"""Stock QEMU as a competitor: one QEMU sends to another, as its manual says."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from novacron import MachineError, NovacronError

from novacron_bench._beats import Pulse
from novacron_bench._competitor import Competitor, Contest, Moved
from novacron_bench._qmp import Qmp

PORT: Final = 4444
_ALIVE_S: Final = 20.0
_DONE: Final = ("completed", "failed", "cancelled")


@frozen(kw_only=True)
class Stock:
    """How QEMU is tuned.

    Attributes:
        capabilities: That are switched on, at both ends.
        parameters: That are set, at both ends.
        tls: Encrypt, with certificates on both sides.
        postcopy: Switch to post-copy after the first pass.
    """

    capabilities: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(factory=dict)
    tls: bool = False
    postcopy: bool = False

    def __call__(self, contest: Contest) -> Moved:
        if self.tls:
            write_certificates(contest.folder / "tls")
        start_qemu(contest, "a", "client" if self.tls else "", ())
        source = Qmp(contest.folder / "a.qmp")
        contest.ending.callback(source.close)
        # Before the guest fills its memory: what this QEMU does not have is known at once.
        self._tune(source)
        pulse = contest.beats.pulse(0, _ALIVE_S)
        contest.settle(pulse)
        start_qemu(contest, "b", "server" if self.tls else "", ("-incoming", "defer"))
        destination = Qmp(contest.folder / "b.qmp")
        contest.ending.callback(destination.close)
        arriving = contest.beats.pulse(1, _ALIVE_S)
        address = contest.network.address("b")
        host = f"[{address}]" if ":" in address else address
        self._tune(destination)
        destination.execute("migrate-incoming", uri=f"tcp:{host}:{PORT}")
        contest.begin_counting(False)
        began_s = time.monotonic()
        source.execute("migrate", uri=f"tcp:{host}:{PORT}")
        status = self._follow(source, began_s + contest.cutoff_s)
        ended_s = time.monotonic()
        figures = source.execute("query-migrate")
        outcome, reason = _judge(status, figures, arriving, contest.cutoff_s)
        return Moved(
            outcome=outcome,
            reason=reason,
            began_s=began_s,
            ended_s=ended_s,
            source=pulse,
            destination=arriving,
            figures=figures,
        )

    def _tune(self, side: Qmp) -> None:
        names = ("events", *self.capabilities, *(("postcopy-ram",) if self.postcopy else ()))
        side.execute(
            "migrate-set-capabilities",
            capabilities=[{"capability": name, "state": True} for name in names],
        )
        more = {"tls-creds": "tls0", "tls-hostname": "destination"} if self.tls else {}
        if parameters := {**self.parameters, **more}:
            side.execute("migrate-set-parameters", **parameters)

    def _follow(self, source: Qmp, deadline_s: float) -> str:
        """What QEMU says at the end, empty if that has not come in time."""
        switched = False
        while (left := deadline_s - time.monotonic()) > 0:
            event = source.event(min(left, 1.0))
            if event is None:
                # Events tell all; this is for those that were lost.
                status = str(source.execute("query-migrate").get("status", ""))
                if status in _DONE:
                    return status
                continue
            data = event.get("data", {})
            if event["event"] == "MIGRATION_PASS" and self.postcopy and not switched:
                if data.get("pass", 0) >= 2:
                    switched = True
                    source.execute("migrate-start-postcopy")
            elif event["event"] == "MIGRATION" and data.get("status") in _DONE:
                return str(data["status"])
        with contextlib.suppress(NovacronError):
            source.execute("migrate_cancel")
        return ""


def _judge(
    status: str, figures: Mapping[str, Any], arriving: Pulse, cutoff_s: float
) -> tuple[str, str]:
    if not status:
        return "cut off", f"not done after {cutoff_s:g} s"
    if status != "completed":
        return "failed", str(figures.get("error-desc") or f"QEMU says {status}")
    # "completed" proves nothing: the guest must live.
    if not arriving.wait(lambda: len(arriving.beats) > 5, _ALIVE_S):
        return "failed", "QEMU says completed, but the guest does not beat at its destination"
    return "moved", ""


def start_qemu(contest: Contest, side: str, tls_endpoint: str, more: tuple[str, ...]) -> None:
    """Start stock QEMU with the guest at a place; ``client`` or ``server`` of TLS, or empty."""
    guest, folder = contest.guest, contest.folder
    argv = ["qemu-system-x86_64", "-name", f"bench-{side}", "-nodefaults", "-no-user-config"]
    argv += ["-display", "none", "-no-shutdown", "-machine", "q35", "-accel", "tcg"]
    argv += ["-cpu", "qemu64", "-m", f"{guest.memory_bytes >> 20}M", "-smp", "1"]
    argv += ["-qmp", f"unix:{folder}/{side}.qmp,server=on,wait=off"]
    argv += ["-serial", f"file:{folder}/{side}.console"]
    argv += ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", guest.append]
    disk = f"file={guest.disk.path},if=virtio,format=raw,readonly=on,cache=writeback"
    argv += ["-drive", disk, *guest.beating(contest.beats.path)]
    if tls_endpoint:
        creds = f"tls-creds-x509,id=tls0,dir={folder}/tls,endpoint={tls_endpoint},verify-peer=on"
        argv += ["-object", creds]
    contest.spawn(side, [*argv, *more], f"{side}.log")


def write_certificates(folder: Path) -> None:
    """An authority and a certificate for each end, under the names that QEMU looks for."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench authority")])

    def issue(name: str, key: ec.EllipticCurvePrivateKey, is_authority: bool) -> x509.Certificate:
        subject = (
            authority
            if is_authority
            else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    content_commitment=False,
                    key_encipherment=not is_authority,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=is_authority,
                    crl_sign=is_authority,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        )
        if not is_authority:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False
            )
        return builder.sign(authority_key, hashes.SHA256())

    def write(name: str, data: bytes) -> None:
        path = folder / name
        path.write_bytes(data)
        path.chmod(0o600)

    pem = serialization.Encoding.PEM
    write("ca-cert.pem", issue("", authority_key, True).public_bytes(pem))
    for end, name in (("server", "destination"), ("client", "source")):
        key = ec.generate_private_key(ec.SECP256R1())
        write(f"{end}-cert.pem", issue(name, key, False).public_bytes(pem))
        write(
            f"{end}-key.pem",
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        )


_UNLIMITED: Final = {"max-bandwidth": 0}


def _multifd(channels: int, level: int | None = None) -> dict[str, Any]:
    zstd = {"multifd-compression": "zstd", "multifd-zstd-level": level} if level else {}
    return {**_UNLIMITED, "multifd-channels": channels, **zstd}


def stock_competitors() -> tuple[Competitor, ...]:
    """The variants of stock QEMU."""
    multifd = ("multifd",)
    variants = (
        ("default", "as installed", Stock()),
        ("default-tls", "as installed, with TLS", Stock(tls=True)),
        (
            "xbzrle",
            "xbzrle, 256 MiB of cache",
            Stock(
                capabilities=("xbzrle",),
                parameters={**_UNLIMITED, "xbzrle-cache-size": 256 << 20},
            ),
        ),
        ("multifd", "multifd 4", Stock(capabilities=multifd, parameters=_multifd(4))),
        (
            "multifd-zstd",
            "multifd 4 + zstd 1",
            Stock(capabilities=multifd, parameters=_multifd(4, 1)),
        ),
        (
            "multifd-zstd3",
            "multifd 4 + zstd 3",
            Stock(capabilities=multifd, parameters=_multifd(4, 3)),
        ),
        (
            "multifd-zstd-tls",
            "multifd 4 + zstd 1, with TLS",
            Stock(capabilities=multifd, parameters=_multifd(4, 1), tls=True),
        ),
        (
            "auto-converge",
            "auto-converge",
            Stock(capabilities=("auto-converge",), parameters=_UNLIMITED),
        ),
        ("postcopy", "post-copy", Stock(parameters=_UNLIMITED, postcopy=True)),
        # Gone since QEMU 9.1: a row that says so on newer ones.
        ("compress", "compress", Stock(capabilities=("compress",))),
    )
    return tuple(
        Competitor(name=name, title=title, run=run, encrypted=run.tls, stock=True)
        for name, title, run in variants
    )


def missing(error: MachineError) -> bool:
    """Whether QEMU refuses because it does not have what was asked for."""
    return "does not accept value" in str(error)
