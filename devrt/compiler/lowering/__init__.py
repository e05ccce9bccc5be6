"""Kernel IR to LIR: one file a kind of kernel."""
