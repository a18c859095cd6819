"""Protocol cards under the name that evaluations know them by; training asks by them too (`negpo.data.protocols`)."""

from negpo.data.protocols import PROTOCOLS, Protocol, find_protocol

__all__ = ["PROTOCOLS", "Protocol", "find_protocol"]
