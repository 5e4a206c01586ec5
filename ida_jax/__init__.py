"""Inter-class Discrepancy Alignment for face recognition, in JAX."""
