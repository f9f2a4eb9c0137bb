"""A self-contained page: tables, pictures and where every number comes from, without anything to load."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from geta_core.errors import ConfigError
from orchestration.files import write_text
from orchestration.result import RunResult
from sweeps.cells import bits_text, interval_text, mean_text
from sweeps.figures import draw_study
from sweeps.figures.tracked import log_figures
from sweeps.grid import Found
from sweeps.pareto import area, front, points_of
from sweeps.render import Sheet, render
from sweeps.report.gather import gather
from sweeps.statistics import Difference, Mean, paired_differences, resolution

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
figure { margin: 0; overflow-x: auto; } figcaption { font-weight: 600; margin-bottom: .5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #8884; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { border-bottom-width: 2px; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 22rem; text-align: left; }
.note { color: #777; font-size: .9rem; margin: .3rem 0; } img { max-width: 100%; background: white; }
code { font-size: .85rem; }
"""
TITLES = {
    "trade_off": "Accuracy against relative BOPs",
    "differences": "Differences to the reference",
    "layers": "Bits and channels of every layer",
    "stages": "Stages",
}


def report(folder: Path, output: Path, reference: str | None = None, track: bool = False) -> Found:
    """Write the page about all runs at or below a folder.

    Args:
        folder: of the runs: a study, an ablation, a table, a comparison.
        output: HTML file.
        reference: cell that the others are compared with; if not given, one called base or geta, else the first.
        track: also hand the pictures to the MLflow stores of the runs.

    Raises:
        ConfigError: when there is no complete run, or no cell of that name.
    """
    found = gather(folder)
    if not found.results:
        raise ConfigError([f"{folder} holds no run that is complete"])
    chosen = _reference(found, reference)
    values = {cell: {seed: 100 * each.accuracy for seed, each in own.items()} for cell, own in found.results.items()}
    differences = paired_differences(values, chosen)
    with TemporaryDirectory() as temporary:
        files = draw_study(found, Path(temporary), folder.name, differences)
        if track:
            log_figures(found.folders(), files)
        pictures = {file.stem: base64.b64encode(file.read_bytes()).decode() for file in files}
    parts = [
        *_summary(found, folder),
        "<h2>Results</h2>",
        render(_results(found, chosen, differences), "html"),
        *_pictures(pictures),
        *_runs(found),
    ]
    head = f'<meta charset="utf-8"><title>{escape(folder.name)}</title><style>{STYLE}</style>'
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(
        output,
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n",
    )
    return found


def _reference(found: Found, asked: str | None) -> str:
    if asked is not None and asked not in found.results:
        raise ConfigError([f"reference must be one of {', '.join(found.results)}, but got {asked!r}"])
    usual = [cell for cell in found.results if cell == "base" or cell.split("-")[0] == "geta"]
    return asked or next(iter([*usual, *found.results]))


def _summary(found: Found, folder: Path) -> Iterator[str]:
    results = [each for own in found.results.values() for each in own.values()]
    hours = sum(each.seconds.get("train", 0.0) + each.seconds.get("finish", 0.0) for each in results) / 3600
    devices = sorted({each.device for each in results})
    tasks = sorted({f"{each.model} on {each.task}" for each in results})
    yield f"<h1>{escape(folder.name)}</h1>"
    yield (
        f"<p>{escape(', '.join(tasks))}: {len(found.results)} cells, {len(results)} complete runs, {hours:.2f} hours "
        f"of computing on {escape(', '.join(devices))}.</p>"
    )


def _results(found: Found, reference: str, differences: Mapping[str, Difference]) -> Sheet:
    cells = {
        cell: {seed: (100 * each.relative_bops, 100 * each.accuracy) for seed, each in own.items()}
        for cell, own in found.results.items()
    }
    on_front = dict(
        zip(cells, front(points_of({cell: list(own.values()) for cell, own in cells.items()})), strict=True)
    )
    columns = ["cell", "seeds", "test accuracy %", f"Δ accuracy to {reference}, points", "rel. BOPs %"]
    columns += ["groups removed %", "weight / input bits", "bytes", "on the front"]
    rows = [
        _row(cell, list(own.values()), differences.get(cell), bool(on_front[cell]))
        for cell, own in found.results.items()
    ]
    covered = area(cells, (100.0, 0.0))
    interval = f", 95 % bootstrap interval over the seeds {covered.low:.1f} to {covered.high:.1f}" * (covered.seeds > 1)
    notes = [
        "mean ± standard deviation over the seeds; differences paired by seed with their 95 % intervals",
        f"accuracy: {resolution(differences)}",
        f"hypervolume of the front to (100 % BOPs, 0 % accuracy): {covered.value:.1f} of 10,000{interval}",
    ]
    return Sheet("Cells", columns, rows, [*notes, *(f"{run}: {why}" for run, why in found.failures.items())])


def _row(cell: str, own: Sequence[RunResult], found: Difference | None, best: bool) -> list[str]:
    return [
        cell,
        str(len(own)),
        mean_text([100 * each.accuracy for each in own]),
        interval_text(found),
        mean_text([100 * each.relative_bops for each in own], 3),
        f"{Mean.of([100 * each.group_sparsity for each in own]).mean:.1f}",
        bits_text(own),
        f"{Mean.of([each.bytes for each in own]).mean:,.0f}",
        "yes" if best else "",
    ]


def _pictures(pictures: Mapping[str, str]) -> Iterator[str]:
    for name, title in TITLES.items():
        if name in pictures:
            yield f"<h2>{title}</h2>"
            yield f'<img alt="{title}" src="data:image/png;base64,{pictures[name]}">'


def _runs(found: Found) -> Iterator[str]:
    yield "<h2>Runs</h2><figure><table><thead><tr>"
    heads = ("cell", "seed", "test accuracy %", "rel. BOPs %", "train s", "digest", "commit", "command")
    yield "".join(f"<th>{head}</th>" for head in heads) + "</tr></thead><tbody>"
    for cell, own in found.results.items():
        for seed, each in own.items():
            code = each.environment.get("code") or {}
            commit = str(code.get("commit", "unknown"))[:10] + (" (modified)" if code.get("modified") else "")
            texts = [cell, str(seed), f"{100 * each.accuracy:.2f}", f"{100 * each.relative_bops:.3f}"]
            texts += [f"{each.seconds.get('train', float('nan')):.1f}", each.digest, commit]
            cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
            command = escape(str(each.environment.get("command", "")))
            yield f'<tr>{cells}<td class="long"><code>{command}</code></td></tr>'
    yield "</tbody></table></figure>"
