"""Layers: einsum projections, causal 3-D convolution, norms, attention, embeddings."""
