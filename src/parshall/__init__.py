"""Parshall: metered AI streams (login, chat, Server-Sent Events and prepaid credits in one system)."""

__version__ = "0.1.0"
