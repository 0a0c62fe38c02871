"""Implementations of the StreamLog port."""
