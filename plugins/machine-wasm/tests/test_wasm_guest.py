"""The guests, in this process: no runner, no socket."""

from __future__ import annotations

import contextlib
import struct

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron import ConfigError, MachineSpec
from novacron_machine_wasm._guest import Guest, GuestFailed
from novacron_machine_wasm._module import BadModule, inspect_module
from novacron_machine_wasm._settings import Settings, check_spec
from novacron_machine_wasm._source import module_bytes

KV = module_bytes("kv")
COUNTER = module_bytes("counter")


def no_input(count: int) -> bytes:
    return b""


def guest_of(wasm: bytes, memory_bytes: int = 1 << 20, timeout_ms: int = 2000) -> Guest:
    return Guest(wasm, memory_bytes, timeout_ms, no_input)


def wat(body: str) -> bytes:
    memory = '(memory (export "memory") 1)'
    return bytes(wasmtime.wat2wasm(f"(module {memory} {body})"))


STEP = '(func (export "step"))'


def ask(guest: Guest, op: int, key: bytes, value: bytes = b"") -> tuple[int, bytes]:
    answer = guest.handle(struct.pack("<BH", op, len(key)) + key + value)
    return answer[0], answer[1:]


def test_the_counter_prints_its_ticks_one_by_one():
    guest = guest_of(COUNTER)
    for _ in range(1001):
        guest.step()
    assert guest.printed() == b"".join(b"tick %d\n" % n for n in range(1, 1002))
    assert guest.globals() == {"ticks": 1001}


def test_a_counter_that_takes_over_memory_and_globals_goes_on_where_the_other_was():
    first, second = guest_of(COUNTER), guest_of(COUNTER)
    for _ in range(9):
        first.step()
    first.printed()
    second.clear()
    second.memory[:] = first.memory
    second.set_globals(first.globals())
    assert second.digest() == first.digest()
    second.step()
    assert second.printed() == b"tick 10\n"


keys = st.binary(min_size=1, max_size=40)
values = st.one_of(st.binary(max_size=60), st.binary(min_size=500, max_size=3000))
operations = st.one_of(
    st.tuples(st.just(1), keys, values),
    st.tuples(st.just(2), keys, st.just(b"")),
    st.tuples(st.just(4), keys, st.just(b"")),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(operations, max_size=60))
def test_the_kv_guest_answers_as_a_dictionary_would(steps):
    guest = guest_of(KV)
    guest.begin(0, b"")
    model: dict[bytes, bytes] = {}
    for op, key, value in steps:
        if op == 1:
            assert ask(guest, 1, key, value) == (0, b"")
            model[key] = value
        elif op == 2:
            assert ask(guest, 2, key) == ((0, model[key]) if key in model else (1, b""))
        else:
            assert ask(guest, 4, key) == ((0, b"") if key in model else (1, b""))
            model.pop(key, None)
        assert ask(guest, 3, b"x") == (0, len(model).to_bytes(8, "little"))
    for key, value in model.items():
        assert ask(guest, 2, key) == (0, value)


def test_a_full_table_says_so_keeps_what_it_holds_and_takes_more_after_a_delete():
    guest = guest_of(KV, 1 << 18)
    guest.begin(0, b"")
    count = 0
    while (status := ask(guest, 1, b"%d" % count, b"v" * 1000)[0]) == 0:
        count += 1
    assert status == 2
    assert count > 30
    assert ask(guest, 3, b"x") == (0, count.to_bytes(8, "little"))
    assert all(ask(guest, 2, b"%d" % n) == (0, b"v" * 1000) for n in range(count))
    assert ask(guest, 4, b"0") == (0, b"")
    assert ask(guest, 1, b"again", b"w" * 1000) == (0, b"")


@pytest.mark.slow
def test_a_hundred_thousand_small_entries_fit_64_mib():
    guest = guest_of(KV, 64 << 20)
    guest.begin(0, b"")
    for number in range(100_000):
        assert ask(guest, 1, b"key-%d" % number, b"value-%d" % number) == (0, b"")
    assert ask(guest, 3, b"x") == (0, (100_000).to_bytes(8, "little"))
    assert all(ask(guest, 2, b"key-%d" % n) == (0, b"value-%d" % n) for n in range(0, 100_000, 997))


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=80))
def test_any_request_gets_an_answer_and_never_a_trap(request_bytes):
    guest = guest_of(KV)
    guest.begin(0, b"")
    assert guest.handle(request_bytes)[0] in (0, 1, 2, 3)


def test_the_largest_entry_fits_and_a_larger_one_is_a_bad_request():
    guest = guest_of(KV)
    guest.begin(0, b"")
    largest = 65536 - 16 - 1
    assert ask(guest, 1, b"k", b"v" * largest) == (0, b"")
    assert ask(guest, 2, b"k") == (0, b"v" * largest)
    assert ask(guest, 1, b"k", b"v" * (largest + 1)) == (3, b"")
    assert ask(guest, 2, b"k") == (0, b"v" * largest)


def test_a_filled_kv_guest_holds_entries_and_the_same_ones_for_the_same_name():
    first, second = guest_of(KV), guest_of(KV)
    first.begin(400_000, b"m1")
    second.begin(400_000, b"m1")
    assert first.digest() == second.digest()
    assert int.from_bytes(ask(first, 3, b"x")[1], "little") == 400_000 // 4096


def test_a_call_that_does_not_end_is_interrupted():
    guest = guest_of(wat('(func (export "step") (loop (br 0)))'), timeout_ms=100)
    with pytest.raises(GuestFailed, match="did not end within 100 ms"):
        guest.step()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ('(func (export "step") unreachable)', "trapped"),
        ('(func (export "step") (drop (i32.load (i32.const -1))))', "trapped"),
        ('(func $f (export "step") (call $f))', "trapped"),
    ],
)
def test_a_guest_that_traps_has_failed(body, why):
    with pytest.raises(GuestFailed, match=why):
        guest_of(wat(body)).step()


def test_a_guest_that_prints_from_outside_its_memory_has_failed():
    wasm = bytes(
        wasmtime.wat2wasm(
            '(module (import "novacron" "console_write" (func $w (param i32 i32)))'
            '(memory (export "memory") 1)'
            '(func (export "step") (call $w (i32.const -4) (i32.const 8))))'
        )
    )
    with pytest.raises(GuestFailed, match="outside its memory"):
        guest_of(wasm).step()


def test_a_guest_cannot_grow_its_memory_beyond_what_the_machine_has():
    body = '(global $g (export "g") (mut i32) (i32.const 0))'
    grow = '(func (export "step") (global.set $g (memory.grow (i32.const 1))))'
    guest = guest_of(wat(body + grow))
    guest.step()
    assert guest.globals() == {"g": -1}
    assert len(guest.memory) == 1 << 20


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (STEP + "(func $f) (start $f)", "start function"),
        (STEP + "(global (mut i32) (i32.const 0))", "not exported"),
        (STEP + '(global (export "x") (mut f64) (f64.const 0))', "neither i32 nor i64"),
        (STEP + "(table 1 funcref)", "table"),
        ("", "no function named `step`"),
        ('(func (export "step") (param i32))', "other values"),
        (STEP + '(func (export "handle") (param i32) (result i32) (i32.const 0))', "mailbox"),
        (
            STEP + '(func (export "handle") (param i32) (result i32) (i32.const 0))'
            '(global (export "mailbox") i32 (i32.const -16))'
            '(global (export "mailbox_bytes") i32 (i32.const 4096))',
            "mailbox",
        ),
    ],
)
def test_a_module_whose_state_cannot_move_or_that_is_no_guest_is_refused(body, why):
    with pytest.raises(BadModule, match=why):
        guest_of(wat(body))


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ('(module (memory (export "memory") 1 2) (func (export "step")))', "memory|grow"),
        ('(module (memory (export "memory") 17) (func (export "step")))', "memory"),
        ('(module (func (export "step")))', "no memory"),
        ('(module (import "env" "f" (func)) (memory (export "memory") 1))', "env.f"),
    ],
)
def test_a_module_that_does_not_fit_the_machine_is_refused(module, why):
    with pytest.raises(BadModule, match=why):
        guest_of(bytes(wasmtime.wat2wasm(module)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_module_is_refused_or_taken_and_nothing_else(data):
    wasm = bytearray(KV)
    for _ in range(data.draw(st.integers(1, 4))):
        wasm[data.draw(st.integers(0, len(wasm) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(wasm)))
    for some in (bytes(wasm), bytes(wasm[:cut])):
        with contextlib.suppress(BadModule):
            inspect_module(some)


def machine(**changes) -> MachineSpec:
    known = {"name": "m1", "driver": "wasm", "memory_bytes": 1 << 20, "settings": {}}
    return MachineSpec(**{**known, **changes})


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        (machine(settings={"tik_ms": 1}), "tik_ms", "tick_ms"),
        (machine(settings={"tick_ms": "5"}), "tick_ms", ""),
        (machine(settings={"tick_ms": True}), "tick_ms", ""),
        (machine(settings={"tick_ms": 0}), "tick_ms", ""),
        (machine(settings={"guest": "kw"}), "kw", "'kv'"),
        (machine(settings={"guest": "relative.wat"}), "relative.wat", "absolute path"),
        (machine(settings={"fill_bytes": 2 << 20}), "fill_bytes", ""),
        (machine(memory_bytes=1000), "1000", "65536"),
        (machine(memory_bytes=1 << 33), "memory_bytes", ""),
        (machine(memory_bytes=65536, settings={"guest": "kv"}), "kv", "262144"),
    ],
)
def test_a_wrong_setting_is_named_with_the_cure(spec, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        check_spec(spec, Settings())
    assert hint in caught.value.hint


def test_a_machine_larger_than_the_node_allows_is_refused():
    with pytest.raises(ConfigError, match="more than this node allows"):
        check_spec(machine(), Settings(memory_bytes_max=65536))
