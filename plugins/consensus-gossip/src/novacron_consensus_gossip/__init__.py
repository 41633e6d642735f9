"""Membership and health of thousands of nodes, by gossip."""

NOVACRON_API = 1
