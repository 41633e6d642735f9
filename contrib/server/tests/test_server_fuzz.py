"""Whatever is sent, the answer is a problem or an operation, and never a fault of ours."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from novacron_server._sockets import connect

BOUNDED = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
KEYS = [
    "name",
    "driver",
    "memory_bytes",
    "settings",
    "start",
    "target",
    "max_downtime_ms",
    "rate_bytes_per_s",
    "mode",
    "dry_run",
]
VALUES: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["vm", "paper", "beta", "auto", "sacred"]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below),
    max_leaves=8,
)
BODIES = st.binary(max_size=200) | st.dictionaries(
    st.sampled_from(KEYS) | st.text(max_size=8), VALUES, max_size=6
).map(lambda value: json.dumps(value).encode())
SEGMENTS = st.sampled_from(["vm", "none", "start", "migrate", "events", ""]) | st.text(max_size=12)


def send(running: Any, method: str, path: str, body: bytes | None) -> None:
    connection = http.client.HTTPConnection("node", timeout=20)
    connection.sock = connect(running.service.path, 20)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, body=body, headers=headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    assert response.status < 500, content
    if response.status >= 400:
        assert response.getheader("Content-Type") == "application/problem+json"
        problem = json.loads(content)
        assert problem["status"] == response.status
        assert problem["code"]
        assert problem["detail"]


@pytest.fixture
def fuzzed(running: Any) -> Any:
    with running.client() as client:
        client.wait(client.create("vm", driver="paper", memory_bytes=1)["id"])
    running.let(100_000)
    return running


@BOUNDED
@given(body=BODIES, path=st.sampled_from(["/v1/machines", "/v1/machines/vm/migrate"]))
def test_no_body_makes_a_fault(fuzzed: Any, body: bytes, path: str) -> None:
    send(fuzzed, "POST", path, body)


@BOUNDED
@given(
    method=st.sampled_from(["GET", "POST", "DELETE", "PUT", "OPTIONS"]),
    base=st.sampled_from(["/v1/machines", "/v1/operations", "/v1", ""]),
    segments=st.lists(SEGMENTS, max_size=3),
    query=st.text(max_size=15),
)
def test_no_path_or_query_makes_a_fault(
    fuzzed: Any, method: str, base: str, segments: list[str], query: str
) -> None:
    path = base + "".join("/" + quote(segment, safe="") for segment in segments)
    send(fuzzed, method, f"{path or '/'}?{quote(query, safe='=&')}", None)
