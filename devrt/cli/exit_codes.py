"""What the exit code of `devrt` says."""

OK = 0
FINDINGS = 1  # doctor found an error, or compare a difference
USAGE = 2
FAILED = 3  # a DevrtError
BUG = 4
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
