"""The networks: DiT / SiT, the spectral VAE, ChinMu."""
