"""The dashboard and the alert rules: Prometheus takes every expression, and asks for nothing that is not exposed."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from gateway.auth.scopes import ROLES
from gateway.errors import DISCONNECTS, RPC_ERRORS
from tests.support.patience import START
from tests.support.process import ROOT
from tests.telemetry.test_metrics import CLUSTER, CONTRACT, OUTCOMES, STAGES

DASHBOARD: Final = ROOT / "docs/grafana-dashboard.json"
ALERTS: Final = ROOT / "docs/alerts.yml"
RANGE: Final = {"$__rate_interval": "5m", "$instance": "any", "$member": "any"}
"""What Grafana puts in place of its variables."""

METRIC: Final = re.compile(r"\b(gateway_\w+)(?:\{([^}]*)\})?")
MATCHER: Final = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
EXTRA: Final = ("instance",)
"""Labels that Prometheus itself adds."""


def promtool(*arguments: str | Path) -> str:
    """Run it and return what it says; AssertionError unless it is content."""
    program = shutil.which("promtool")
    assert program is not None, "promtool is missing; scripts/test installs it"
    ran = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=START, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def dashboard() -> dict[str, Any]:
    found = json.loads(DASHBOARD.read_text())
    assert isinstance(found, dict)
    return found


def filled(text: str) -> str:
    """An expression with Grafana's variables filled in."""
    for variable, value in RANGE.items():
        text = text.replace(variable, value)
    return text


def targets() -> list[tuple[str, str, str]]:
    """Title, expression and legend of everything on the dashboard, with Grafana's variables filled in."""
    return [
        (panel["title"], filled(target["expr"]), target["legendFormat"])
        for panel in dashboard()["panels"]
        for target in panel["targets"]
    ]


def choices() -> dict[str, str]:
    """What each of the dashboard's own variables asks Prometheus for, by its name."""
    found = {}
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"(?:query_result|label_values)\((.*?)(?:, \w+)?\)", variable["query"]["query"])
            assert asked is not None, variable["name"]
            found[variable["name"]] = filled(asked[1])
    return found


def rules() -> str:
    """The rules' file without its comments."""
    return re.sub(r"^\s*#.*$", "", ALERTS.read_text(), flags=re.MULTILINE)


def exposed() -> dict[str, set[str]]:
    """Every name of a sample, with its labels."""
    found: dict[str, set[str]] = {}
    for name, (kind, labels) in (CONTRACT | CLUSTER).items():
        endings = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        for ending in endings:
            found[name + ending] = {*labels, *EXTRA} | ({"le"} if ending == "_bucket" else set())
    return found


VALUES: Final = {
    "cause": {end.cause for end in DISCONNECTS},
    "stage": set(STAGES),
    "role": set(ROLES),
    "direction": {"in", "out"},
    "outcome": {*OUTCOMES, *(error.name for error in RPC_ERRORS)},
    "method": {"routed", "node.call"},
    "member": {"any"},
}
"""What each label may be compared with."""


def objections(text: str) -> Iterator[str]:
    """What an expression names that is not there."""
    known = exposed()
    for name, matchers in METRIC.findall(text):
        if name not in known:
            yield f"no metric {name}"
            continue
        for label, value in MATCHER.findall(matchers):
            if label not in known[name]:
                yield f"{name} has no label {label}"
            elif label not in EXTRA:
                yield from (f"no {label} {one}" for one in value.split("|") if one not in VALUES[label])


def test_what_is_not_there_would_be_found() -> None:
    wrong = 'sum(rate(gateway_calls_total[5m])) + gateway_bytes_total{cause="x"} + gateway_disconnects_total{cause="y"}'
    assert list(objections(wrong)) == [
        "no metric gateway_calls_total",
        "gateway_bytes_total has no label cause",
        "no cause y",
    ]


def test_the_dashboard_asks_for_what_is_there() -> None:
    assert [f"{title}: {why}" for title, text, _ in targets() for why in objections(text)] == []


def test_the_variables_ask_for_what_is_there() -> None:
    assert list(choices()) == ["member", "instance"], "a gateway is chosen by either, and the second follows the first"
    assert [why for text in choices().values() for why in objections(text)] == []


def test_the_rules_ask_for_what_is_there() -> None:
    assert list(objections(rules())) == []


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {name for _, text, _ in targets() for name, _ in METRIC.findall(text)}
    unseen = [
        name for name in CONTRACT | CLUSTER if not any(one == name or one.startswith(f"{name}_") for one in shown)
    ]
    assert unseen == []


def test_a_legend_has_only_labels_that_are_left_of_the_expression() -> None:
    for title, text, legend in targets():
        kept = re.findall(r"by \(([^)]*)\)", text)
        labels = set(", ".join(kept).split(", ")) if kept else set(EXTRA)
        assert set(re.findall(r"{{(\w+)}}", legend)) <= labels, title


def test_prometheus_takes_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    expressions = [*(text for _, text, _ in targets()), *choices().values()]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions)]
    path = tmp_path / "panels.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", path)


def test_panels_do_not_cover_each_other_and_have_ids_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


def test_promtool_takes_the_rules() -> None:
    assert f"SUCCESS: {rules().count('alert:')} rules found" in promtool("check", "rules", ALERTS)


QUIET: Final[dict[str, str]] = {'gateway_build_info{instance="a"}': "1x60"}
LOUD: Final[dict[str, dict[str, str]]] = {
    "GatewayAbsent": {'up{instance="a"}': "0x60"},
    "GatewayDefect": {'gateway_requests_total{instance="a",method="x",outcome="internal_error"}': "0+1x60"},
    "GatewayLoopLag": {'gateway_loop_lag_seconds{instance="a"}': "0.5x60"},
    "GatewaySlowConsumers": {'gateway_disconnects_total{instance="a",cause="slow_consumer"}': "0+3x60"},
    "GatewayConnectionsLost": {'gateway_disconnects_total{instance="a",cause="transport_lost"}': "0+90x60"},
    "GatewayConnectionsHeld": {
        'gateway_connections_held{instance="a"}': "3x60",
        'gateway_connections{instance="a",role="node"}': "10x60",
    },
    "GatewayHandshakesFail": {'gateway_handshake_failures_total{instance="a",stage="tls"}': "0+90x60"},
    "GatewayRoutedCallsFail": {
        'gateway_requests_total{instance="a",method="routed",outcome="ok"}': "0+90x60",
        'gateway_requests_total{instance="a",method="routed",outcome="timeout"}': "0+10x60",
    },
    "GatewayOutboxesFull": {'gateway_outbox_bytes{instance="a"}': "1000000000x60"},
    "GatewayWithoutCluster": {'gateway_cluster_connected{instance="a"}': "0x60"},
    "GatewayWithoutEvents": {
        'gateway_cluster_events_connected{instance="a"}': "0x60",
        'gateway_cluster_connected{instance="a"}': "1x60",
    },
    "GatewayMemberLost": {
        'gateway_cluster_members{instance="a"}': "3x30 2x30",
        'gateway_cluster_members{instance="b"}': "3x30 2x30",
        'gateway_cluster_members{instance="c"}': "3x30",
    },
    "GatewayClusterSplit": {
        'gateway_cluster_members{instance="a"}': "2x60",
        'gateway_cluster_members{instance="b"}': "1x60",
    },
}
"""For each alert, a sample a minute that must raise it, and it alone."""


def test_each_alert_is_raised_by_what_it_is_for_alone_and_none_by_a_quiet_gateway(tmp_path: Path) -> None:
    alerts = re.findall(r"alert: (\w+)", rules())
    assert alerts == list(LOUD)
    tests = []
    for name, series in {"": {}, **LOUD}.items():
        known = series if name == "GatewayAbsent" else QUIET | series
        firing = [f'count(ALERTS{{alertname="{one}",alertstate="firing"}})' for one in alerts]
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": one, "values": values} for one, values in known.items()],
                "promql_expr_test": [
                    {
                        "expr": expression,
                        "eval_time": "50m",
                        "exp_samples": [{"labels": "{}", "value": 1}] if one == name else [],
                    }
                    for one, expression in zip(alerts, firing, strict=True)
                ],
            }
        )
    path = tmp_path / "tests.yml"
    path.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    assert "SUCCESS" in promtool("test", "rules", path)
