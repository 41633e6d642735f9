"""A replicated log for members that do not trust each other: Byzantine agreement (``bft``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click
from novacron import OwnershipRegister, Service, hookimpl
from novacron_agreement.engines import LogEngine

from novacron_consensus_bft._commands import consensus
from novacron_consensus_bft._control import ControlService
from novacron_consensus_bft._core import BftCore, CoreSettings, Member, Proof, verify_proof
from novacron_consensus_bft._engine import ENGINE
from novacron_consensus_bft._keys import as_text, make_key
from novacron_consensus_bft._node import BftError, BftNode
from novacron_consensus_bft._provider import BftRegister
from novacron_consensus_bft._records import RecordsError
from novacron_consensus_bft._signing import (
    Ed25519Signer,
    MlDsa65Signer,
    Schemes,
    Signer,
    Verifier,
)
from novacron_consensus_bft._toml import BftSection

NOVACRON_API = 1

__all__ = [
    "NOVACRON_API",
    "BftCore",
    "BftError",
    "BftNode",
    "BftRegister",
    "BftSection",
    "CoreSettings",
    "Ed25519Signer",
    "Member",
    "MlDsa65Signer",
    "Proof",
    "RecordsError",
    "Schemes",
    "Signer",
    "Verifier",
    "as_text",
    "make_key",
    "verify_proof",
]


@hookimpl
def novacron_register_consensus() -> Sequence[type[OwnershipRegister]]:
    return [BftRegister]


@hookimpl
def novacron_register_service() -> Sequence[type[Service]]:
    return [ControlService]


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    return [consensus]


@hookimpl(optionalhook=True)
def novacron_register_simulations() -> Mapping[str, str]:
    return {"bft": "novacron_consensus_bft._simulation:BFT"}


@hookimpl(optionalhook=True)
def novacron_register_log_engines() -> Sequence[LogEngine]:
    return [ENGINE]
