"""What can be wrong with etcd, as one error."""

from __future__ import annotations

from novacron import NovacronError


class EtcdError(NovacronError):
    """etcd cannot be reached, refuses us, or holds what is no record of ours.

    No record was changed, unless ``truth`` says that this is in doubt; then read it again.
    """

    code = "etcd"
