"""How long a user waits for the command line: a whole process from its start to its end. Run: python bench/cli_times.py"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 7
LIMITS_S = {"--version": 0.15, "doctor": 1.5}


def main() -> int:
    failed = False
    for command, limit in LIMITS_S.items():
        seconds = []
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            # the doctor's exit status says what it found
            subprocess.run([sys.executable, "-m", "devrt.cli.main", command], stdout=subprocess.DEVNULL, check=False)
            seconds.append(time.perf_counter() - start)
        seconds = seconds[1:]  # the first compiles
        failed |= min(seconds) > limit
        print(f"devrt {command:<12} best {min(seconds):6.3f}   median {statistics.median(seconds):6.3f} s   (limit {limit:g})")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
