"""Clips: where they come from, how they become batches, and how they are read and written as files."""
