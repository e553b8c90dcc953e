"""Meshes of devices, and the one table that maps logical axis names to them."""
