"""Frozen text encoders: prompts -> a fixed number of embeddings each, behind one interface."""
