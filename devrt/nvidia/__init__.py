"""NVIDIA GPUs through nvidia.ko and nvidia-uvm.ko, with nothing of CUDA."""
