"""Is a history of concurrent operations what one machine, doing one thing at a time, could show?

A history is linearizable if each operation can be given a moment between its call and its return,
so that done in the order of those moments on one machine, all would have answered as they did. An
operation without a return (a client that timed out or died) may have any moment after its call, or
never have happened.

    problem = check(history, KeyValueModel())
    assert problem is None, str(problem)

The search is that of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993): try all
operations that may come first, one after the other, and go on with the rest; with Lowe's memory
("Testing for Linearizability", 2017): a set of operations done with the state that it led to is
tried once. Horn and Kroening ("Faster linearizability checking via P-compositionality", 2015) saw
what makes it fast: parts that do not touch each other, such as keys, can be judged one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final, Protocol

from attrs import field, frozen


class _Unknown:
    """The answer of an operation that never returned."""

    def __repr__(self) -> str:
        return "no answer"


UNKNOWN: Final = _Unknown()


@frozen
class Operation:
    """One operation of a history.

    Attributes:
        client: Who asked; for people who read about a problem.
        asked: What, as the model understands it.
        called_ms: When, on the one clock of all clients of the history.
        returned_ms: When it was answered; None if it was not, or by an error that leaves open
            whether it was done. One that certainly was not done is no part of a history.
        answer: What was answered.
    """

    client: str
    asked: Any
    called_ms: float
    returned_ms: float | None = None
    answer: Any = field(default=UNKNOWN)

    def __str__(self) -> str:
        until = "..." if self.returned_ms is None else f"{self.returned_ms:g}"
        return f"{self.called_ms:g}-{until} {self.client}: {self.asked} -> {self.answer!r}"


class Model(Protocol):
    """What the one machine would do. States are values: equal if nobody can tell them apart."""

    def part(self, asked: Any) -> Hashable:
        """To which part of the machine an operation belongs; parts do not touch each other."""
        ...

    def initial(self, part: Hashable) -> Hashable:
        """A part's state at the beginning."""
        ...

    def step(self, state: Any, asked: Any, answer: Any) -> tuple[bool, Hashable]:
        """Whether the machine could answer so in that state, and its state then; ``answer`` is
        `UNKNOWN` if there was none: then it could."""
        ...

    def reads(self, asked: Any) -> bool:
        """Whether the operation never changes any state."""
        ...


class KeyValueModel:
    """A map. Operations are tuples:

    - ``("get", key)`` answers the value, or None;
    - ``("put", key, value)`` and ``("delete", key)``, whose answers are not looked at;
    - ``("cas", key, expected, value)`` answers whether ``expected`` was there, and so has
      been replaced; None stands for no value in both places.

    Args:
        values: What is there at the beginning.
    """

    def __init__(self, values: dict[Hashable, Hashable] | None = None) -> None:
        self._values = dict(values or {})

    def part(self, asked: tuple[Any, ...]) -> Hashable:
        part: Hashable = asked[1]
        return part

    def initial(self, part: Hashable) -> Hashable:
        return self._values.get(part)

    def step(self, state: Hashable, asked: tuple[Any, ...], answer: Any) -> tuple[bool, Hashable]:
        match asked:
            case ("get", _):
                return answer is UNKNOWN or answer == state, state
            case ("put", _, value):
                return True, value
            case ("delete", _):
                return True, None
            case ("cas", _, expected, value):
                done = state == expected
                return answer is UNKNOWN or answer == done, value if done else state
            case _:
                raise ValueError(f"{asked!r:.100} is no operation of a map: get, put, delete, cas")

    def reads(self, asked: tuple[Any, ...]) -> bool:
        return bool(asked[0] == "get")


@frozen(kw_only=True)
class Violation:
    """A part of a history that no order explains.

    Attributes:
        part: Of the machine, such as a key.
        explained: The longest order that was found, from the beginning.
        state: The part's state after it.
        stuck: The operations of which one had to come next, and none could.
        operations: How many the part has.
    """

    part: Hashable
    explained: Sequence[Operation]
    state: Hashable
    stuck: Sequence[Operation]
    operations: int

    def __str__(self) -> str:
        lines = [
            f"not linearizable: {self.part!r}: of {self.operations} operations, at most "
            f"{len(self.explained)} can be put in an order"
        ]
        hidden = len(self.explained) - 12
        if hidden > 0:
            lines.append(f"  ... {hidden} before")
        lines += [f"  {operation}" for operation in self.explained[-12:]]
        lines.append(f"then the state is {self.state!r}, and none of these could come next:")
        lines += [f"  {operation}" for operation in self.stuck[:12]]
        return "\n".join(lines)


class TooHard(RuntimeError):
    """The search was given up: whether the history is linearizable is not known.

    Many operations without an answer on one key make it hard; more keys make it easy.
    """


def check(
    history: Iterable[Operation], model: Model, *, steps: int = 10_000_000
) -> Violation | None:
    """The first part of a history that is not linearizable; None if all are.

    Args:
        steps: How many may be tried in each part before it is given up.
    Raises:
        TooHard: After so many steps.
        ValueError: An operation returns before it is called.
    """
    parts: dict[Hashable, list[Operation]] = {}
    for operation in history:
        if operation.returned_ms is not None and operation.returned_ms < operation.called_ms:
            raise ValueError(f"it returns before it is called: {operation}")
        parts.setdefault(model.part(operation.asked), []).append(operation)
    for part, operations in parts.items():
        problem = _Search(part, operations, model, steps).run()
        if problem is not None:
            return problem
    return None


@frozen
class _Choice:
    """One step of the search: what was done by then, and what else could be tried there."""

    base: int
    done: int
    open_done: int
    state: Hashable
    index: int  # of the operation that led here, -1 for the beginning
    rest: list[tuple[int, Hashable]]


class _Search:
    """One part's search. Answered operations stand in the order of their calls; those done are all
    before ``base`` and those whose bit is set in ``done``, which begins at ``base``. Those without
    an answer have bits of their own."""

    def __init__(
        self, part: Hashable, operations: list[Operation], model: Model, steps: int
    ) -> None:
        self._part, self._model, self._steps = part, model, steps
        ordered = sorted(operations, key=lambda one: one.called_ms)
        answered = [one for one in ordered if one.returned_ms is not None]
        # A read without an answer says nothing.
        unanswered = [
            one for one in ordered if one.returned_ms is None and not model.reads(one.asked)
        ]
        self._count = len(answered)
        self._all = answered + unanswered
        self._calls = [one.called_ms for one in self._all]
        self._returns = [
            math.inf if one.returned_ms is None else one.returned_ms for one in answered
        ]

    def run(self) -> Violation | None:
        state = self._model.initial(self._part)
        path = [_Choice(0, 0, 0, state, -1, self._options(0, 0, 0, state))]
        seen: set[tuple[int, int, int, Hashable]] = set()
        longest = path[:1]
        steps = 0
        while path[-1].base < self._count:
            here = path[-1]
            if not here.rest:
                if len(path) > len(longest):
                    longest = path.copy()
                if len(path) == 1:
                    return self._violation(longest)
                path.pop()
                continue
            steps += 1
            if steps > self._steps:
                raise TooHard(
                    f"{self._part!r}: no answer after {self._steps} steps over {len(self._all)} "
                    "operations; spread the history over more keys, or allow more steps"
                )
            index, state = here.rest.pop()
            base, done, open_done = here.base, here.done, here.open_done
            if index >= self._count:
                open_done |= 1 << (index - self._count)
            else:
                done |= 1 << (index - base)
                while done & 1:
                    done >>= 1
                    base += 1
            key = (base, done, open_done, state)
            if key in seen:
                continue
            seen.add(key)
            rest = self._options(base, done, open_done, state)
            path.append(_Choice(base, done, open_done, state, index, rest))
        return None

    def _options(
        self, base: int, done: int, open_done: int, state: Hashable
    ) -> list[tuple[int, Hashable]]:
        """What may come next and agrees with the state; the most promising last."""
        step, operations, calls = self._model.step, self._all, self._calls
        options: list[tuple[int, Hashable]] = []
        bound = math.inf
        for index in self._next(base, done):
            operation = operations[index]
            bound = min(bound, self._returns[index])
            good, after = step(state, operation.asked, operation.answer)
            if not good:
                continue
            if self._model.reads(operation.asked):
                return [(index, after)]  # done at once it disturbs nobody, and later may not fit
            options.append((index, after))
        asked_already: list[Any] = []
        for index in range(self._count, len(operations)):
            if calls[index] > bound:
                break
            operation = operations[index]
            # Of several that ask the same, it does not matter which one was done first.
            if open_done >> (index - self._count) & 1 or operation.asked in asked_already:
                continue
            asked_already.append(operation.asked)
            good, after = step(state, operation.asked, UNKNOWN)
            if good and after != state:
                options.append((index, after))
        options.reverse()
        return options

    def _next(self, base: int, done: int) -> Iterable[int]:
        """The answered operations that are not done, and before whose call none of them ended."""
        bound = math.inf
        for index in range(base, self._count):
            if self._calls[index] > bound:
                return
            if not done >> (index - base) & 1:
                bound = min(bound, self._returns[index])
                yield index

    def _violation(self, longest: list[_Choice]) -> Violation:
        last = longest[-1]
        return Violation(
            part=self._part,
            explained=[self._all[choice.index] for choice in longest[1:]],
            state=last.state,
            stuck=[self._all[index] for index in self._next(last.base, last.done)],
            operations=len(self._all),
        )


class History:
    """Collects a history while it happens.

    token = history.call("client 1", ("put", "x", 1))
    history.answer(token, None)      # or .failed(token): it was certainly not done
    history.operations()             # those without an answer are there without one

    Args:
        now_ms: The one clock of all clients.
    """

    def __init__(self, now_ms: Callable[[], float]) -> None:
        self._now = now_ms
        self._count = 0
        self._open: dict[int, Operation] = {}
        self._ended: list[Operation] = []

    def call(self, client: str, asked: Any) -> int:
        """A client asks; the answer's token."""
        self._count += 1
        self._open[self._count] = Operation(client, asked, self._now())
        return self._count

    def answer(self, token: int, answer: Any) -> None:
        """It was answered. A second answer to one token is ignored."""
        one = self._open.pop(token, None)
        if one is not None:
            self._ended.append(Operation(one.client, one.asked, one.called_ms, self._now(), answer))

    def failed(self, token: int) -> None:
        """It was certainly not done, and never will be."""
        self._open.pop(token, None)

    def operations(self) -> list[Operation]:
        return [*self._ended, *self._open.values()]
