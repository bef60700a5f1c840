"""Which network interface the ranks talk over.

Gloo takes the address that the host's own name resolves to, which on many hosts is not the one the
other hosts can reach. `GLOO_SOCKET_IFNAME`, set to what `pick_interface` returns, says it plainly.
"""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil

from prismrec.config import UserError


def pick_interface(address: str | None = None) -> str:
    """Name of this machine's interface that carries `address`, for `GLOO_SOCKET_IFNAME`.

    Args:
        address: the IP address under which the other machines know this one; None when all ranks
            run on this machine, which then talk over the loopback interface.

    Raises:
        UserError: no interface of this machine has that address.
    """
    interfaces = addresses()
    if address is None:
        wanted = [name for name, own in interfaces.items() if any(map(is_loopback, own))]
    else:
        wanted = [name for name, own in interfaces.items() if address in own]
    if not wanted:
        listed = ", ".join(f"{name} ({' '.join(own)})" for name, own in interfaces.items())
        raise UserError(
            f"no network interface of this machine has the address {address or '127.0.0.1'}; "
            f"give the address by which the other machines reach it, one of: {listed or 'none'}"
        )
    return wanted[0]


def addresses() -> dict[str, tuple[str, ...]]:
    """The IP addresses of every interface that is up, IPv4 before IPv6, by interface name."""
    states = psutil.net_if_stats()
    found: dict[str, tuple[str, ...]] = {}
    for name, entries in psutil.net_if_addrs().items():
        own = [
            entry.address.partition("%")[0]  # an IPv6 scope repeats the interface's name
            for family in (socket.AF_INET, socket.AF_INET6)
            for entry in entries
            if entry.family == family
        ]
        if own and name in states and states[name].isup:
            found[name] = tuple(own)
    return found


def talk_over(address: str) -> str:
    """Have gloo and NCCL of this process talk over the interface that carries an address.

    What the environment says already stands, such as `prismrec cluster join --interface`.

    Args:
        address: the IP address by which the other machines know this one.

    Returns:
        The interface's name.
    """
    chosen = os.environ.get("GLOO_SOCKET_IFNAME") or pick_interface(address)
    os.environ["GLOO_SOCKET_IFNAME"] = chosen
    os.environ.setdefault("NCCL_SOCKET_IFNAME", chosen)
    return chosen


def is_loopback(address: str) -> bool:
    """Whether an IP address never leaves its machine."""
    return ipaddress.ip_address(address).is_loopback


def check_free(host: str, port: int, options: tuple[str, str]) -> None:
    """Refuse an address that cannot be listened at.

    Args:
        host: an IP address of this machine.
        port: the port.
        options: what the user calls the two.

    Raises:
        UserError: it is no IP address or port, not this machine's, or taken.
    """
    family = _family(host, options[0])
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"{options[1]} {port}: cannot be listened at on {host} ({error}); choose another one"
            ) from None


def free_port(host: str) -> int:
    """A port of an IP address of this machine that nobody listens at now."""
    with socket.socket(_family(host, "--host")) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _family(host: str, option: str) -> socket.AddressFamily:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        raise UserError(f"{option} {host}: give an IP address such as 127.0.0.1") from None
    return socket.AF_INET6 if version == 6 else socket.AF_INET
