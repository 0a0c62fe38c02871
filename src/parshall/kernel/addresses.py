"""Client addresses, as far as they say who is calling."""

import ipaddress


def network_of(address: str) -> str:
    """The address, or the /64 of an IPv6 one: whoever has one such address has 2⁶⁴ of them."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed.packed[:8] + bytes(8), 64)))
