"""Machine code of AMD GPUs as native code of the host: one function a kernel, over all lanes of a wave."""
