from glob import glob

from setuptools import setup

NAME = "anyvla_ros2"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.launch.py")),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="AnyVLA maintainers",
    maintainer_email="maintainers@anyvla.invalid",
    description="Launch files that drive a robot with an AnyVLA policy, and record teleoperated episodes",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"drive = {NAME}.start:drive", f"record = {NAME}.start:record"]},
)
