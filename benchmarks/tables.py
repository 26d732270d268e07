"""The table of ``docs/performance.md``, from the rows in ``benchmarks/results``.

    python -m benchmarks.tables                              # writes it anew, between the two marks
"""

import json
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.rows import WRITTEN

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks/results", ROOT / "docs/performance.md"
MARKS = ("<!-- python -m benchmarks.tables -->", "<!-- end -->")
HEAD = "| case | figure | measured | asked | limit, share |\n|---|---|---|---|---|"


def rows() -> list[dict]:
    """The committed rows, in the order of the cases."""
    files = (RESULTS / f"{name}.json" for name in CASES)
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def lines(row: dict) -> list[str]:
    """A row's part of the table, a line a figure."""
    if row["not_run"]:
        return [f"| `{row['name']}` | {row['what']} | not run: {row['not_run']} | | |"]
    out = []
    for figure in row["figures"]:
        form = WRITTEN[figure["unit"]].format
        measured = form(figure["value"])
        if figure["interval"]:
            measured += " [{:.3g}, {:.3g}]".format(*figure["interval"])
        asked = limit = ""
        if figure["asked"]:
            which, sign, bound = figure["asked"]
            end = {"value": "", "low": "lower end ", "high": "upper end "}[which]
            asked = f"{end}{sign} {bound:.4g}: {'met' if figure['met'] else '**not met**'}"
        if figure["limit"] is not None:
            limit = f"{form(figure['limit'])}, {figure['share']:.0%}"
        out.append(f"| `{row['name']}` | {figure['name']} | {measured} | {asked} | {limit} |")
    return out


def table(rows: list[dict]) -> str:
    """The whole table in Markdown, and what it was measured on."""
    ran = [row for row in rows if not row["not_run"]]
    on = {f"{row['device']}; {', '.join(f'{k} {v}' for k, v in row['versions'].items())}" for row in ran}
    said = [f"Measured on: {each}." for each in sorted(on)]
    return "\n".join([HEAD, *(line for row in rows for line in lines(row)), "", *said])


def page(text: str, new: str) -> str:
    """The page with what stands between the marks replaced."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{new}\n{MARKS[1]}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(), table(rows())))
