"""What a kernel costs: compiled without a GPU (aot), read from its machine code (sass), or traced on a device."""
