"""The safety filter is that of the light client: a robot has the same one, whether its policy runs in process or elsewhere."""

from anyvla_client.safety import SafeAction, SafetyFilter, StopCause

__all__ = ["SafeAction", "SafetyFilter", "StopCause"]
