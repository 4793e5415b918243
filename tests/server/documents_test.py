"""What is written beside the server is true: the dashboard's series, the threat model's tests and options."""

import json
import os
import re
import subprocess

from conftest import TESSERA

ROOT = os.path.join(os.path.dirname(__file__), "../..")


def text_of(path):
    with open(os.path.join(ROOT, path)) as file:
        return file.read()


def test_dashboard_names_exist(echo):
    echo.chat()
    dashboard = json.loads(text_of("packaging/grafana-dashboard.json"))
    there = set(re.findall(r"^(tessera:\w+)", echo.request("GET", "/metrics")[2].decode(), re.M))
    asked = {name for panel in dashboard["panels"] for target in panel["targets"] for name in re.findall(r"tessera:\w+", target["expr"])}
    assert asked and asked <= there, asked - there


def test_the_threat_model_names_tests_and_options_that_exist():
    threats = text_of("docs/security.md")
    sources = {name: text_of(f"tests/server/{name}") for name in os.listdir(os.path.join(ROOT, "tests/server")) if name.endswith((".py", ".cc"))}
    for row in threats.splitlines():
        file = ""
        for name, case in re.findall(r"`(\w+\.(?:py|cc))?(?:::(\w+))?[`,]?", row):
            file = name or file
            if name.endswith("_test.py") or name.endswith("_test.cc"):
                assert name in sources, name
            if case:
                assert re.search(rf"\b{case}\b", sources[file]), f"{file}::{case}"
        if "_test.cc` (" in row:  # cases in brackets behind their file
            for file, cases in re.findall(r"`(\w+_test\.cc)` \(([^)]*)\)", row):
                for case in re.findall(r"`(\w+)`", cases):
                    assert f", {case})" in sources[file], f"{file}: {case}"
    options = set(re.findall(r"`(--[a-z-]+)", threats))
    help_text = subprocess.run([TESSERA, "serve", "--help"], capture_output=True, text=True, check=True).stdout
    assert len(options) > 15 and not [option for option in options if option not in help_text]
