"""SASS to LLVM IR over the 32 lanes of a warp."""
