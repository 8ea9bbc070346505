#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What bench/compare.py measured, as a table on standard output, and as text and a picture for documents.

usage: report.py COMPARE.JSON [DIRECTORY]     DIRECTORY gets compare.md and timeline.svg
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

COLUMNS = [("blackout, own clocks", "own_ms"), ("predicted by a dry run", "predicted_ms"), ("longest silence outside", "outside_ms"),
           ("slowest read", "slowest_read_ms"), ("whole hand-over", "total_ms"), ("until the former process is gone", "teardown_ms")]
FLOOR_PARTS = [("kick", "kick_ns"), ("save vCPUs", "save_ns"), ("save controllers", "chips_save_ns"), ("move irqfds", "irqfds_ns"),
               ("load controllers", "chips_load_ns"), ("load vCPUs, enter", "load_ns")]
COLOURS = ("#0b6e4f", "#69b578", "#c1292e", "#f1a208", "#5c415d")


def hand_overs(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [done for turn in turns for done in turn["hand_overs"]]


def figures(values: list[float]) -> str:
    """Median and worst, in milliseconds."""
    return f"{statistics.median(values):.2f} / {max(values):.2f}" if values else "–"


def rows(result: dict[str, Any]) -> list[list[str]]:
    """A line for each monitor and back end, the floor first."""
    floor = [move["blackout_ns"] / 1e6 for move in result["floor"]]
    table = [["floor", figures(floor), *["–"] * len(COLUMNS)]]
    for name, turns in result["monitors"].items():
        done = hand_overs(turns)
        cells = [figures([one[key] for one in done if one[key] is not None]) for _, key in COLUMNS]
        table.append([name, *cells, figures([turn["silence_without_ms"] for turn in turns])])
    return table


def stage_rows(result: dict[str, Any]) -> list[list[str]]:
    table = []
    for name, turns in result["monitors"].items():
        done = hand_overs(turns)
        for stage in done[0]["stages_ms"]:
            table.append([name, stage, figures([one["stages_ms"][stage] for one in done])])
    table += [["floor", part, figures([move[key] / 1e6 for move in result["floor"]])] for part, key in FLOOR_PARTS]
    return table


def ratios(result: dict[str, Any]) -> list[str]:
    """What the targets are about, within this run."""
    def median(name: str, key: str) -> float:
        return statistics.median(one[key] for one in hand_overs(result["monitors"][name]) if one[key] is not None)

    floor = statistics.median(move["blackout_ns"] for move in result["floor"]) / 1e6
    lines = []
    for name in result["monitors"]:
        back_end = name.rsplit(", ", 1)[1]
        if name.startswith("baton"):
            lines.append(f"{name}: blackout by own clocks is {median(name, 'own_ms') / floor:.1f} times the floor")
        elif f"baton, {back_end}" in result["monitors"]:
            outside = median(name, "outside_ms") / median(f"baton, {back_end}", "outside_ms")
            lines.append(f"{name}: longest silence outside is {outside:.1f} times baton's, "
                         f"whole hand-over {median(name, 'total_ms') / median(f'baton, {back_end}', 'total_ms'):.1f} times")
    return lines


def columns(table: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table)


def markdown(table: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


def relative_slots(turns: list[dict[str, Any]], before: int) -> list[float]:
    """How fast the guest was, in each slot of time, compared with before the hand-over: the median of all of them."""
    lines = []
    for done in hand_overs(turns):
        usual = statistics.median(done["slots"][:before - 1]) or 1
        lines.append([slot / usual for slot in done["slots"]])
    return [statistics.median(values) for values in zip(*lines)]


def timeline(result: dict[str, Any]) -> str:
    """An SVG: time in the middle of a hand-over to the right, the guest's speed upwards."""
    width, height, left, bottom = 900, 300, 60, 40
    before, slot_ms = result["slots"]["before"], result["slots"]["ms"]
    lines = {name: relative_slots(turns, before) for name, turns in result["monitors"].items()}
    count = max(map(len, lines.values()))
    across = (width - left - 20) / count
    upwards = (height - bottom - 20) / 1.25

    def x(slot: float) -> float:
        return left + slot * across

    def y(speed: float) -> float:
        return height - bottom - min(speed, 1.25) * upwards

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 20 * len(result["monitors"])}" '
             'font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" fill="white"/>']
    for speed in (0, 0.5, 1):
        parts.append(f'<path d="M{left} {y(speed):.1f}H{width - 20}" stroke="#ddd"/>'
                     f'<text x="{left - 8}" y="{y(speed) + 4:.1f}" text-anchor="end">{speed:.0%}</text>')
    for slot in range(0, count + 1, 10):
        parts.append(f'<text x="{x(slot):.1f}" y="{height - bottom + 18}" text-anchor="middle">{(slot - before) * slot_ms:.0f}</text>')
    parts.append(f'<text x="{(width + left) / 2}" y="{height - 4}" text-anchor="middle">'
                 f'ms from the beginning of the silence; how fast the guest computes, in slots of {slot_ms:.0f} ms (median)</text>')
    for number, (name, speeds) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x(i + 0.5):.1f},{y(speed):.1f}" for i, speed in enumerate(speeds))
        row = height + 14 + 20 * number
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
                     f'<path d="M{left} {row - 4}h30" stroke="{colour}" stroke-width="3"/><text x="{left + 40}" y="{row}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> int:
    result = json.loads(Path(sys.argv[1]).read_text())
    options = result["options"]
    heading = ["milliseconds, median / worst", *(title for title, _ in COLUMNS), "longest silence without"]
    count = options["turns"] * options["hand_overs"]
    summary = (f"{count} hand-overs each of a guest with {options['cpus']} vCPU and {options['memory']} MiB, its root file system on "
               "the passed-through NVMe drive, reading from it all the while.")
    table = [heading, *rows(result)]
    print(summary, columns(table), "", *ratios(result), sep="\n")
    if len(sys.argv) > 2:
        directory = Path(sys.argv[2])
        (directory / "timeline.svg").write_text(timeline(result))
        stages = [["", "stage", "median / worst, ms"], *stage_rows(result)]
        (directory / "compare.md").write_text("\n".join([summary, "", markdown(table), "", *(f"- {line}" for line in ratios(result)), "",
                                                         markdown(stages), ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
