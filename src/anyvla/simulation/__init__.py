"""The built-in MuJoCo navigation world, its expert and its data collection.

Importing this registers ``AnyVLA/BoxNav-v0`` with Gymnasium and loads neither MuJoCo nor torch.
"""

from anyvla.simulation.registration import ENV_ID, register
from anyvla.simulation.seeds import collection_seed, evaluation_seed

register()

__all__ = ["ENV_ID", "collection_seed", "evaluation_seed", "register"]
