"""Ahead-of-time compilation for TPU slices, and the environment of libtpu."""
