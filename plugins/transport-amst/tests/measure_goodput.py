"""Measures a link between two network namespaces: ``measure_goodput.py --far NS --near NS …``.

Needs root and two namespaces that are joined by a path. One process in each speaks over a real link
(TLS and the transport) for a while, with bytes that nothing can compress; the result is a line of
JSON: what arrived, what the streams sent for it, round trips, and CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from novacron import NodeFacts, PluginManager
from novacron_dwcp import LinkBroken
from novacron_dwcp.accept import Acceptor
from novacron_dwcp.driver import Link

PORT = 7000


def provider(domain: str, name: str, state: Path, node: str, settings: dict[str, Any]) -> Any:
    manager = PluginManager.load(only={f"{domain}-{name}"})
    made: Any = manager.providers(domain)[name]
    return made(made.Settings(**settings), NodeFacts(name=node, state_dir=state))


def cpu_s() -> float:
    times = os.times()
    return times.user + times.system


class Side:
    def __init__(self, options: argparse.Namespace, name: str) -> None:
        self.options = options
        state = Path(options.state) / name
        settings = json.loads(options.settings)
        self.transport = provider("transport", options.transport, state, name, settings)
        self.security = provider("security", "tls", state, name, {})

    def link(self, session: str, dial: Any = None) -> Link:
        steering = getattr(self.transport, "steering", lambda: None)()
        return Link(
            session, self.options.window << 20, 60.0, lambda message: None, lambda: None, print,
            dial, steering=steering,
        )  # fmt: skip


def far(options: argparse.Namespace) -> None:
    side = Side(options, "far")
    listener = side.transport.listen(f"{options.listen}:{PORT}")
    links: list[Link] = []

    def secure(stream: Any) -> tuple[Any, str]:
        return side.security.server(stream), "near"

    def make(hello: Any, peer: str) -> Link:
        links.append(side.link(hello.session))
        threading.Thread(target=drain, args=(links[-1],), daemon=True).start()
        return links[-1]

    def drain(link: Link) -> None:
        while (frame := link.receive_data()) is not None:
            link.taken(frame)

    Acceptor(listener.accept, secure, make).start()
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    threading.Event().wait()  # until it is terminated


def near(options: argparse.Namespace) -> None:
    side = Side(options, "near")
    address = f"{options.address}:{PORT}"

    def dial() -> Any:
        return side.security.client(side.transport.connect(address, 5.0), "far")

    link = side.link("measure", dial)
    link.start()
    if not link.wait_connected(20):
        sys.exit("no connection")
    before_s, start_s = cpu_s(), time.monotonic()
    payload = secrets.token_bytes(options.batch << 10)
    sent = [0]
    over = threading.Event()

    def pour() -> None:
        with contextlib.suppress(LinkBroken):
            while not over.is_set():
                link.send_data(payload)
                sent[0] += len(payload)

    threading.Thread(target=pour, daemon=True).start()
    marks, rtts, most = [(0.0, 0)], [], 0
    while time.monotonic() - start_s < options.seconds:
        time.sleep(min(0.25, options.seconds / 8))
        measure = link.measure()
        taken = sent[0] - measure.unacknowledged_bytes
        marks.append((time.monotonic() - start_s, taken))
        most = max(most, measure.streams)
        if marks[-1][0] > options.seconds / 4:
            rtts.append(measure.rtt_s)
        if options.verbose:
            (a, was), (b, now) = marks[-2:]
            rate = link._steer.rate
            sys.stderr.write(
                f"{b:6.2f} s {8e-6 * (now - was) / (b - a):8.1f} Mbit/s, at most "
                f"{8e-6 * rate if rate else 0:8.1f}, rtt {1e3 * measure.rtt_s:6.1f} of "
                f"{1e3 * measure.min_rtt_s:6.1f} ms, {measure.streams} streams "
                f"({link._steer.streams}), loss {100 * measure.loss:.2f} %, paths "
                f"{8e-6 * measure.rate_bytes_per_s:.1f}, unsent {measure.unsent_bytes >> 10} KiB\n"
            )
    end_s, total = marks[-1]
    from_s, first = next(mark for mark in marks if mark[0] >= options.seconds / 4)
    measure = link.measure()
    over.set()
    result = {
        "mbit_per_s": round(8e-6 * total / end_s, 2),
        "after_start_mbit_per_s": round(8e-6 * (total - first) / (end_s - from_s), 2),
        "rtt_ms": round(1e3 * statistics.median(rtts), 1),
        "rtt_worst_ms": round(1e3 * max(rtts), 1),
        "rtt_floor_ms": round(1e3 * measure.min_rtt_s, 1),
        "streams": most,
        "tcp_resent": round(measure.loss, 4),
        "frames_resent_bytes": measure.resent_bytes,
        "payload_bytes": total,
        "wire_bytes": link.sent_bytes,
        "cpu_s": round(cpu_s() - before_s, 2),
        "seconds": round(end_s, 2),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    os._exit(0)  # what is under way is of no interest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--far", default="", help="namespace that receives")
    parser.add_argument("--near", default="", help="namespace that sends")
    parser.add_argument("--address", default="10.77.0.2", help="where the far one is")
    parser.add_argument("--listen", default="0.0.0.0")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--window", type=int, default=64, help="MiB")
    parser.add_argument("--batch", type=int, default=256, help="KiB")
    parser.add_argument("--transport", default="amst")
    parser.add_argument("--settings", default="{}", help="of the transport, JSON")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--state", default="", help=argparse.SUPPRESS)
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        {"far": far, "near": near}[options.side](options)
        return
    from novacron_security_tls._authority import Authority

    with tempfile.TemporaryDirectory() as folder:
        authority = Authority.create(Path(folder) / "ca")
        for name in ("far", "near"):
            authority.issue(name, Path(folder) / name)
        again = [sys.executable, __file__, *sys.argv[1:], "--state", folder, "--side"]

        def within(namespace: str, side: str) -> list[str]:
            prefix = ["ip", "netns", "exec", namespace] if namespace else []
            return [*prefix, *again, side]

        with subprocess.Popen(within(options.far, "far"), stdout=subprocess.PIPE, text=True) as one:
            assert one.stdout is not None
            one.stdout.readline()
            try:
                done = subprocess.run(
                    within(options.near, "near"), stdout=subprocess.PIPE, text=True, check=True
                )
                result = json.loads(done.stdout)
                fields = Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()
                spent = int(fields[11]) + int(fields[12])
                result["far_cpu_s"] = spent / os.sysconf("SC_CLK_TCK")
            finally:
                one.terminate()
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
