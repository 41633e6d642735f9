"""A raft cluster in a simulated world: members with disks, clients, an operator, and trouble."""

from __future__ import annotations

from novacron_consensus_raft._simulation_trouble import Trouble


class RaftWorld(Trouble):
    """All of it."""

    def done(self) -> bool:
        """All is answered, and all members that take part have the same."""
        if any(
            client.operation or client.answered < self.plan.requests
            for client in self.clients.values()
        ):
            return False
        leading = [process for process in self.processes.values() if process.core.role == "leader"]
        if not leading:
            return False
        leader = max(leading, key=lambda process: process.core.term)
        core = leader.core
        if core.configuration.joint or core.commit < core.log.last_index:
            return False
        taking_part = core.configuration.members - self.decayed
        states = {
            (process.applied, process.machine.snapshot()) if process else None
            for process in map(self.processes.get, sorted(taking_part))
        }
        return states == {(leader.applied, leader.machine.snapshot())}
