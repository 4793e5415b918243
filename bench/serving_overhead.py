#!/usr/bin/env python3
"""What the server itself costs: streamed tokens a second and processor time per token, with the echo engine behind it,
and the time from exec to ready.

    bench/serving_overhead.py [PATH/TO/tessera] [--rounds 3]

The client is `tessera bench --serving --url`. The server's time is that of the whole process (echo engine included, so the
figure is an upper bound of what HTTP, JSON and streaming cost), read from /proc around the run. Best on a quiet machine."""

import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import time
import urllib.error
import urllib.request


def serve(tessera, model):
    """(process, url, seconds from exec until GET /ready says yes)"""
    begun = time.monotonic()
    process = subprocess.Popen([tessera, "serve", model, "--port", "0", "--log-level", "warning"], stdout=subprocess.PIPE, text=True)
    url = "http://127.0.0.1:" + re.search(r":(\d+)$", process.stdout.readline().strip()).group(1)
    while True:
        try:
            with urllib.request.urlopen(url + "/ready", timeout=10):
                return process, url, time.monotonic() - begun
        except urllib.error.HTTPError:
            time.sleep(0.002)


def stop(process):
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def processor_seconds(pid):
    """(in all, of that in the kernel)"""
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    user, kernel = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields[11:13])
    return user + kernel, kernel


def load(tessera, engine, streams, tokens):
    process, url, _ = serve(tessera, engine)
    before = processor_seconds(process.pid)
    done = subprocess.run([tessera, "bench", "echo", "--serving", "--url", url, "--pictures", "none", "--requests", str(streams),
                           "--concurrency", str(streams), "--new-tokens", str(tokens), "--json"], capture_output=True, text=True, check=True)
    used, kernel = (after - was for after, was in zip(processor_seconds(process.pid), before))
    stop(process)
    run = json.loads(done.stdout)[0]
    assert run["failed"] == 0 and run["new_tokens"] == streams * tokens, run
    return run["tokens_per_s"], 1e6 * used / run["new_tokens"], 1e6 * kernel / run["new_tokens"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tessera", nargs="?", default="build/tessera")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())
    print(f"{platform.node()}, {model.group(1) if model else platform.machine()}, {len(os.sched_getaffinity(0))} processors, load {os.getloadavg()[0]:.2f}")
    for what, engine, streams, tokens in (("as fast as it goes", "mock:echo?step_us=0", 64, 2000), ("a token of each stream every 2 ms", "mock:echo?step_us=2000", 64, 2000),
                                          ("a token of each stream every 10 ms", "mock:echo?step_us=10000", 256, 400)):
        rounds = [load(options.tessera, engine, streams, tokens) for _ in range(options.rounds)]
        speed, cost, kernel = (statistics.median(values) for values in zip(*rounds))
        print(f"{streams} streams of {tokens} tokens, {what}: {speed:,.0f} tokens/s, {cost:.2f} us of processor time a token ({kernel:.2f} in the kernel)")
    for model in ("demo", "mock:echo"):
        seconds = []
        for _ in range(options.rounds + 2):
            process, _, ready = serve(options.tessera, model)
            stop(process)
            seconds.append(ready)
        print(f"{model}: ready {statistics.median(seconds):.3f} s after exec (median), {max(seconds):.3f} s at most")


if __name__ == "__main__":
    main()
