"""Noise paths, sampler tables and training losses.
Import from the modules: paths, samplers, loss.
"""
