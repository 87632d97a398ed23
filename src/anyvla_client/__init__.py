"""The light side of AnyVLA, for the robot's small computer: numpy, msgpack, websockets; Python 3.8 or newer.

    wire        how observations and actions travel (openpi's protocol)
    client      PolicyClient: asks a policy server
    brokers     from chunks that arrive late to an action at every control step
    fake        the command anyvla-client: a server tried without camera or robot
    execution   from the chunks of every step to actions, where the model runs at every step
    safety      the last thing before the robot

Nothing here imports anyvla, which uses these same modules.
"""

__version__ = "0.1.0"
