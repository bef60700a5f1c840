from __future__ import annotations

import socket

import pytest

from prismrec.cluster import network
from prismrec.config import UserError


def test_all_ranks_on_one_machine_talk_over_loopback() -> None:
    name = network.pick_interface()
    assert "127.0.0.1" in network.addresses()[name]
    assert name in {each for _, each in socket.if_nameindex()}


def test_every_listed_address_leads_back_to_its_interface() -> None:
    for name, own in network.addresses().items():
        for address in own:
            assert address in network.addresses()[network.pick_interface(address)]
            assert name in network.addresses()


def test_listed_addresses_can_be_bound() -> None:
    for own in network.addresses().values():
        ipv4 = [address for address in own if ":" not in address]
        for address in ipv4:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
                server.bind((address, 0))


def test_an_address_of_another_machine_is_refused_with_the_own_ones() -> None:
    with pytest.raises(UserError, match=r"has the address 203\.0\.113\.9; .*127\.0\.0\.1"):
        network.pick_interface("203.0.113.9")
