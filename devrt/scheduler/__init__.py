"""The scheduler: a graph of ops becomes fused kernels, a memory plan and a timeline."""
