"""The errors that are raised here are the caller's, since this package knows nobody of ours."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

Make = Callable[..., Exception]


@frozen
class Errors:
    """How to make an error: called with a message, ``hint`` (the next step) and further facts.

    Attributes:
        broken: For what the network did.
        wrong: For what the user wrote.
    """

    broken: Make
    wrong: Make
