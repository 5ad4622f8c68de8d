"""Where webhooks may be sent: the public network, and what the operator names."""

from ipaddress import ip_network

import pytest

from wbar_store.addresses import Reach

INSIDE = [
    "127.0.0.1", "127.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200",
    "0.0.0.0", "255.255.255.255", "224.0.0.1", "239.1.1.1", "240.0.0.1", "192.0.2.1", "198.18.0.1", "192.0.0.192",
    "168.63.129.16", "::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "ff0e::1",
    "2001:db8::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:a00:1", "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "::127.0.0.1", "100::1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1", "2002:101:101::1"]


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_inside_is_refused(address: str) -> None:
    reach = Reach([])
    assert "not in the public network" in (reach.refusal(address) or "")
    assert not reach.allows(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_reached_with_tls(address: str) -> None:
    reach = Reach([])
    assert reach.refusal(address) is None
    assert not reach.allows(address), "without TLS it is not"


def test_what_the_operator_names_is_reached() -> None:
    reach = Reach([ip_network("10.1.0.0/16"), ip_network("fd00::/8")])
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1"):
        assert reach.refusal(address) is None
        assert reach.allows(address)
    for address in ("10.2.0.1", "127.0.0.1", "fe80::1"):
        assert reach.refusal(address) is not None
        assert not reach.allows(address)
