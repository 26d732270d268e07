"""The command line.

    python -m benchmarks                                     # what there is, a line a case
    python -m benchmarks cpu_stream_small --json rows.json   # runs; a JSON object a case, appended to a file
    python -m benchmarks cpu_train_step --pairs 20
    python -m benchmarks gpu_nfd310 --tiny                   # does it run at all? Its figures mean nothing
"""

import argparse

from benchmarks import cases, rows
from causal_diffusion.checkpoint.paths import as_path
from causal_diffusion.cli import run


def main(arguments=None) -> None:
    """Lists or runs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="cases, as listed without any")
    parser.add_argument("--json", type=as_path, help="file to which one JSON object per case and line is appended")
    parser.add_argument("--pairs", type=int, help="rounds of timing instead of the case's own number")
    parser.add_argument("--tiny", action="store_true", help="a size at which any machine runs the case")
    args = parser.parse_args(arguments)
    for name in args.names:  # a wrong name is told before anything runs
        cases.find(name)
    if not args.names:
        print(cases.listing())
    for name in args.names:
        row = cases.run(name, args.pairs, "tiny" if args.tiny else "full")
        print(rows.text(row), flush=True)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            with args.json.open("a") as file:
                file.write(rows.line(row) + "\n")


if __name__ == "__main__":
    run(main)
