"""Servers that answer requests with songs."""
