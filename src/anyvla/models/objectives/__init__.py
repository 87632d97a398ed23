"""Auxiliary objectives: what a policy is trained for beside its actions. None of them runs outside training."""
