"""The instruction set: forms, fields, and what reads and writes them."""
