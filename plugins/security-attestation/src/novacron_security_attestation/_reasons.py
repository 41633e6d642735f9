"""Why evidence is not believed: a code for programs, what is wrong, and the next step."""

from __future__ import annotations

from attrs import frozen


@frozen
class Reason:
    """One objection.

    Attributes:
        code: Stable, ``<family>.<what>`` ("snp.signature").
        what: What is wrong, with the values.
        cure: The next step.
    """

    code: str
    what: str
    cure: str


class Disbelief(Exception):
    """Evidence that proves nothing; why is in ``reason``. Raised inside the package only."""

    def __init__(self, code: str, what: str, cure: str) -> None:
        super().__init__(what)
        self.reason = Reason(code, what, cure)


AGAIN = "ask the host for fresh evidence and carry it over unchanged"
