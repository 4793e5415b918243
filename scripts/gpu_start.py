#!/usr/bin/env python3
"""Starts `tessera serve` on a checkpoint: seconds from exec to ready, and the first picture of 13 tiles beside the next ones.

  python3 scripts/gpu_start.py build/tessera /dev/shm/InternVL3-8B --log build/gpu_check/start

Writes LOG.rows. A picture's time is the device's: seconds of the tower and the prompt, as /metrics counts them; the whole
request's time is given beside it. Fails where the server takes more than 5 s or the first picture more than 1.1 times the
median of the next three.
"""
import argparse
import base64
import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request

WIDTH, HEIGHT = 1792, 1344  # 12 tiles and the thumbnail


def get(url):
    with urllib.request.urlopen(url, timeout=5) as response:
        return response.read().decode()


def device_seconds(base):
    text = get(base + "/metrics")
    return sum(float(value) for value in re.findall(r"^tessera:(?:encode|prefill)_seconds_total\{[^}]*\} (\S+)$", text, re.M))


def ask(base, model):
    picture = base64.b64encode(b"P6 %d %d 255\n" % (WIDTH, HEIGHT) + os.urandom(WIDTH * HEIGHT * 3)).decode()
    content = [{"type": "image_url", "image_url": {"url": "data:image/x-portable-pixmap;base64," + picture}},
               {"type": "text", "text": "What is in this picture?"}]
    body = json.dumps({"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": content}]}).encode()
    request = urllib.request.Request(base + "/v1/chat/completions", body, {"Content-Type": "application/json"})
    begin, before = time.perf_counter(), device_seconds(base)
    with urllib.request.urlopen(request, timeout=30) as response:
        response.read()
    whole = time.perf_counter() - begin
    return whole, device_seconds(base) - before


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tessera")
    parser.add_argument("model")
    parser.add_argument("--log", required=True)
    arguments = parser.parse_args()
    base = "http://127.0.0.1:8127"
    begin = time.perf_counter()
    with open(arguments.log + ".serve", "w") as log:
        server = subprocess.Popen([arguments.tessera, "serve", arguments.model, "--device", "cuda", "--port", "8127", "--max-batch-size", "64",
                                   "--session-len", "8192"], stdout=log, stderr=log)
    try:
        while True:
            try:
                get(base + "/ready")
                break
            except OSError:
                if server.poll() is not None or time.perf_counter() - begin > 60:
                    raise SystemExit("the server did not become ready; see " + arguments.log + ".serve")
                time.sleep(0.01)
        ready = time.perf_counter() - begin
        model = json.loads(get(base + "/v1/models"))["data"][0]["id"]
        pictures = [ask(base, model) for _ in range(4)]
    finally:
        server.terminate()
        server.wait(timeout=60)
    first, rest = pictures[0][1], statistics.median(device for _, device in pictures[1:])
    with open(arguments.log + ".rows", "w") as rows:
        rows.write(f"ready after {ready:.2f} s\n")
        rows.write(f"first picture {1e3 * first:.1f} ms on the device, the next three {1e3 * rest:.1f} ms: {first / rest:.2f} times\n")
        rows.write("whole requests " + ", ".join(f"{1e3 * whole:.0f}" for whole, _ in pictures) + " ms\n")
    return 0 if ready <= 5 and first <= 1.1 * rest else 1


if __name__ == "__main__":
    sys.exit(main())
