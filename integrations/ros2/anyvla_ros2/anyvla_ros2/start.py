"""``ros2 run anyvla_ros2 drive ...`` is ``anyvla ros2 run ...``, with what ROS adds to the arguments left out."""

import os
import shutil
import sys


def drive():
    """Drive with a policy."""
    _become("run", sys.argv[1:])


def record():
    """Record teleoperated episodes."""
    _become("record", sys.argv[1:])


def command(verb, arguments, program):
    """The command line: ``--ros-args`` and all behind it, up to ``--``, is ROS's own and not passed on."""
    kept, own = [], False
    for argument in arguments:
        if argument == "--ros-args":
            own = True
        elif own and argument == "--":
            own = False
        elif not own:
            kept.append(argument)
    return [program, "ros2", verb, *kept]


def _become(verb, arguments):
    # this process becomes anyvla: signals, and what the launch file knows about it, stay right
    program = os.environ.get("ANYVLA") or shutil.which("anyvla")
    if program is None:
        sys.exit("anyvla is not installed for this user: pip install anyvla, or set ANYVLA to the path of its program")
    os.execv(program, command(verb, arguments, program))
