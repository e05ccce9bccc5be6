"""The boundary to the kernel: the System seam, the drivers' UAPI as data, recording and replaying."""
