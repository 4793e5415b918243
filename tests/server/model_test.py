"""The same server over a real model, where there is one: the demo model, or TESSERA_TEST_MODEL."""

import base64
import json
import os
import socket
import subprocess

import pytest
from conftest import TESSERA, Served, serving, wait_until, with_picture

MODEL = os.environ.get("TESSERA_TEST_MODEL", "demo")


@pytest.fixture(scope="module")
def model():
    process_ok = subprocess.run([TESSERA, "run", MODEL, "--prompt", "x", "--max-new-tokens", "1"], capture_output=True, timeout=120).returncode == 0
    if not process_ok:
        pytest.skip(f"no model {MODEL} here")
    served = Served(MODEL, "--max-batch-size", "16").wait_ready()
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


def test_each_sampling_field_has_its_effect(model):
    def texts(**fields):
        return [choice["message"]["content"] for choice in model.chat(messages=[{"role": "user", "content": "Hello"}], max_tokens=24, ignore_eos=True, **fields)[2]["choices"]]

    def variety(**fields):
        content = model.chat(messages=[{"role": "user", "content": "Hello"}], max_tokens=24, ignore_eos=True, logprobs=True, **fields)[2]["choices"][0]["logprobs"]["content"]
        return len({token["token"] for token in content})

    greedy = texts()[0]
    hot = dict(temperature=2, seed=5)
    assert len(set(texts(n=4, **hot))) == 4  # each of the n draws its own
    assert texts(**hot) != [greedy] and texts(temperature=2, seed=6) != texts(**hot)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}):
        assert texts(**hot, **narrow) == [greedy], narrow
    plain = variety()
    for penalty in ({"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 3}):
        assert variety(**penalty) > plain, penalty
    assert greedy[2:5] not in texts(stop=greedy[2:5])[0]
    whole = model.chat(messages=[{"role": "user", "content": "Hello"}], max_tokens=24)[2]["choices"][0]
    assert whole["finish_reason"] == "stop" and greedy.startswith(whole["message"]["content"])  # ignore_eos goes on


def test_tiles_of_a_picture_are_bounded_by_each_of_their_fields(model):
    tiles = lambda fields={}, **body: model.chat(messages=with_picture(picture(), "x", **fields), max_tokens=1, **body)[2]["usage"]["prompt_tokens_details"]["image_tokens"]
    one = tiles({"detail": "low"})
    assert tiles({"max_dynamic_patch": 1}) == one == tiles(mm_processor_kwargs={"max_dynamic_patch": 1})
    assert tiles({"max_dynamic_patch": 6}, mm_processor_kwargs={"max_dynamic_patch": 1}) > one  # the picture's own wins
    assert tiles(mm_processor_kwargs={"min_dynamic_patch": 4}) >= 4 * one
    assert tiles() == tiles({"detail": "auto"})


def test_structured_answers_keep_their_schema(model):
    """Also where the model would rather not: the grammar masks, whatever is drawn."""
    schema = {"type": "object", "additionalProperties": False, "required": ["shape", "count", "colors", "note"], "$defs": {"color": {"enum": ["red", "blue"]}},
              "properties": {"shape": {"type": "string", "maxLength": 6}, "count": {"type": "integer", "minimum": 1, "maximum": 9},
                             "colors": {"type": "array", "items": {"$ref": "#/$defs/color"}, "minItems": 2, "maxItems": 3}, "note": {"anyOf": [{"type": "null"}, {"const": "none"}]}}}
    wrapped = {"type": "json_schema", "json_schema": {"name": "shapes", "strict": True, "schema": schema}}
    for seed in range(4):
        body = model.chat(messages=[{"role": "user", "content": "Hello"}], max_tokens=200, temperature=1.5, seed=seed, response_format=wrapped)[2]
        answer = json.loads(body["choices"][0]["message"]["content"])
        assert set(answer) == {"shape", "count", "colors", "note"} and len(answer["shape"]) <= 6 and 1 <= answer["count"] <= 9
        assert 2 <= len(answer["colors"]) <= 3 and set(answer["colors"]) <= {"red", "blue"} and answer["note"] in (None, "none")
    schema["properties"]["shape"] = {"type": "string", "format": "uuid"}
    status, _, body = model.chat(messages=[{"role": "user", "content": "Hello"}], response_format=wrapped)
    assert status == 400 and "format" in body["error"]["message"]
    content = model.chat(messages=[{"role": "user", "content": "Hello"}], max_tokens=60, response_format={"type": "json_object"})[2]["choices"][0]
    if content["finish_reason"] == "stop":
        assert isinstance(json.loads(content["message"]["content"]), dict)


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
    assert wait_until(model.idle)


def stream_request(**fields):
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "ignore_eos": True, "stream": True, **fields}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def test_256_streams_at_once():
    """All 256 are in the batch together, a few threads carry them, and nothing is left when they go."""
    served = serving(MODEL, "--session-len", "512", "--max-batch-size", "256")
    threads = served.threads()
    connect = lambda: [socket.create_connection(("127.0.0.1", served.port), timeout=120) for _ in range(256)]
    connections = connect()
    for connection in connections: connection.sendall(stream_request())  # as long as the session is
    for connection in connections:
        data = b""
        while b'"content":"' not in data:
            data += connection.recv(65536)
            assert data, "closed without a token"
    assert served.metric("num_requests_running") == 256 and served.metric("num_requests_waiting") == 0
    assert served.threads() == threads
    for connection in connections: connection.close()
    assert wait_until(served.idle)
    connections = connect()
    for connection in connections: connection.sendall(stream_request(max_tokens=4))
    for connection in connections:
        data = b""
        while chunk := connection.recv(65536): data += chunk
        assert b"data: [DONE]" in data and b'"finish_reason":"length"' in data
        connection.close()
    assert wait_until(served.idle) and served.stop()[0] == 0


def test_the_queue_has_the_bound_of_its_option():
    """One runs, one waits; others of eight hear 429 and which option would let more wait, and nobody else hears of an error."""
    served = serving(MODEL, "--max-queue", "1", "--max-batch-size", "1")
    connections = [socket.create_connection(("127.0.0.1", served.port), timeout=120) for _ in range(8)]
    for connection in connections: connection.sendall(stream_request())  # thousands of tokens each
    heads = [connection.recv(65536) for connection in connections]
    refused = [head for head in heads if head.startswith(b"HTTP/1.1 429 ")]
    assert refused and all(b"Retry-After: " in head and b"--max-queue" in head for head in refused)
    for connection, data in zip(connections, heads):
        while data not in refused and b'"content":"' not in data:
            assert data.startswith(b"HTTP/1.1 200 ") and b'"error"' not in data
            data += connection.recv(65536)
    for connection in connections: connection.close()
    assert wait_until(served.idle) and served.stop()[0] == 0


def test_what_does_not_fit_is_refused_before_its_stream_begins():
    served = serving(MODEL, "--max-batch-size", "1")
    status, _, body = served.chat(n=2, stream=True)
    assert status == 400 and body["error"]["code"] == "does_not_fit" and "--max-batch-size" in body["error"]["message"], body
    assert served.stop()[0] == 0


def test_caches_never_cross_keys_or_salts(tmp_path):
    """What one key or salt has cached is neither reused nor to be seen (cached tokens, tiles not encoded) by another."""
    (tmp_path / "keys").write_text("the-key-of-alice\nthe-key-of-bob\n")
    served = Served(MODEL, "--api-key-file", str(tmp_path / "keys"))
    header = lambda who: {"Authorization": f"Bearer the-key-of-{who}"}
    assert wait_until(lambda: served.request("GET", "/ready", headers=header("alice"))[0] == 200)

    def metric(name):
        text = served.request("GET", "/metrics", headers=header("alice"))[2].decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"tessera:{name}{{"))

    def ask(who, **fields):
        """(prompt tokens found in a cache, pictures found in a cache of either kind)"""
        found = lambda: metric("mm_cache_hits_total") + metric("tile_cache_hits_total")
        before, encoded = found(), metric("tiles_encoded_total")
        body = {"messages": with_picture(picture(), "Describe the image. " * 20), "max_tokens": 1, **fields}
        status, _, answer = served.request("POST", "/v1/chat/completions", body, header(who))
        assert status == 200, answer
        cached = json.loads(answer)["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert (metric("tiles_encoded_total") == encoded) == (cached > 0)
        return cached, found() - before

    nothing = (0, 0)
    assert ask("alice") == nothing
    assert ask("alice")[0] > 0
    assert ask("bob") == nothing
    assert ask("alice", cache_salt="x") == nothing
    assert ask("alice", cache_salt="x")[0] > 0
    assert ask("bob", cache_salt="x") == nothing
    assert ask("bob", cache_salt="") [0] > 0  # no salt of its own is the key's own
    assert served.stop()[0] == 0
