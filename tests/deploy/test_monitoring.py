"""The dashboard and the alerts: what they ask for is what a server exports, and Prometheus understands it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.runner import kinds
from tests.runner.conftest import serving
from wsvoice.runner import metrics

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "wsvoice.json").read_text("utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"][0]["rules"]
#: What Grafana and Prometheus put in, for a query that is read without them.
VARIABLES = {"$__rate_interval": "5m", "$instance": ".+"}
#: Labels that Prometheus gives each target, and the values that a label may have beside those that were seen.
TARGET_LABELS = frozenset({"instance", "job"})
VALUES = {
    "outcome": {*metrics.OUTCOMES, *metrics.WEBHOOK_OUTCOMES},
    "reason": set(metrics.REFUSAL_REASONS),
    "kind": set(metrics.REFUSAL_KINDS),
    "result": set(metrics.RELOAD_RESULTS),
}
#: What is in a dashboard for nothing but a few of these.
SHOWN = (
    "active_calls",
    "calls_total",
    "response_seconds",
    "event_loop_lag",
    "refusals",
    "underruns",
    "workers",
    "deaths",
)

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")


def filled_in(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


EXPRESSIONS = {
    **{
        f"panel: {panel['title']} {target['refId']}": filled_in(target["expr"])
        for panel in PANELS
        for target in panel["targets"]
    },
    **{f"alert: {rule['alert']}": rule["expr"] for rule in RULES},
}


@pytest.fixture(scope="module")
def exported() -> Iterator[str]:
    """The metrics of a server after a call of every kind."""
    with pytest.MonkeyPatch.context() as patch, serving(patch) as start:
        server = start(kinds.bot, metrics_port=0)
        asyncio.run(kinds.place_every_kind(server.url, server.switchboard.capacity))
        server.ended(6)
        yield httpx.get(server.ready.metrics_url).text


@pytest.fixture(scope="module")
def labels(exported: str) -> dict[str, set[str]]:
    """The names of every exported series, each with its labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(exported):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def run(*command: str, cwd: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, input=text, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS.keys())
def test_every_metric_and_label_that_is_asked_for_is_exported(expression: str, labels: dict[str, set[str]]) -> None:
    selectors = re.findall(r"\b((?:wsvoice|process)_\w+)\b(?:\{([^}]*)\})?", expression)
    assert selectors, expression
    known = set(TARGET_LABELS)
    for name, matchers in selectors:
        assert name in labels, f"{name} is not exported"
        known |= labels[name]
        for label, values in re.findall(r'(\w+)\s*=~?\s*"([^"]*)"', matchers):
            assert label in labels[name] | TARGET_LABELS, f"{name} has no label {label}"
            if label in VALUES:
                assert set(values.split("|")) <= VALUES[label], f"{label} is never {values}"
    for grouped in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        assert {each.strip() for each in grouped.split(",")} <= known, grouped


def test_a_text_of_an_alert_names_only_labels_that_it_has() -> None:
    for rule in RULES:
        assert {"severity"} <= rule["labels"].keys()
        texts = " ".join(rule["annotations"].values())
        for label in re.findall(r"\$labels\.(\w+)", texts):
            # All series have the instance; another one is grouped by, or a plain selector's.
            grouped = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
            assert label == "instance" or not grouped or any(label in each for each in grouped), rule["alert"]


def test_the_dashboard_shows_what_matters_and_nothing_lies_on_another() -> None:
    expressions = " ".join(EXPRESSIONS[name] for name in EXPRESSIONS if name.startswith("panel"))
    for name in SHOWN:
        assert f"wsvoice_{name}" in expressions or f"_{name}" in expressions, name
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_every_metric_is_in_the_docs(exported: str) -> None:
    """And nothing else is: its name, type and labels."""
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `(wsvoice_\w+)` \| (\w+) \| ?([^|]*)\|", page, re.MULTILINE)
    told = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    real = {}
    for family in text_string_to_metric_families(exported):
        if family.name.startswith("wsvoice_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            names = {label for sample in family.samples for label in sample.labels} - {"le"}
            real[name] = (family.type, names)
    assert told == real


@promtool
def test_promtool_reads_the_alerts(tmp_path: Path) -> None:
    checked = run("promtool", "check", "rules", "--lint=all", "--lint-fatal", str(ALERTS), cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(RULES)} rules found" in checked.stdout


@promtool
def test_promtool_reads_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(EXPRESSIONS.values())]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = run("promtool", "check", "rules", "panels.yml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(EXPRESSIONS)} rules found" in checked.stdout


@promtool
def test_alerts_are_raised_for_trouble_and_for_nothing_else(tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path)
    shutil.copy(Path(__file__).with_name("alerts_test.yml"), tmp_path)
    tested = run("promtool", "test", "rules", "alerts_test.yml", cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@promtool
def test_promtool_finds_nothing_wrong_with_the_metrics(exported: str, tmp_path: Path) -> None:
    checked = run("promtool", "check", "metrics", cwd=tmp_path, text=exported)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
