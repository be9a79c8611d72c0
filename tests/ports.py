"""Ports for servers that tests start in processes of their own."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

# Below the ports that systems give to outgoing connections, of which a browser opens many: one of those could take a
# port between the moment it was found free and the moment a server listens on it.
PORTS = range(10_000, 32_000)


def free_port() -> int:
    """Return a port on which nothing listens, and which no outgoing connection is given."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("none of 100 ports is free")
