"""NaViT: a classifier of packed pictures and clips."""
