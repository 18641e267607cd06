"""`make bench`: every benchmark, one after the other. `python -m benchmarks [NAME …]`"""

import argparse

from benchmarks import demo, evidence, generation, scale

BENCHMARKS = {"demo": demo.main, "evidence": evidence.main, "generation": generation.main, "scale": scale.main}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run benchmarks; all of them by default.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    names = parser.parse_args().names or list(BENCHMARKS)
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    for name in names:
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
