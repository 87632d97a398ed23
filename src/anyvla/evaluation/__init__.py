"""Closed-loop evaluation: rollouts, statistics, comparison, the report page."""
