#!/usr/bin/env python3
"""64 JSONL requests at once against the same requests one by one, through the program, on the demo model.

One tile and 256 new tokens each, over the example pictures. One by one: a batch of one place, and a run of its own
each. Usage: bench/jsonl_throughput.py [build/tessera]
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "build" / "tessera")
REQUESTS, NEW_TOKENS = 64, 256


def timed(command):
    begin = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - begin


def main():
    pictures = sorted((ROOT / "examples").glob("*.png"))
    questions = [f"What do you see? ({i})" for i in range(REQUESTS)]
    chosen = [pictures[i % len(pictures)] for i in range(REQUESTS)]
    settings = ["--max-new-tokens", str(NEW_TOKENS), "--ignore-eos", "--max-dynamic-patch", "1"]
    with tempfile.TemporaryDirectory() as folder:
        lines = pathlib.Path(folder) / "requests.jsonl"
        lines.write_text("".join(
            json.dumps({"id": str(i), "messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": str(chosen[i])}}, {"type": "text", "text": questions[i]}]}]}) + "\n"
            for i in range(REQUESTS)))

        def batch(places):
            output = pathlib.Path(folder) / f"{places}-{time.monotonic_ns()}.jsonl"
            seconds = timed([PROGRAM, "run", str(ROOT / "models" / "demo"), "--input", str(lines), "--output", str(output),
                             "--max-batch-size", str(places), *settings])
            results = [json.loads(line) for line in output.read_text().splitlines()]
            assert all(r.get("completion_tokens") == NEW_TOKENS for r in results), results[0]
            return seconds

        def single():
            return sum(timed([PROGRAM, "run", str(ROOT / "models" / "demo"), "--image", str(picture), "--prompt", question,
                              *settings]) for picture, question in zip(chosen, questions))

        tokens = REQUESTS * NEW_TOKENS
        for _ in range(3):
            at_once, one_place, own_run = batch(REQUESTS), batch(1), single()
            print(f"at once {at_once:.2f} s ({tokens / at_once:.0f} tokens/s); one place {one_place:.2f} s: "
                  f"{one_place / at_once:.2f}x; a run each {own_run:.2f} s: {own_run / at_once:.2f}x", flush=True)


if __name__ == "__main__":
    main()
