"""The view of a study that MLflow's pages open with: the columns and charts of compressed models.

MLflow's own start shows no metric at all. A view is a tag of the experiment; an address with its key opens it.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

KEY = "geta"
TAG = f"mlflow.sharedViewState.{KEY}"
COLUMNS = {
    "metrics.`final/test/accuracy`": 160,
    "metrics.`final/test/accuracy_ci95`": 190,
    "metrics.`final/group_sparsity`": 160,
    "metrics.`final/weight_bits`": 150,
    "metrics.`final/activation_bits`": 165,
    "metrics.`final/relative_bops`": 160,
    "metrics.`final/bytes`": 120,
}
"""Columns of the table, with their widths."""
BARS = ("test/accuracy", "group_sparsity", "weight_bits", "activation_bits", "relative_bops", "bytes")
LINES = ("val/accuracy", "train/loss", "group_sparsity", "weight_bits")


def set_view(client: Any, experiment: str) -> None:
    """Give an experiment the view; one that is there is left as it is."""
    from mlflow.exceptions import MlflowException

    if TAG in client.get_experiment(experiment).tags:
        return
    try:
        client.set_experiment_tag(experiment, TAG, json.dumps(view(), separators=(",", ":")))
    except MlflowException:  # runs that begin together write the same row at the same time: one of them is refused
        if TAG not in client.get_experiment(experiment).tags:
            raise


def view_address(server: str, experiment: str, charts: bool = False) -> str:
    """Return the address of the view on a server's pages, as a table or as charts."""
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"{server}/#/experiments/{experiment}/runs?viewStateShareKey={KEY}{mode}"


def studies(server: str) -> Iterator[tuple[str, str]]:
    """Yield the experiments of a running server that have the view: name and id; MLflow itself is not imported."""
    body = json.dumps({"max_results": 1000, "filter": f"tags.`{TAG}` LIKE '%'"}).encode()
    url = f"{server.rstrip('/')}/api/2.0/mlflow/experiments/search"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        for found in json.load(answer).get("experiments", []):
            yield found["name"], found["experiment_id"]


def view() -> dict[str, Any]:
    """Return the state of MLflow's page of runs."""
    ends = [{**_chart(f"end-{name}", "end"), "type": "BAR", "metricKey": f"final/{name}"} for name in BARS]
    trade = {
        **_chart("trade", "end"),
        "type": "SCATTER",
        "xaxis": {"key": "final/relative_bops", "type": "METRIC"},
        "yaxis": {"key": "final/test/accuracy", "type": "METRIC"},
    }
    course = [
        {
            **_chart(f"course-{name}", "course"),
            "type": "LINE",
            "metricKey": name,
            "selectedMetricKeys": [name],
            "xAxisKey": "step",
            "scaleType": "linear",
            "xAxisScaleType": "linear",
            "lineSmoothness": 0,
            "useGlobalLineSmoothing": True,
            "useGlobalXaxisKey": True,
        }
        for name in LINES
    ]
    return {
        "selectedColumns": ["attributes.`Created`", *COLUMNS],
        "columnOrder": list(COLUMNS),
        "columnWidths": dict(COLUMNS),
        "compareRunCharts": [*ends, trade, *course],
        "compareRunSections": [_section("end", "Compressed models"), _section("course", "Course of the training")],
    }


def _chart(name: str, section: str) -> dict[str, Any]:
    return {
        "uuid": f"geta-{name}",
        "metricSectionId": f"geta-{section}",
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 20,
    }


def _section(name: str, title: str) -> dict[str, Any]:
    return {"uuid": f"geta-{name}", "name": title, "display": True, "isReordered": False, "isGenerated": False}
