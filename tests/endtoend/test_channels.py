"""Channels: a provider's own protocol between two nodes, on the one port, both names proved."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from novacron import Conflict, SecureStream, TransportError
from novacron.channels import CHANNELS_PER_PEER_MAX
from real_channels import channel_nodes


def echo(stream: SecureStream) -> None:
    buffer = bytearray(100)
    while count := stream.receive_into(memoryview(buffer)):
        stream.send([stream.peer.node.encode() + b":" + buffer[:count]])


def ask(stream: SecureStream, text: bytes) -> bytes:
    stream.send([text])
    buffer = bytearray(100)
    return bytes(buffer[: stream.receive_into(memoryview(buffer))])


def test_a_channel_carries_bytes_both_ways_and_each_side_knows_the_other(tmp_path: Path) -> None:
    with channel_nodes(tmp_path, "a", "b") as nodes:
        nodes["b"].channels.serve("echo/1", echo)
        stream = nodes["a"].channels.open("b", "echo/1")
        assert stream.peer.node == "b"
        assert ask(stream, b"hello") == b"a:hello"
        stream.close()


def test_a_protocol_that_the_peer_does_not_serve_is_refused_by_name(tmp_path: Path) -> None:
    with channel_nodes(tmp_path, "a", "b") as nodes:
        with pytest.raises(TransportError, match="b opens no channel for raft") as caught:
            nodes["a"].channels.open("b", "raft")
        assert caught.value.hint


def test_the_node_at_an_address_must_be_the_one_that_was_meant(tmp_path: Path) -> None:
    with channel_nodes(tmp_path, "a", "b", "c") as nodes:
        for node in nodes.values():
            node.channels.serve("echo", echo)
        address = nodes["c"].addresses["c"]
        with pytest.raises(Exception, match="c") as caught:
            nodes["a"].channels.open("b", "echo", address)
        assert type(caught.value).__name__ == "Untrusted"
        nodes["a"].channels.open("c", "echo", address).close()


def test_a_peer_has_so_many_channels_at_a_time_and_more_once_they_end(tmp_path: Path) -> None:
    with channel_nodes(tmp_path, "a", "b") as nodes:
        ended = threading.Semaphore(0)

        def counted(stream: SecureStream) -> None:
            try:
                echo(stream)
            finally:
                ended.release()

        nodes["b"].channels.serve("echo", counted)
        streams = [nodes["a"].channels.open("b", "echo") for _ in range(CHANNELS_PER_PEER_MAX)]
        with pytest.raises(TransportError):
            nodes["a"].channels.open("b", "echo")
        streams[0].close()
        assert ended.acquire(timeout=10)
        while True:  # the handler has returned; that it is counted follows at once
            try:
                streams[0] = nodes["a"].channels.open("b", "echo")
                break
            except TransportError:
                continue
        for stream in streams:
            stream.close()


def test_a_handler_that_fails_ends_its_stream_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(stream: SecureStream) -> None:
        stream.receive_into(memoryview(bytearray(1)))
        raise RuntimeError("a fault of the provider")

    with channel_nodes(tmp_path, "a", "b") as nodes:
        nodes["b"].channels.serve("broken", broken)
        nodes["b"].channels.serve("echo", echo)
        stream = nodes["a"].channels.open("b", "broken")
        with pytest.raises(TransportError):
            ask(stream, b"x")
        stream.close()
        stream = nodes["a"].channels.open("b", "echo")
        assert ask(stream, b"x") == b"a:x"
        stream.close()
    assert "a fault of the provider" in caplog.text


def test_a_node_that_closes_ends_the_channels_that_it_serves(tmp_path: Path) -> None:
    with channel_nodes(tmp_path, "a", "b") as nodes:
        nodes["b"].channels.serve("echo", echo)
        stream = nodes["a"].channels.open("b", "echo")
        nodes["b"].close()
        with pytest.raises(TransportError):
            stream.receive_into(memoryview(bytearray(1)))
        stream.close()


def test_a_protocol_is_served_once_and_has_a_sound_name(tmp_path: Path) -> None:
    with channel_nodes(tmp_path, "a") as nodes:
        channels = nodes["a"].channels
        channels.serve("echo", echo)
        with pytest.raises(Conflict):
            channels.serve("echo", lambda stream: None)
        for name in ("", "Echo", "x" * 65, "a b"):
            with pytest.raises(ValueError, match="no name of a protocol"):
                channels.serve(name, echo)
            with pytest.raises(ValueError, match="no name of a protocol"):
                channels.open("b", name)
