"""A virtual NVIDIA GPU."""
