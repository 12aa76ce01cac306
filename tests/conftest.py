"""For all tests: no network. An audit hook refuses connections and look-ups beyond this machine."""

import os
import sys
from typing import Any

LOCAL = {"localhost", "::1", "", None}


os.environ["HF_HUB_OFFLINE"] = "1"  # a hub says so at once instead of trying


def refuse_network(event: str, args: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        address = args[1]
        host = address[0] if isinstance(address, tuple) else None  # others are Unix sockets
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    if isinstance(host, bytes):
        host = host.decode()
    if host not in LOCAL and not host.startswith("127."):
        raise RuntimeError(f"tests must not touch the network: {event} {host}")


sys.addaudithook(refuse_network)
