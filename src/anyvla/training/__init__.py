"""The loop, the optimiser and its schedule, checkpoints and resume."""
