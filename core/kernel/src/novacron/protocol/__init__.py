"""Protocols without I/O: events and the time go in, effects come out in the order to do them in.

Nothing here opens a socket, reads a clock or draws a random number; the drivers
(`novacron.session`, `novacron.link`) and the simulator run the same classes.
"""
