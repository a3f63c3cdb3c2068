"""The kernels: one file each, and the registry that chooses among them."""
