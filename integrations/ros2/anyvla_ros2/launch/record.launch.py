"""ros2 launch anyvla_ros2 record.launch.py out:=/data/drives; start, stop and discard by messages on /anyvla/record"""

from anyvla_ros2.launching import description

# name, default, what it is; each becomes an option of `anyvla ros2 record`
ARGUMENTS = [
    ("out", "episodes", "folder of the episodes"),
    ("to", "mobile_h5", "mobile_h5 or lerobot"),
    ("camera", "/camera/image_raw/compressed", "topic of the images"),
    ("cmd_vel", "/cmd_vel", "topic of the commands"),
    ("instruction_topic", "/instruction", "topic of the sentences"),
    ("control_topic", "/anyvla/record", "topic of start, stop and discard"),
    ("fps", "5.0", "control steps per second"),
    ("transport", "rclpy", "rclpy, or dds where anyvla runs in another Python than that of ROS"),
]


def generate_launch_description():
    return description("record", ARGUMENTS)
