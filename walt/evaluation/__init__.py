"""Measures of reconstructions and of samples."""
