"""What a kernel costs and whether it is right: compiled with no GPU (aot), read as machine code
(sass), interpreted (strict, traffic).
"""
