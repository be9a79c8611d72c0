"""Networks: loading, packed batches, attention, generation, kernels and files."""
