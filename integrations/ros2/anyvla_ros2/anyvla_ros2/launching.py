"""What both launch files are made with."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node


def description(executable, arguments):
    """A node of this package; each argument (name, default, what it is) becomes the option --name of its command."""
    options = []
    for name, _, _ in arguments:
        options += ["--" + name.replace("_", "-"), LaunchConfiguration(name)]
    declared = [DeclareLaunchArgument(name, default_value=value, description=text) for name, value, text in arguments]
    return LaunchDescription(
        [*declared, Node(package="anyvla_ros2", executable=executable, arguments=options, output="screen")]
    )
