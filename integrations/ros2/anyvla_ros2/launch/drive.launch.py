"""ros2 launch anyvla_ros2 drive.launch.py server:=ws://localhost:8000 camera:=/camera/image_raw/compressed"""

from anyvla_ros2.launching import description

# name, default, what it is; each becomes an option of `anyvla ros2 run`
ARGUMENTS = [
    ("server", "ws://localhost:8000", "policy server"),
    ("camera", "/camera/image_raw/compressed", "topic of the images"),
    ("cmd_vel", "/cmd_vel", "topic of the commands"),
    ("instruction_topic", "/instruction", "topic of the sentences"),
    ("transport", "rclpy", "rclpy, or dds where anyvla runs in another Python than that of ROS"),
]


def generate_launch_description():
    return description("drive", ARGUMENTS)
