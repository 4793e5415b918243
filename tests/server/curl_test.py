"""What people type: curl, with its habits (Expect: 100-continue, chunked uploads, form bodies by default, HTTP/1.0, HEAD)."""

import json
import os
import subprocess

from conftest import Served, data_url, png_bytes, wait_until, with_picture


def curl(*arguments, stdin=None):
    done = subprocess.run(["curl", "--silent", "--show-error", "--max-time", "60", *arguments], input=stdin, capture_output=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


JSON = ("-H", "Content-Type: application/json")
HELLO = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "hello"}]})


def test_chat_and_stream(echo):
    url = echo.url + "/v1/chat/completions"
    assert json.loads(curl(url, *JSON, "-d", HELLO))["choices"][0]["message"]["content"] == "hello"
    assert json.loads(curl("--http1.0", url, *JSON, "-d", HELLO))["choices"][0]["message"]["content"] == "hello"
    events = curl("-N", url, *JSON, "-d", json.dumps({**json.loads(HELLO), "stream": True})).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert "".join(json.loads(event[6:])["choices"][0]["delta"].get("content", "") for event in events[:-2]) == "hello"


def test_a_large_body_from_a_file_and_in_chunks(echo, tmp_path):
    """Above a MiB curl asks first (Expect: 100-continue); from a pipe it sends chunks."""
    content = with_picture(data_url(png_bytes() + os.urandom(2 << 20)), "seen")
    (tmp_path / "body.json").write_text(json.dumps({"messages": content}))
    for sent in ([f"@{tmp_path}/body.json"], ["@-", "-H", "Transfer-Encoding: chunked"]):
        stdin = (tmp_path / "body.json").read_bytes() if sent[0] == "@-" else None
        answer = json.loads(curl(echo.url + "/v1/chat/completions", *JSON, "-H", "Expect: 100-continue", "--data-binary", *sent, stdin=stdin))
        assert answer["choices"][0]["message"]["content"] == "seen" and answer["usage"]["prompt_tokens_details"]["image_tokens"] == 256


def test_forms_are_told_what_to_send(echo):
    status = ("-o", "/dev/stdout", "-w", "\n%{http_code}")
    text, code = curl(echo.url + "/v1/chat/completions", "-d", HELLO, *status).rsplit("\n", 1)
    assert code == "415" and "application/json" in json.loads(text)["error"]["message"]
    text, code = curl(echo.url + "/v1/completions", *JSON, "-d", "{'prompt': 'x'}", *status).rsplit("\n", 1)
    assert code == "400" and json.loads(text)["error"]["code"] == "invalid_json"


def test_heads_and_several_urls_on_one_connection(echo):
    head = curl("-I", echo.url + "/health")
    assert head.startswith("HTTP/1.1 200 OK") and "X-Request-Id: " in head
    twice = curl("-w", "%{num_connects};", echo.url + "/health", echo.url + "/version")
    assert twice.count("1;") == 1 and twice.count("0;") == 1  # the second went over the first's connection


def test_keys(tmp_path):
    (tmp_path / "keys").write_text("a-secret-key\n")
    served = serving_with_key(tmp_path / "keys")
    code = lambda *how: curl(served.url + "/v1/models", "-o", "/dev/null", "-w", "%{http_code}", *how)
    assert code() == "401" and code("-H", "Authorization: Bearer a-secret-key") == "200"
    assert code("--oauth2-bearer", "a-secret-key") == "200" and code("-u", "me:a-secret-key") == "200" and code("-u", "a-secret-key:me") == "401"
    assert served.stop()[0] == 0


def serving_with_key(path):
    served = Served("mock:echo", "--api-key-file", str(path))
    assert wait_until(lambda: served.request("GET", "/ready", headers={"Authorization": "Bearer a-secret-key"})[0] == 200)
    return served
