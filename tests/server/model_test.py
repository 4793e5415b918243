"""The same server over a real model, where there is one: the demo model, or TESSERA_TEST_MODEL."""

import base64
import json
import os
import socket
import subprocess
import time

import pytest
from conftest import TESSERA, Served, serving, with_picture

MODEL = os.environ.get("TESSERA_TEST_MODEL", "demo")


@pytest.fixture(scope="module")
def model():
    started = time.monotonic()
    process_ok = subprocess.run([TESSERA, "run", MODEL, "--prompt", "x", "--max-new-tokens", "1"], capture_output=True, timeout=120).returncode == 0
    if not process_ok:
        pytest.skip(f"no model {MODEL} here")
    started = time.monotonic()
    served = Served(MODEL, "--max-batch-size", "16").wait_ready()
    served.ready_after = time.monotonic() - started
    yield served
    assert served.stop()[0] == 0


def picture():
    root = os.path.join(os.path.dirname(__file__), "../../examples")
    name = sorted(n for n in os.listdir(root) if n.endswith(".png"))[0]
    return "data:image/png;base64," + base64.b64encode(open(os.path.join(root, name), "rb").read()).decode()


def test_answers_about_a_picture(model):
    status, _, body = model.chat(messages=with_picture(picture(), "Describe the image."), max_tokens=24)
    assert status == 200 and body["choices"][0]["message"]["content"].strip()
    usage = body["usage"]
    assert usage["prompt_tokens_details"]["image_tokens"] > 0 and usage["prompt_tokens"] > usage["prompt_tokens_details"]["image_tokens"]
    status, _, low = model.chat(messages=with_picture(picture(), "Describe the image.", detail="low"), max_tokens=1)
    assert status == 200 and low["usage"]["prompt_tokens_details"]["image_tokens"] <= usage["prompt_tokens_details"]["image_tokens"]
    status, _, tokens = model.request("POST", "/tokenize", {"messages": with_picture(picture(), "Describe the image.")})
    assert status == 200 and json.loads(tokens)["count"] == usage["prompt_tokens"]


def test_same_seed_same_text_and_stream_equals_whole(model):
    ask = lambda **fields: model.chat(messages=[{"role": "user", "content": "Hello"}], max_tokens=12, **fields)[2]["choices"][0]["message"]["content"]
    assert ask(temperature=1, seed=7) == ask(temperature=1, seed=7)
    assert ask() == ask()
    status, _, text = model.request("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12, "stream": True})
    chunks = [json.loads(line[6:]) for line in text.decode().splitlines() if line.startswith("data: {")]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == ask()


def test_logit_bias_and_logprobs(model):
    body = model.chat(messages=[{"role": "user", "content": "Hello"}], max_tokens=1, logprobs=True, top_logprobs=3)[2]
    top = body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert len(top) == 3 and top[0]["logprob"] >= top[1]["logprob"] >= top[2]["logprob"]
    ids = json.loads(model.request("POST", "/tokenize", {"prompt": top[1]["token"]})[2])["tokens"]
    if len(ids) == 1:
        biased = model.chat(messages=[{"role": "user", "content": "Hello"}], max_tokens=1, logprobs=True, logit_bias={str(ids[0]): 100})[2]
        assert biased["choices"][0]["logprobs"]["content"][0]["token"] == top[1]["token"]


def test_a_broken_picture_ends_its_request_only(model):
    bad = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"x" * 100).decode()
    status, _, body = model.chat(messages=with_picture(bad))
    assert status == 422 and body["error"]["code"] == "invalid_image"
    assert body["error"]["message"].startswith("picture 1 (messages[0].content[0].image_url): "), body
    assert model.chat(max_tokens=1)[0] == 200


def test_a_closed_connection_frees_its_blocks(model):
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "ignore_eos": True, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", model.port)) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        connection.recv(1000)
    deadline = time.monotonic() + 10
    while model.metric("num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert model.metric("num_requests_running") == 0 and model.metric("kv_blocks_used") == 0


def test_64_streams(model):
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "ignore_eos": True, "stream": True}).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    connections = [socket.create_connection(("127.0.0.1", model.port), timeout=120) for _ in range(64)]
    for connection in connections: connection.sendall(request)
    for connection in connections:
        data = b""
        while chunk := connection.recv(65536): data += chunk
        assert b"data: [DONE]" in data and b'"finish_reason":"length"' in data
        connection.close()
