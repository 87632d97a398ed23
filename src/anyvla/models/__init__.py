"""A policy is a backbone x a structure x a head: VLA puts them together."""
