"""CALVIN: long chains of manipulation, judged in the user's own checkout of the environment."""
