"""The API over its real socket, in front of a node with real operations."""

from __future__ import annotations

import getpass
import http.client
import json
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
from novacron import (
    Cancelled,
    ConfigError,
    Conflict,
    MachineError,
    MigrationPlan,
    NodeUnavailable,
    NotFound,
    NovacronError,
    OperationEvent,
    Refused,
)
from novacron_server._client import Client
from novacron_server._plan import Plan
from novacron_server._problems import STATUS, TYPE_PREFIX, from_problem, status_of, to_problem
from novacron_server._sockets import PATH_BYTES_MAX, connect, listen, peer_subject
from openapi_spec_validator import validate


def ask(
    running: Any, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    """One request as a stranger would send it."""
    connection = http.client.HTTPConnection("node", timeout=20)
    connection.sock = connect(running.service.path, 20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        named.setdefault("Content-Type", "application/json")
    connection.request(method, path, body=body, headers=named)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    kind = response.getheader("Content-Type", "")
    value = json.loads(content) if "json" in kind else content
    return response.status, {k.lower(): v for k, v in response.getheaders()}, value


def make(client: Client, name: str = "vm") -> None:
    client.wait(client.create(name, driver="paper", memory_bytes=1 << 20)["id"])


def test_the_socket_is_for_its_owner_alone_and_is_gone_after_stop(running: Any) -> None:
    path: Path = running.service.path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    running.call(running.service.stop())
    running.call(running.service.stop())
    assert not path.exists()


def test_a_machine_is_made_listed_shown_paused_resumed_stopped_started_and_deleted(
    client: Client,
) -> None:
    began = client.create("vm", driver="paper", memory_bytes=1 << 20, settings={"a": [1]})
    assert began["kind"] == "create"
    assert client.wait(began["id"])["state"] == "succeeded"
    assert client.machine("vm")["settings"] == {"a": [1]}
    assert [machine["name"] for machine in client.machines()] == ["vm"]
    for verb, state in (
        ("pause", "paused"),
        ("resume", "running"),
        ("stop", "stopped"),
        ("start", "running"),
    ):
        assert client.wait(getattr(client, verb)("vm")["id"])["state"] == "succeeded"
        assert client.machine("vm")["state"] == state
    failed = client.wait(client.delete("vm")["id"])
    assert failed["state"] == "failed"
    assert failed["error"]["code"] == "conflict"
    assert client.wait(client.delete("vm", force=True)["id"])["state"] == "succeeded"
    assert client.machines() == []


def test_a_change_is_accepted_as_an_operation_at_its_location(running: Any) -> None:
    body = b'{"name": "vm", "driver": "paper", "memory_bytes": 1}'
    status, headers, operation = ask(running, "POST", "/v1/machines", body)
    assert status == 202
    assert headers["location"] == f"/v1/operations/{operation['id']}"
    assert ask(running, "GET", headers["location"])[2]["id"] == operation["id"]


def test_who_asks_is_the_user_at_the_other_end_whatever_headers_say(
    running: Any, client: Client
) -> None:
    make(client)
    status, _, operation = ask(
        running, "POST", "/v1/machines/vm/pause", X_Forwarded_For="root", X_Forwarded_Proto="https"
    )
    assert status == 202
    assert operation["subject"] == f"local:{getpass.getuser()}"


def test_a_user_without_a_name_is_told_by_number() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)

    def nobody(uid: int) -> Any:
        raise KeyError(uid)

    with ours, theirs:
        assert peer_subject(ours, nobody) == (f"local:{os.getuid()}", os.getpid())
    assert peer_subject(None) == ("local", 0)


def test_the_node_tells_of_itself_its_peers_and_its_plugins(client: Client) -> None:
    assert client.node()["node"] == "alpha"
    assert [(peer["name"], peer["reachable"]) for peer in client.peers()] == [
        ("beta", True),
        ("gamma", False),
    ]
    plugins = client.plugins()
    assert [plugin["name"] for plugin in plugins["loaded"]] == ["policy"]
    assert plugins["failed"] == []


def test_the_node_can_be_asked_to_stop(running: Any, client: Client) -> None:
    client.stop_node()
    assert running.node.stopping.wait(20)


def test_the_same_key_gives_the_same_operation_and_another_request_conflicts(
    client: Client,
) -> None:
    first = client.create("vm", driver="paper", memory_bytes=1, key="k")
    client.wait(first["id"])
    again = client.create("vm", driver="paper", memory_bytes=1, key="k")
    assert again["id"] == first["id"]
    with pytest.raises(Conflict, match="key 'k'"):
        client.pause("vm", key="k")


def test_a_dry_run_gives_the_plan_and_moves_nothing(client: Client) -> None:
    make(client)
    plan = client.plan("vm", "beta", max_downtime_ms=150, rate_bytes_per_s=5)
    assert (plan["source"], plan["target"], plan["max_downtime_ms"]) == ("alpha", "beta", 150)
    assert plan["rate_bytes_per_s"] == 5
    assert plan["estimate"]["bytes"] == [1000, 2000, 3000]
    assert plan["machine"]["name"] == "vm"
    assert (plan["blocked"], plan["obstacles"]) == (False, [])
    assert [operation["kind"] for operation in client.operations()] == ["create"]


def test_a_dry_run_answers_with_all_that_stands_in_the_way_each_with_its_cure(
    client: Client,
) -> None:
    make(client)
    plan = client.plan("vm", "gamma")
    assert plan["blocked"] is True
    assert [(o["code"], o["blocks"]) for o in plan["obstacles"]] == [
        ("qemu.older", False),
        ("cpu.feature-missing", True),
    ]
    assert plan["obstacles"][1]["facts"] == {
        "setting": "cpu",
        "value": "Westmere",
        "missing": ["avx2"],
    }
    assert all(obstacle["cure"] for obstacle in plan["obstacles"])


def test_a_plan_as_the_api_gives_it_has_all_that_the_nodes_plan_has() -> None:
    named = {field.name for field in msgspec.structs.fields(Plan)}
    assert named == {attribute.name for attribute in attrs.fields(MigrationPlan)} | {"blocked"}


def test_the_events_of_a_move_come_in_order_and_end_with_its_state(
    running: Any, client: Client
) -> None:
    make(client)
    move = client.migrate("vm", "beta")
    running.let(3)
    events = list(client.events(move["id"]))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[0].kind == "phase"
    assert (events[-1].kind, events[-1].data["state"]) == ("state", "succeeded")
    assert client.operation(move["id"])["result"]["node"] == "beta"
    assert client.operations(machine="vm", state="succeeded")[-1]["id"] == move["id"]
    assert client.operations(state="failed") == []


def read_events(running: Any, path: str, **headers: str) -> tuple[int, bytes]:
    """An event stream, read to its end."""
    status, _, content = ask(running, "GET", path, None, **headers)
    return status, content


def ids_of(content: bytes) -> list[str]:
    return [line[4:].decode() for line in content.split(b"\n") if line.startswith(b"id: ")]


def test_a_broken_event_stream_goes_on_after_the_last_event_that_was_seen(
    running: Any, client: Client
) -> None:
    make(client)
    move = client.migrate("vm", "beta")
    running.let(3)
    client.wait(move["id"])
    path = f"/v1/operations/{move['id']}/events"
    ids = ids_of(read_events(running, path)[1])
    assert len(ids) > 3
    resumed = ids_of(read_events(running, path, Last_Event_ID=ids[1])[1])
    assert resumed == ids[2:]
    assert read_events(running, path, Last_Event_ID=ids[-1]) == (204, b"")


def test_an_event_id_of_an_earlier_run_of_the_node_begins_from_the_start(
    running: Any, client: Client
) -> None:
    make(client)
    operation = client.pause("vm")
    client.wait(operation["id"])
    path = f"/v1/operations/{operation['id']}/events"
    status, content = read_events(running, path, Last_Event_ID="0badf00d-99")
    assert status == 200
    assert len(ids_of(content)) == 1


@pytest.mark.parametrize("last", ["x", "1-", "-", "1-²", "1-9999999999999", "1--1"])
def test_an_event_id_that_is_none_of_ours_is_refused(
    running: Any, client: Client, last: str
) -> None:
    make(client)
    operation = client.pause("vm")
    headers = {"Last_Event_ID": last.encode().decode("latin-1")}
    path = f"/v1/operations/{operation['id']}/events"
    status, _, problem = ask(running, "GET", path, None, **headers)
    assert (status, problem["code"]) == (400, "config")


def test_a_quiet_event_stream_says_that_it_is_alive(running: Any, client: Client) -> None:
    make(client)
    move = client.migrate("vm", "beta")
    with connect(running.service.path, 20) as sock:
        sock.sendall(
            f"GET /v1/operations/{move['id']}/events HTTP/1.1\r\nHost: node\r\n\r\n".encode()
        )
        seen = b""
        while seen.count(b": alive\n\n") < 2:
            chunk = sock.recv(4096)
            assert chunk, seen
            seen += chunk
    running.until(lambda: running.service._shared.streams == 0)


def test_a_client_that_never_reads_is_cut_off_and_holds_nothing(
    running: Any, client: Client
) -> None:
    make(client)
    move = client.migrate("vm", "beta")
    operation = running.node.operations.get(move["id"])
    with connect(running.service.path, 20) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(
            f"GET /v1/operations/{move['id']}/events HTTP/1.1\r\nHost: node\r\n\r\n".encode()
        )
        running.until(lambda: running.service._shared.streams == 1)

        async def flood() -> None:
            for _ in range(900):
                operation.tell("message", {"text": "x" * 2000})

        running.call(flood())
        running.until(lambda: running.service._shared.streams == 0)
        running.let(3)
        # Everybody else is served meanwhile, and the move ends.
        assert client.wait(move["id"])["state"] == "succeeded"


def test_more_streams_than_allowed_are_refused_for_now(start_api: Callable[..., Any]) -> None:
    running = start_api(max_streams=0)
    with running.client() as client:
        make_quietly(client)
        move = client.migrate("vm", "beta")
        status, headers, problem = ask(running, "GET", f"/v1/operations/{move['id']}/events")
        assert (status, problem["code"], headers["retry-after"]) == (503, "busy", "1")
        client.cancel(move["id"])


def make_quietly(client: Client) -> None:
    """Make a machine without watching."""
    client.create("vm", driver="paper", memory_bytes=1)
    while not client.machines():
        pass


def test_a_move_is_cancelled_and_a_second_cancel_is_in_conflict(
    running: Any, client: Client
) -> None:
    make(client)
    move = client.migrate("vm", "beta")
    client.cancel(move["id"])
    ended = client.wait(move["id"])
    assert ended["state"] == "cancelled"
    assert ended["error"]["truth"] == "the machine runs on alpha"
    assert isinstance(from_problem(ended["error"]), Cancelled)
    with pytest.raises(Conflict):
        client.cancel(move["id"])


def test_a_move_under_way_is_given_another_rate_and_mode(running: Any, client: Client) -> None:
    make(client)
    move = client.migrate("vm", "beta")
    changed = client.adjust(move["id"], rate_bytes_per_s=0, mode="datacenter")
    assert changed["progress"]["rate_bytes_per_s"] == 0
    assert changed["progress"]["mode"] == "datacenter"
    with pytest.raises(ConfigError, match="nothing is to be changed"):
        client.adjust(move["id"])
    client.cancel(move["id"])
    client.wait(move["id"])
    with pytest.raises(Conflict):
        client.adjust(move["id"], mode="hybrid")


def test_stopping_ends_open_streams_at_once(running: Any, client: Client) -> None:
    make(client)
    move = client.migrate("vm", "beta")
    seen: list[OperationEvent] = []
    caught: list[NovacronError] = []

    def watch() -> None:
        with running.client() as watcher:
            try:
                for event in watcher.events(move["id"]):
                    seen.append(event)
            except NodeUnavailable as gone:
                caught.append(gone)

    thread = threading.Thread(target=watch)
    thread.start()
    running.until(lambda: running.service._shared.streams == 1)
    running.call(running.service.stop())
    thread.join(20)
    assert not thread.is_alive()
    assert seen[0].data == {"phase": "copy"}
    assert "no node listens" in caught[0].message


# Bad input.


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no body"),
        (b"{", "no sound JSON"),
        (b"\xff\xfe", "no sound JSON"),
        (b"NaN", "no sound JSON"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"{}", "is missing"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"settings": ' + b"[" * 50 + b"]" * 50 + b"}", "deeper than"),
        (b'{"name": "a", "driver": "paper", "memory_bytes": "64"}', "no whole number"),
        (b'{"name": "a", "driver": "paper", "memory_bytes": 1.5}', "no whole number"),
        (b'{"name": "a", "driver": "paper", "memory_bytes": true}', "no whole number"),
        (b'{"name": "a", "driver": "paper", "memory_bytes": -1}', "from 1 to"),
        (b'{"name": "a", "driver": "paper", "memory_bytes": 0}', "from 1 to"),
        (b'{"name": "a", "driver": "paper", "memory_bytes": 9223372036854775808}', "64 bits"),
        (b'{"name": "a", "driver": "paper", "memory_bytes": 1, "settings": []}', "settings"),
        (b'{"name": null, "driver": "paper", "memory_bytes": 1}', "no text"),
        (b'{"name": "a", "driver": "wood", "memory_bytes": 1}', "no driver"),
    ],
)
def test_a_bad_body_is_a_problem_that_names_what_is_wrong(
    running: Any, body: bytes, says: str
) -> None:
    status, headers, problem = ask(running, "POST", "/v1/machines", body)
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert says in problem["detail"]
    assert problem["instance"] == "/v1/machines"
    assert problem["hint"]
    assert running.node.known == {}


def test_an_unknown_key_is_refused_and_the_nearest_one_named(running: Any, client: Client) -> None:
    body = b'{"name": "a", "driver": "paper", "memory_byte": 1}'
    _, _, problem = ask(running, "POST", "/v1/machines", body)
    assert "'memory_byte'" in problem["detail"]
    assert problem["hint"] == "did you mean 'memory_bytes'?"
    make(client)
    body = b'{"target": "beta", "dryrun": true}'
    status, _, problem = ask(running, "POST", "/v1/machines/vm/migrate", body)
    assert (status, problem["hint"]) == (400, "did you mean 'dry_run'?")


def test_an_unknown_query_parameter_is_refused_and_the_nearest_one_named(running: Any) -> None:
    status, _, problem = ask(running, "GET", "/v1/operations?machin=vm")
    assert (status, problem["hint"]) == (400, "did you mean 'machine'?")
    status, _, problem = ask(running, "GET", "/v1/node?x=1")
    assert (status, problem["hint"]) == (400, "known: none")
    status, _, problem = ask(running, "GET", "/v1/operations?state=odd")
    assert (status, problem["code"]) == (400, "config")
    assert "odd" in problem["detail"]
    assert ask(running, "DELETE", "/v1/machines/vm?force=perhaps")[0] == 400


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_downtime_ms": 0},
        {"max_downtime_ms": 3_600_001},
        {"rate_bytes_per_s": 0},
        {"rate_bytes_per_s": -5},
        {"mode": 5},
        {"target": 5},
    ],
)
def test_limits_of_a_move_out_of_range_are_refused(
    running: Any, client: Client, parameters: dict[str, Any]
) -> None:
    make(client)
    body = json.dumps({"target": "beta"} | parameters).encode()
    status, _, problem = ask(running, "POST", "/v1/machines/vm/migrate", body)
    assert (status, problem["code"]) == (400, "config")
    assert next(iter(parameters)) in problem["detail"]


def test_a_body_that_is_too_large_is_refused_unread(running: Any) -> None:
    status, _, problem = ask(running, "POST", "/v1/machines", b" " * ((1 << 20) + 1))
    assert (status, problem["code"]) == (413, "too-large")
    with connect(running.service.path, 20) as sock:
        # Without a length the node must count for itself.
        sock.sendall(
            b"POST /v1/machines HTTP/1.1\r\nHost: n\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        try:
            for _ in range(40):
                sock.sendall(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sock.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_of_another_kind_is_refused(running: Any) -> None:
    body = b"name=a"
    status, _, problem = ask(
        running, "POST", "/v1/machines", body, Content_Type="application/x-www-form-urlencoded"
    )
    assert (status, problem["code"]) == (415, "unsupported-media-type")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not-found"),
        ("GET", "/v1/nodes", 404, "not-found"),
        ("GET", "/v1/machines/none", 404, "not-found"),
        ("GET", "/v1/machines/%2e%2e%2fetc", 404, "not-found"),
        ("GET", "/v1/machines/none/console-log", 404, "not-found"),
        ("POST", "/v1/machines/none/start", 404, "not-found"),
        ("DELETE", "/v1/machines/none", 404, "not-found"),
        ("GET", "/v1/operations/none", 404, "not-found"),
        ("GET", "/v1/operations/none/events", 404, "not-found"),
        ("POST", "/v1/operations/none/cancel", 404, "not-found"),
        ("PATCH", "/v1/machines", 405, "method-not-allowed"),
        ("PUT", "/v1/node/stop", 405, "method-not-allowed"),
        ("GET", "/v1/machines/vm/start", 405, "method-not-allowed"),
        ("GET", "/v1/machines/" + "x" * 300, 400, "config"),
        ("GET", "/v1/machines/vm/console-log?tail_bytes=0", 400, "config"),
        ("GET", "/v1/machines/vm/console-log?tail_bytes=99999999", 400, "config"),
    ],
)
def test_what_does_not_exist_is_told_as_a_problem(
    running: Any, method: str, path: str, status: int, code: str
) -> None:
    answered, headers, problem = ask(running, method, path)
    assert (answered, problem["code"], problem["status"]) == (status, code, status)
    assert headers["content-type"] == "application/problem+json"
    assert problem["type"] == TYPE_PREFIX + code
    if status == 405:
        assert headers["allow"]


def test_an_idempotency_key_that_is_too_long_is_refused(running: Any) -> None:
    body = b'{"name": "vm", "driver": "paper", "memory_bytes": 1}'
    status, _, problem = ask(running, "POST", "/v1/machines", body, Idempotency_Key="k" * 201)
    assert (status, problem["code"]) == (400, "config")


def test_a_refusal_by_policy_is_told_with_its_reason(client: Client) -> None:
    with pytest.raises(Refused, match="it is sacred") as refused:
        client.create("sacred", driver="paper", memory_bytes=1)
    assert refused.value.hint == "choose another"
    assert refused.value.truth == "nothing was changed"


def test_bytes_that_are_no_http_are_answered_and_the_node_stays_up(
    running: Any, client: Client
) -> None:
    for garbage in (
        b"\x16\x03\x01\x02\x00" * 40 + b"\r\n\r\n",
        b"GET /v1/node HTTP/1.1\r\nHost: n\r\nX: " + b"y" * (1 << 17) + b"\r\n\r\n",
        b"GET " + b"/" * (1 << 17) + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/machines HTTP/1.1\r\nHost: n\r\nContent-Length: -1\r\n\r\n",
    ):
        with connect(running.service.path, 20) as sock:
            try:
                sock.sendall(garbage)
                answer = sock.recv(1000)
            except (BrokenPipeError, ConnectionResetError):
                continue
            # A header that came in one piece may be taken; what matters is that it is bounded.
            assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 200")), answer
    assert client.node()["node"] == "alpha"


def test_a_fault_of_ours_is_a_problem_and_not_the_end(
    running: Any, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    running.node.fault = ZeroDivisionError("oh")
    status, _, problem = ask(running, "GET", "/v1/machines/vm")
    assert (status, problem["code"]) == (500, "internal")
    assert problem["detail"] == "ZeroDivisionError: oh"
    running.node.fault = OSError(28, "No space left on device")
    assert ask(running, "POST", "/v1/machines/vm/start")[0] == 507
    running.node.fault = None
    assert client.node()["node"] == "alpha"


def test_a_full_disk_refuses_an_operation_before_it_begins(
    running: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(client)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("novacron.durable.write_json", full)
    status, _, problem = ask(running, "POST", "/v1/machines/vm/pause")
    assert status == 507
    assert "No space left" in problem["detail"]
    assert client.machine("vm")["state"] == "running"


# The document and the errors.


def test_an_operation_of_any_kind_is_begun_by_its_name(running: Any, client: Client) -> None:
    make(client)
    began = client.begin("pause", "vm", key="once")
    assert client.begin("pause", "vm", key="once")["id"] == began["id"]
    assert client.wait(began["id"])["state"] == "succeeded"
    assert client.machine("vm")["state"] == "paused"
    status, _, problem = ask(running, "POST", "/v1/operations", b'{"kind": "pause", "on": "vm"}')
    assert (status, problem["code"]) == (400, "config")


def test_the_openapi_document_is_valid_and_names_every_route(running: Any) -> None:
    status, _, document = ask(running, "GET", "/schema/openapi.json")
    assert status == 200
    assert document["openapi"].startswith("3.1")
    validate(document)
    routes = {
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method in methods
        if method in ("get", "post", "delete")
    }
    assert routes == {
        ("GET", "/v1/node"),
        ("POST", "/v1/node/stop"),
        ("GET", "/v1/peers"),
        ("GET", "/v1/plugins"),
        ("GET", "/v1/machines"),
        ("POST", "/v1/machines"),
        ("GET", "/v1/machines/{name}"),
        ("DELETE", "/v1/machines/{name}"),
        ("POST", "/v1/machines/{name}/start"),
        ("POST", "/v1/machines/{name}/stop"),
        ("POST", "/v1/machines/{name}/pause"),
        ("POST", "/v1/machines/{name}/resume"),
        ("POST", "/v1/machines/{name}/migrate"),
        ("GET", "/v1/machines/{name}/console-log"),
        ("GET", "/v1/operations"),
        ("POST", "/v1/operations"),
        ("GET", "/v1/operations/{operation_id}"),
        ("POST", "/v1/operations/{operation_id}/cancel"),
        ("GET", "/v1/operations/{operation_id}/events"),
    }
    for methods in document["paths"].values():
        for operation in methods.values():
            problem = operation["responses"]["400"]["content"]["application/problem+json"]
            assert problem["schema"] == {"$ref": "#/components/schemas/Problem"}


@pytest.mark.parametrize("cls", sorted(STATUS, key=str))
def test_every_error_goes_through_a_problem_document_and_comes_back(
    cls: type[NovacronError],
) -> None:
    error = cls("what", hint="do", truth="is", count=3, where=Path("/x"))
    document = json.loads(json.dumps(to_problem(error, "/v1/node")))
    assert document["status"] == STATUS[cls] == status_of(error)
    back = from_problem(document)
    assert type(back) is cls
    assert (back.message, back.hint, back.truth) == ("what", "do", "is")
    assert back.facts["count"] == 3
    assert back.facts["where"] == "/x"


def test_every_error_of_the_kernel_has_a_status_of_its_own() -> None:
    own = {cls for cls in NovacronError.__subclasses__() if cls.__module__ == "novacron.errors"}
    assert own <= set(STATUS)


def test_an_error_without_a_code_of_its_own_comes_back_as_its_parent() -> None:
    class Particular(MachineError):
        """As plugins define them for themselves."""

    back = from_problem(to_problem(Particular("what"), "/v1/node"))
    assert type(back) is MachineError


def test_an_error_of_an_unknown_code_keeps_its_code() -> None:
    error = from_problem({"code": "from-the-future", "detail": "x", "facts": {"a": 1}})
    assert type(error) is NovacronError
    assert error.facts == {"a": 1, "code": "from-the-future"}
    assert from_problem({}).message


# Sockets.


def test_a_path_too_long_for_a_socket_address_works_all_the_same(
    tmp_path: Path, start_api: Callable[..., Any]
) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    running = start_api(state_dir=deep)
    assert len(os.fsencode(running.service.path)) > PATH_BYTES_MAX
    with running.client() as client:
        assert client.node()["node"] == "alpha"


def test_a_socket_that_a_dead_node_left_is_replaced_and_a_living_one_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "api.sock"
    dead = listen(path)
    dead.close()
    alive = listen(path)
    with pytest.raises(Conflict, match="another node listens"):
        listen(path)
    alive.close()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is no socket"):
        listen(path)
    assert path.read_text() == "precious"


def test_a_place_that_cannot_be_had_says_which_setting_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as refused:
        listen(tmp_path / "file" / "api.sock")
    assert "socket" in refused.value.hint


# The client.


def test_without_a_node_the_client_says_how_to_start_one(tmp_path: Path) -> None:
    with Client(tmp_path / "api.sock") as client, pytest.raises(NodeUnavailable) as gone:
        client.node()
    assert "novacron node start" in gone.value.hint
    assert gone.value.facts["socket"] == str(tmp_path / "api.sock")


def test_the_client_takes_up_a_connection_that_the_node_closed(
    running: Any, client: Client
) -> None:
    assert client.node()["node"] == "alpha"

    async def cut() -> None:
        for connection in list(running.service._server._state.connections):
            connection.transport.abort()

    running.call(cut())
    assert client.node()["node"] == "alpha"


def test_a_name_can_never_reach_another_resource(client: Client) -> None:
    with pytest.raises(NotFound):
        client.machine("a/../../node")
    for name in ("", ".", ".."):
        with pytest.raises(NotFound):
            client.delete(name)


def test_something_else_that_listens_there_is_told_apart(tmp_path: Path) -> None:
    sock = listen(tmp_path / "other.sock")
    sock.setblocking(True)

    def answer() -> None:
        for reply in (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"SSH-2.0-x\r\n"):
            peer, _ = sock.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(reply)

    thread = threading.Thread(target=answer)
    thread.start()
    with Client(tmp_path / "other.sock", timeout_s=20) as client:
        with pytest.raises(NovacronError, match="no JSON"):
            client.node()
        client.close()
        with pytest.raises(NodeUnavailable, match="broke off"):
            client.machines()
    thread.join(20)
    sock.close()


def test_peer_credentials_have_the_layout_that_is_read() -> None:
    assert struct.calcsize("3i") == 12
