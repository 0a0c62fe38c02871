"""Implementations of the Provider port."""
