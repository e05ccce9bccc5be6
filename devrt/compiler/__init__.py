"""The compiler: ops, kernel IR, LIR, and one package per ISA."""
