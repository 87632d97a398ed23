"""A policy as a graph that runs without its model's code: export, and what drives it on a robot."""
