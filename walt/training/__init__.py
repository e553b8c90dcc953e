"""One loop, one state, one checkpoint format, one metrics writer; a step function for each task."""
