"""AMD GPUs through amdkfd: packets, registers, topology."""
