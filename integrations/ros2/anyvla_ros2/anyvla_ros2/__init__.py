"""Starts AnyVLA from ROS 2 launch files."""
