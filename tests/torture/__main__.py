"""Runs of random configurations, killed at random points and resumed, against the same runs left alone.

python -m tests.torture [--minutes 10] [--seed 0] [--lives 3] [--kills 4] [--processes 2]
"""

import argparse
import tempfile
import time
from pathlib import Path

from tests.torture.compare import torture
from tests.torture.configurations import draw
from tests.torture.runs import make_backbone


def main() -> int:
    """Torture for so long, and print how many runs were compared; 1 if any differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, help="the first configuration; by default another each time")
    parser.add_argument("--count", type=int, help="how many configurations at most")
    parser.add_argument("--lives", type=int, default=3, help="runs of each configuration that are killed")
    parser.add_argument("--kills", type=int, default=4, help="how often each is killed at most")
    parser.add_argument("--processes", type=int, help="1 or 2; by default both")
    options = parser.parse_args()
    start = time.monotonic()
    first = int(time.time()) if options.seed is None else options.seed
    compared = failed = number = 0
    with tempfile.TemporaryDirectory() as folder:
        backbone = make_backbone(Path(folder) / "backbone")
        while time.monotonic() - start < 60 * options.minutes and number != options.count:
            drawn = draw(first + number, options.processes)
            runs, differences = torture(drawn, backbone, Path(folder) / str(number), options.lives, options.kills)
            compared += runs
            failed += bool(differences)
            number += 1
            for difference in differences[:5]:
                print(f"--seed {drawn['seed']} --count 1: {drawn}\n    {difference}", flush=True)
            if not differences:
                print(f"seed {drawn['seed']}: {runs} runs equal", flush=True)
    print(f"{compared} runs of {number} configurations compared; {failed} configurations with differences")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
