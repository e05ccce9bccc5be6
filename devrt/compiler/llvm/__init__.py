"""LIR to machine code through LLVM: x86-64 and aarch64."""
