"""A served echo engine for each test session, and helpers to speak to it at every level."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

TESSERA = os.environ.get("TESSERA", "build/tessera")
FULL = os.environ.get("TESSERA_FULL") == "1"
SANITIZED = os.environ.get("TESSERA_SANITIZED") == "1"  # memory is then the sanitizer's and is not judged


class Served:
    """A running `tessera serve` on a free port."""

    def __init__(self, model="mock:echo", *options):
        self.process = subprocess.Popen([TESSERA, "serve", model, "--port", "0", *(() if "--log-level" in options else ("--log-level", "warning")), *options],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        found = re.search(r":(\d+)$", line.strip())
        assert found, f"no address: {line!r} {self.process.stderr.read()!r}"
        self.port = int(found.group(1))
        self.url = f"http://127.0.0.1:{self.port}"

    def wait_ready(self, seconds=60):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.request("GET", "/ready")[0] == 200:
                return self
            time.sleep(0.02)
        raise AssertionError("never ready")

    def request(self, method, path, body=None, headers=None):
        """(status, headers, bytes) of one request by the standard library."""
        data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        headers = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def chat(self, **fields):
        fields.setdefault("messages", [{"role": "user", "content": "hello"}])
        status, headers, body = self.request("POST", "/v1/chat/completions", fields)
        return status, headers, json.loads(body)

    def raw(self, data, timeout=20, half_close=False):
        """All bytes that come back for `data` on a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
            return received

    def metric(self, name):
        text = self.request("GET", "/metrics")[2].decode()
        values = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                  if line.startswith(f"tessera:{name}{{") or line.startswith(f"tessera:{name} ")]
        assert values, f"no metric {name}"
        return sum(values)

    def memory_kib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1))

    def idle(self):
        """True when nothing is under way, no KV block is held, and only the asking connection is open."""
        return all(self.metric(name) == 0 for name in ("num_requests_running", "num_requests_waiting", "num_requests_preparing", "kv_blocks_used")) \
            and self.metric("http_connections") == 1

    def threads(self):
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def stop(self, signal_number=signal.SIGTERM):
        """(exit code, stderr) after the signal."""
        self.process.send_signal(signal_number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def serving(model="mock:echo", *options):
    return Served(model, *options).wait_ready()


@pytest.fixture(scope="session")
def echo():
    served = serving("mock:echo?step_us=1000")
    yield served
    code, errors = served.stop()
    assert code == 0, errors


def png_bytes(width=64, height=48):
    from PIL import Image
    picture = Image.new("RGB", (width, height))
    picture.putdata([((x * 5) % 256, (y * 7) % 256, 128) for y in range(height) for x in range(width)])
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def data_url(data=None):
    return "data:image/png;base64," + base64.b64encode(data or png_bytes()).decode()


def with_picture(url, text="hello", **fields):
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url, **fields}}, {"type": "text", "text": text}]}]
