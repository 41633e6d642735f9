"""Traffic for a measurement: run as a program inside a site, so it needs nothing but Python.

sink ADDRESS          take TCP until it ends; prints "ready" and, per connection, the bytes
bulk ADDRESS S CC     send TCP for S seconds with a congestion control; nothing is printed
flood ADDRESS S       send UDP to nobody for S seconds, as fast as it goes
count ADDRESS N BYTES send N datagrams of so many bytes
ping ADDRESS N        N echoes, the next when the last one is back; prints each time in seconds
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Final

PORT: Final = 5009
UDP_SEGMENT: Final = 103  # linux/udp.h
DATAGRAM: Final = 1472
BLOCK: Final = bytes(1 << 20)


def say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def sink(address: str) -> None:
    buffer = bytearray(1 << 20)
    with socket.create_server((address, PORT)) as server:
        say("ready")
        connection, _ = server.accept()
        with connection:
            begin, count, seen = 0.0, 0, 0
            while got := connection.recv_into(buffer):
                count += got
                # The ramp at the beginning is TCP's and not the link's.
                if not begin and count > 4 << 20:
                    begin, seen = time.monotonic(), count
            took = time.monotonic() - begin
        say({"bytes": count, "bit_per_s": (count - seen) * 8 / took if begin else 0.0})


def bulk(address: str, seconds: str, congestion_control: str) -> None:
    with socket.socket() as sender:
        name = congestion_control.encode()
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)
        sender.connect((address, PORT))
        end = time.monotonic() + float(seconds)
        while time.monotonic() < end:
            sender.sendall(BLOCK)


def _datagrams() -> socket.socket:
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    return sender


def flood(address: str, seconds: str) -> None:
    with _datagrams() as sender:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, DATAGRAM)
        many, end = bytes(40 * DATAGRAM), time.monotonic() + float(seconds)
        while time.monotonic() < end:
            sender.sendto(many, (address, PORT))


def count(address: str, packets: str, size: str) -> None:
    with _datagrams() as sender:
        data = bytes(int(size))
        for _ in range(int(packets)):
            sender.sendto(data, (address, PORT))


def ping(address: str, times: str) -> None:
    """ICMP, which the other side's kernel answers: no process there is waited for."""
    took = []
    # The link is measured, and not how long this process waits for its turn.
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as echo:
        echo.settimeout(5)
        for number in range(int(times)):
            checksum = 0xFFFF - (0x0800 + PORT + number)
            begin = time.perf_counter()
            echo.sendto(struct.pack(">BBHHH", 8, 0, checksum, PORT, number), (address, 0))
            echo.recv(1000)
            took.append(time.perf_counter() - begin)
    say(took)


if __name__ == "__main__":
    work: dict[str, Callable[..., None]] = {
        "sink": sink, "bulk": bulk, "flood": flood, "count": count, "ping": ping,
    }  # fmt: skip
    work[sys.argv[1]](*sys.argv[2:])
