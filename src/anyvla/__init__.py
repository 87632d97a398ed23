"""AnyVLA: turn any vision-language model into a robot policy, train it, prove it in closed loop, run it on a robot."""

__version__ = "0.1.0"
