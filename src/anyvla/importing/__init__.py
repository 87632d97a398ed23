"""What was made with other software becomes recipes and checkpoints of ours."""
