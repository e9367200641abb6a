"""The network that processes of several hosts reach each other by."""

import fcntl
import os
import socket
import struct

__all__ = ["name_interface"]

GET_ADDRESS = 0x8915  # SIOCGIFADDR of Linux


def name_interface() -> None:
    """Have gloo use the interface by which the first host is reached, unless one is named already.

    By itself it takes the address that the host's own name stands for, which is often that of the host alone:
    127.0.0.1.
    """
    first = os.environ.get("MASTER_ADDR")
    if not first or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((first, 9))  # sends nothing
            address = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                if not address.startswith("127.") and _address(probe, name) == address:
                    os.environ["GLOO_SOCKET_IFNAME"] = name
    except OSError:
        return  # no such network: the error of who connects says more


def _address(probe: socket.socket, name: str) -> str | None:
    """The address of an interface, if it has one."""
    try:
        found = fcntl.ioctl(probe.fileno(), GET_ADDRESS, struct.pack("256s", name.encode()[:15]))
    except OSError:
        return None
    return socket.inet_ntoa(found[20:24])
