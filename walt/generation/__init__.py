"""From checkpoints to clips."""
