"""Virtual GPUs: models of what stands behind the driver boundary."""
