"""Other packages' kernels behind our contract, what each can serve, and the table that says which
one a measurement found fastest on this device.
"""
