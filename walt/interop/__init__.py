"""Weights of other projects <-> ours."""
