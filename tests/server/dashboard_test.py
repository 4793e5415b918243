"""The Grafana dashboard asks only for series that /metrics has."""

import json
import os
import re


def test_dashboard_names_exist(echo):
    echo.chat()
    path = os.path.join(os.path.dirname(__file__), "../../packaging/grafana-dashboard.json")
    dashboard = json.load(open(path))
    text = echo.request("GET", "/metrics")[2].decode()
    there = set(re.findall(r"^(tessera:\w+)", text, re.M))
    asked = {name for panel in dashboard["panels"] for target in panel["targets"] for name in re.findall(r"tessera:\w+", target["expr"])}
    assert asked and asked <= there, asked - there
