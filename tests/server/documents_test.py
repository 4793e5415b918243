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


def sources_named(words):
    """{path: text} of each test file and fuzzer that `words` names; a bare name lies in tests/server."""
    found = {}
    for path in re.findall(r"`([\w/]+\.(?:py|cc))", words):
        where = path if "/" in path else f"tests/server/{path}"
        assert os.path.exists(os.path.join(ROOT, where)), f"{where} is not there"
        found[path] = text_of(where)
    return found


def test_every_threat_names_tests_that_exist():
    threats = [row.split("|") for row in text_of("docs/security.md").splitlines() if row.count("|") == 4 and row.startswith("|")]
    rows = [cells for cells in threats if cells[3].strip() not in ("test", "---", "option") and not cells[3].strip().startswith(("constant", "`--"))]
    assert len(rows) > 20
    for _, threat, _, tests, _ in rows:
        sources = sources_named(tests)
        folders = re.findall(r"`(tests/\w+)`", tests)
        assert sources or folders, f"no test against: {threat}"
        for folder in folders:
            assert os.path.isdir(os.path.join(ROOT, folder)), folder
        file = ""
        for name, case in re.findall(r"`([\w/]+\.(?:py|cc))?(?:::(\w+))?`", tests):
            file = name or file
            if case:
                assert re.search(rf"(def |, ){case}\(?\)?\b", sources[file]), f"{file}::{case}"
        for file, cases in re.findall(r"`([\w/]+\.cc)` \(([^)]*)\)", tests):  # cases in brackets behind their file
            for case in re.findall(r"`(\w+)`", cases):
                assert f", {case})" in sources[file], f"{file}: {case}"


def help_of(*command):
    return subprocess.run([TESSERA, *command, "--help"], capture_output=True, text=True, check=True).stdout


def test_the_threat_model_names_options_that_exist():
    options = set(re.findall(r"`(--[a-z-]+)", text_of("docs/security.md")))
    help_text = help_of("serve")
    assert len(options) > 15 and not [option for option in options if option not in help_text]


def test_messages_name_options_that_exist():
    known = {"--version", "--help"}
    for command in (["run"], ["chat"], ["serve"], ["plan"], ["doctor"], ["tile"], ["tokenize"], ["bench"], ["bench", "--serving"]):
        known |= set(re.findall(r"--[a-z][a-z-]+", help_of(*command)))
    for folder, _, files in os.walk(os.path.join(ROOT, "src")):
        for name in files:
            if name.endswith((".cc", ".h", ".cu", ".cuh")):
                for text in re.findall(r'"(?:[^"\\\n]|\\.)*"', text_of(os.path.join(folder, name))):
                    assert not [option for option in re.findall(r"--[a-z][a-z-]+", text) if option not in known], (name, text)


def test_the_help_has_the_constant_bounds():
    help_text = " ".join(help_of("serve").split())
    for bound in ("temperature 0..2", "top_p (0, 1]", "n 16", "top_logprobs 20", "16 stop strings of 256 characters", "1024 logit_bias entries", "128 tiles a picture",
                  "4096 messages", "1052672 JSON values", "1048576 ids", "1048576 characters"):
        assert bound in help_text, bound
