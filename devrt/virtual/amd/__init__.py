"""Virtual AMD GPUs: driver, memory, command processors and instruction sets of gfx1100 and gfx942."""
