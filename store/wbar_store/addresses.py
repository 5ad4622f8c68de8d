"""Which addresses webhooks may be sent to: those of the public network, and those that the operator allows.

An address that carries another one inside (IPv4 in IPv6, in its three common forms) is what it carries.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NAT64 = ip_network("64:ff9b::/96")
# Public by their number, and services inside the machines of a cloud: Azure's, and (in a block of the IETF's) Oracle's.
_INSIDE_CLOUDS: tuple[Network, ...] = (ip_network("168.63.129.16/32"), ip_network("192.0.0.0/24"))


class Reach:
    """The addresses that may be reached. allowed: the operator's networks beside the public one."""

    def __init__(self, allowed: Sequence[Network]) -> None:
        self._allowed = tuple(allowed)

    def allows(self, address: str) -> bool:
        """Return whether the operator has named this address: then it may also be reached without TLS."""
        return _within(_carried(ip_address(address)), self._allowed)

    def refusal(self, address: str) -> str | None:
        """Return why an address may not be reached, in words that do not name it; None if it may.

        Whoever reads them may not be meant to know what a name inside stands for.
        """
        real = _carried(ip_address(address))
        if _within(real, self._allowed) or (_is_public(real) and not _within(real, _INSIDE_CLOUDS)):
            return None
        return "this is not in the public network, and WBAR_WEBHOOKS_ALLOW does not name it"

    @property
    def is_wider(self) -> bool:
        """Whether the operator allows more than the public network."""
        return bool(self._allowed)


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)  # an address of the other version is in none


def _is_public(address: Address) -> bool:
    special = address.is_multicast or address.is_reserved or address.is_unspecified
    if isinstance(address, IPv6Address):
        special = special or address.is_site_local
    return address.is_global and not special


def _carried(address: Address) -> Address:
    """Return the IPv4 address that traffic to this one goes to; the address itself if it carries none."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
