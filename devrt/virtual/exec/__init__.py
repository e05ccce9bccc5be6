"""Runs other people's programs against virtual GPUs: seccomp sends their system calls to a supervisor."""
