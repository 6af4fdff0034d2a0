#!/usr/bin/env python3
"""Runs smq beside transformers on tiny checkpoints and prints one table.

    run.py [--only KIND[,KIND]] [--bin DIR] [--case TEXT] [--wide] [--json FILE]

KIND is a name or a number in the list that --help shows. Exits with 1 when anything differs. Needs
torch, transformers 5.24, safetensors, tokenizers and jinja2; compressed-tensors for two kinds
(their rows say so without it).
"""

import argparse
import importlib
import json
import pathlib
import shutil
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

KINDS = [
    "saved_state",
    "side_files",
    "special_tokens",
    "weight_files",
    "tied_head",
    "two_places",
    "templates",
    "generation",
    "streaming",
    "metadata",
    "unused_tensors",
    "half_names",
    "blame",
    "imports",
    "exports",
    "families",
]


def arguments():
    kinds = "\n".join(f"  {number:2} {name}" for number, name in enumerate(KINDS, 1))
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"kinds:\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", help="kinds, by number or name, separated by commas")
    parser.add_argument("--case", help="only cases whose name contains this")
    parser.add_argument(
        "--bin", default=HERE.parents[2] / "target/release", help="where the programs are"
    )
    parser.add_argument("--wide", action="store_true", help="do not cut what was said")
    parser.add_argument(
        "--keep", action="store_true", help="keep the checkpoints, and say where they are"
    )
    parser.add_argument("--json", type=pathlib.Path, help="write the rows there too")
    return parser.parse_args()


def chosen(only):
    if not only:
        return KINDS
    names = [KINDS[int(part) - 1] if part.isdigit() else part for part in only.split(",")]
    for name in names:
        if name not in KINDS:
            sys.exit(f"there is no kind {name!r}; there are {', '.join(KINDS)}")
    return names


def cut(text, width):
    text = " ".join(text.split()).replace("|", "¦")  # a bar is the table's
    return text if width is None or len(text) <= width else text[: width - 2] + ".."


def line(row, wide):
    width = None if wide else 58
    said = lambda cell: cell.state if not cell.said else f"{cell.state}: {cell.said}"  # noqa: E731
    cells = (row.name, row.theirs, said(row.directory), said(row.smq))
    return " | ".join(
        [
            cut(cells[0], None if wide else 64),
            *(cut(cell, width) for cell in cells[1:]),
            row.verdict,
        ]
    )


def main():
    args = arguments()
    from lib import Bench, Cell, Ours, Row

    started = time.monotonic()
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="smq-hf-"))
    rows, totals = [], {}
    bench = Bench(Ours(args.bin, scratch), scratch)
    print("case | transformers | directory | .smq | verdict")
    for kind in chosen(args.only):
        print(f"\n{KINDS.index(kind) + 1}. {kind}")
        for case in importlib.import_module(f"cases.{kind}").cases():
            if args.case and args.case not in case.name:
                continue
            try:
                row = bench.run(case)
            except Exception as error:  # the harness itself failed: never to be read as agreement
                row = Row(
                    case.name,
                    "",
                    Cell("differs", f"the harness: {type(error).__name__}: {error}"),
                    Cell("-"),
                )
            rows.append((kind, row))
            count = totals.setdefault(kind, {})
            count[row.verdict] = count.get(row.verdict, 0) + 1
            print(line(row, args.wide), flush=True)
    verdicts = ("equal", "refused by name", "DIFFERS", "not asked")
    print(f"\nkind | {' | '.join(verdicts)}")
    for kind, count in totals.items():
        print(" | ".join([kind, *(str(count.get(verdict, 0)) for verdict in verdicts)]))
    differ = sum(row.verdict == "DIFFERS" for _, row in rows)
    print(f"{len(rows)} cases, {differ} differ, {time.monotonic() - started:.0f} s")
    if args.json:
        table = [
            {
                "kind": kind,
                "case": r.name,
                "transformers": r.theirs,
                "directory": [r.directory.state, r.directory.said],
                "smq": [r.smq.state, r.smq.said],
                "verdict": r.verdict,
            }
            for kind, r in rows
        ]
        args.json.write_text(
            json.dumps(table, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
    if args.keep:
        print(f"the checkpoints are in {scratch}")
    else:
        shutil.rmtree(scratch)
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
