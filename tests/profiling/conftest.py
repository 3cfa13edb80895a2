"""Kernels are interpreted, and every launch is watched (tests/helpers/kernel_fixtures.py)."""

from kernel_fixtures import device, strict_launches

__all__ = ["device", "strict_launches"]
