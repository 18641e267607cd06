"""Which IP addresses belong to the public internet. All others may be this machine or its network, and are not for clients."""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""How a network without IPv4 writes IPv4 addresses (RFC 6052): as public as what it holds."""

_REFUSED = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24"),
            *("192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
            "168.63.129.16/32",  # Azure's own services, at a public address
            # Of IPv6 all but 2000::/3, and of that what holds an IPv4 address or is for documents and tests.
            *("::/3", "4000::/2", "8000::/1", "2001::/23", "2001:db8::/32", "2002::/16", "3ffe::/16", "3fff::/20"),
        ),
    )
)
"""IANA's special-purpose registries, with 6to4 (2002::/16) and Teredo (2001::/32), which would carry packets to any IPv4 address."""


def is_public(address: Address) -> bool:
    """Whether `address` is one host of the public internet. What Python says of it must agree."""
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    if any(address in network for network in _REFUSED if network.version == address.version):
        return False
    return address.is_global and not address.is_multicast
