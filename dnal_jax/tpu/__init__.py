"""Ahead-of-time compilation for TPU slices."""
