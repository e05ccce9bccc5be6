"""The host CPU as a device: rings of packets, worker threads, and a command processor in machine code."""
