"""Frozen feature networks whose weights come with installed packages, and the distance between frames over them."""
