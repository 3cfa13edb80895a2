"""What a listening test leaves in files: Table 2 as LaTeX, everything as CSV, and the preferences
as pairs of songs that `mudit align` learns from.

    write_table(report, key, Path("table2.tex")); write_csv(report, Path("survey.csv"))
    write_preferences(key, heard, Path("preferences.jsonl"))
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from dataclasses import astuple, fields
from pathlib import Path

import numpy as np

from mudit_engine.evaluation.survey.answers import Heard, Key
from mudit_engine.evaluation.survey.tables import Cell, SurveyReport
from mudit_engine.evaluation.system_report import latex
from mudit_engine.files import write_text

SIGNIFICANT = 0.05


def write_table(report: SurveyReport, key: Key, path: Path) -> None:
    """Table 2 as a LaTeX tabular (booktabs): a system a row, a question a column; the best mean
    bold where it differs from all others after Holm's adjustment.
    """
    lines = [
        f"\\begin{{tabular}}{{ll{'r' * len(key.questions)}}}",
        "\\toprule",
        " & ".join(["System", "User", *(latex(name) for name in key.questions)]) + " \\\\",
        "\\midrule",
    ]
    told = {
        (one.question, frozenset((one.a, one.b)))
        for one in report.differences
        if one.adjusted_p is not None and one.adjusted_p < SIGNIFICANT
    }
    cells = {(one.user, one.system, one.question): one for one in report.rows}
    for user, system in dict.fromkeys((one.user, one.system) for one in report.rows):
        row = [latex(system), latex(user)]
        for question in key.questions:
            one = cells.get((user, system, question))
            if one is None:
                row.append("--")
                continue
            others = [
                other
                for other in report.rows
                if (other.user, other.question) == (user, question) and other.system != system
            ]
            best = user == "all" and all(
                one.mean > other.mean and (question, frozenset((system, other.system))) in told
                for other in others
            )
            text = f"{one.mean:.2f} $\\pm$ {one.sd:.2f}"
            row.append(f"\\textbf{{{text}}}" if best and others else text)
        lines.append(" & ".join(row) + " \\\\")
    write_text(path, "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n")


def write_csv(report: SurveyReport, path: Path) -> None:
    """A row a mean, or a pair of systems."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if report.mode == "rating":
        writer.writerow([field.name for field in fields(Cell)])
        for row in report.rows:
            writer.writerow(astuple(row))
    else:
        pairs = ("a", "b", "user", "question", "wins", "losses", "draws")
        writer.writerow([*pairs, "share", "low", "high", "p", "adjusted_p"])
        for one in report.wins:
            writer.writerow(
                [one.a, one.b, one.user, one.question, one.wins, one.losses, one.draws]
                + [one.share.value, one.share.low, one.share.high, one.p, one.adjusted_p]
            )
    write_text(path, out.getvalue())


def write_preferences(key: Key, heard: Heard, path: Path) -> int:
    """A JSON line for every two songs of a request of which more listeners prefer one: {request,
    user_type, description, winner, loser, votes, question}. Returns how many.

    In ratings, a listener prefers what got the higher mean over the questions.
    """
    votes: dict[tuple[str, str, str, str, str], int] = defaultdict(int)
    if key.mode == "pairs":
        for one in heard.preferences:
            if not one.draw:
                a, b = sorted((one.winner, one.loser))
                step = 1 if one.winner == a else -1
                votes[one.request, one.user, one.question, a, b] += step
    else:
        means: dict[tuple[str, str, str], dict[str, list[int]]] = {}
        for rating in heard.ratings:
            mine = means.setdefault((rating.listener, rating.user, rating.request), {})
            mine.setdefault(rating.system, []).append(rating.value)
        for (_, user, request), systems in means.items():
            names = sorted(systems)
            for number, a in enumerate(names):
                for b in names[number + 1 :]:
                    gap = float(np.mean(systems[a]) - np.mean(systems[b]))
                    votes[request, user, "mean", a, b] += int(np.sign(gap))
    lines = []
    for (request, user, question, a, b), balance in sorted(votes.items()):
        if balance:
            winner, loser = (a, b) if balance > 0 else (b, a)
            lines.append(
                json.dumps(
                    {
                        "request": request,
                        "user_type": user,
                        "description": key.requests[request]["description"],
                        "winner": winner,
                        "loser": loser,
                        "votes": abs(balance),
                        "question": question,
                    },
                    ensure_ascii=False,
                )
            )
    write_text(path, "".join(f"{line}\n" for line in lines))
    return len(lines)
