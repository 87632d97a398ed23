"""The run-time side: Policy, execution of chunks, safety filter."""
