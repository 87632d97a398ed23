"""Policies behind a socket."""
