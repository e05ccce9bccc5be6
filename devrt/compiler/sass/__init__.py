"""SASS: code for NVIDIA GPUs from sm_75 to sm_120, from instruction selection to a cubin."""
