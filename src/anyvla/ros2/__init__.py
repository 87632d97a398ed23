"""The robot's side over ROS 2 topics: one transport interface, several back ends, recording and import."""
