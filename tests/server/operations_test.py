"""Keys, queues, draining, signals: what an operator relies on."""

import base64
import json
import signal
import socket
import threading
import time
import urllib.request

import pytest
from conftest import Served, png_bytes, serving, wait_until, with_picture


def test_keys(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# operators\nfirst-secret-key\n")
    served = Served("mock:echo", "--api-key-file", str(keys))
    bearer = lambda key: {"Authorization": f"Bearer {key}"}
    assert wait_until(lambda: served.request("GET", "/ready", headers=bearer("first-secret-key"))[0] == 200)
    assert served.request("GET", "/health")[0] == 200
    for path in ("/", "/v1/models", "/metrics", "/stats", "/ready", "/openapi.json", "/nothing"):
        status, headers, body = served.request("GET", path)
        assert status == 401 and "WWW-Authenticate" in headers, path
        assert json.loads(body)["error"]["type"] == "authentication_error"
    assert served.request("POST", "/v1/chat/completions", {"messages": []})[0] == 401
    assert served.request("GET", "/v1/models", headers=bearer("first-secret-kez"))[0] == 401
    basic = {"Authorization": "Basic " + base64.b64encode(b"anyone:first-secret-key").decode()}
    assert served.request("GET", "/", headers=basic)[0] == 200
    keys.write_text("second-secret-key\n")
    served.process.send_signal(signal.SIGHUP)
    assert wait_until(lambda: served.request("GET", "/v1/models", headers=bearer("second-secret-key"))[0] == 200)
    assert served.request("GET", "/v1/models", headers=bearer("first-secret-key"))[0] == 401
    keys.write_text("")  # a broken file leaves the keys as they were
    served.process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert served.request("GET", "/v1/models", headers=bearer("second-secret-key"))[0] == 200
    assert served.stop()[0] == 0


def test_a_large_body_without_a_key_is_refused_unread(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first-secret-key\n")
    served = Served("mock:echo", "--api-key-file", str(keys))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 60000000\r\n\r\n"
    assert served.raw(head, half_close=True).startswith(b"HTTP/1.1 401 ")
    served.stop()


def test_not_ready_while_loading():
    served = Served("mock:echo?load_ms=700")
    assert served.request("GET", "/health")[0] == 200
    status, headers, _ = served.request("GET", "/ready")
    assert status == 503 and headers["Retry-After"]
    assert served.chat()[0] == 503
    served.wait_ready()
    assert served.chat()[0] == 200
    assert served.stop()[0] == 0


def test_the_served_name_and_the_allowed_hosts():
    served = serving("mock:echo", "--served-model-name", "my-model", "--allowed-host", "internvl.example")
    assert json.loads(served.request("GET", "/v1/models")[2])["data"][0]["id"] == "my-model"
    assert served.chat(model="my-model")[2]["model"] == "my-model" and served.chat(model="echo")[0] == 404
    assert 'model_name="my-model"' in served.request("GET", "/metrics")[2].decode()
    host = lambda name: served.request("GET", "/health", headers={"Host": name})[0]
    assert host("internvl.example") == host("Internvl.Example:80") == host("localhost") == host("10.1.2.3:8000") == 200 and host("other.example") == 400
    assert served.stop()[0] == 0


def test_each_bound_of_a_request_is_an_option():
    served = serving("mock:echo", "--max-body-bytes", "4KiB", "--max-header-bytes", "2048", "--max-json-depth", "6", "--max-images", "1")
    say = lambda content: served.chat(messages=[{"role": "user", "content": content}])[0]
    assert say("x" * 3000) == 200 and say("x" * 5000) == 413
    assert served.request("GET", "/health", headers={"X": "x" * 1500})[0] == 200 and served.request("GET", "/health", headers={"X": "x" * 2500})[0] == 431
    schema = lambda depth: {"type": "json_schema", "json_schema": {"name": "a", "schema": json.loads('{"a":' * depth + "1" + "}" * depth)}}
    assert "nested deeper than 6 levels" in served.chat(response_format=schema(4))[2]["error"]["message"]
    assert "needs a model" in served.chat(response_format=schema(3))[2]["error"]["message"]  # as deep as may be: it reaches the engine
    small = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()}}
    assert say([small]) == 200 and say([small, small]) == 400
    assert served.stop()[0] == 0


def test_a_connection_that_idles_is_closed():
    served = serving("mock:echo", "--idle-timeout", "0.2")
    assert served.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 200 ")  # to its end, which comes
    assert served.stop()[0] == 0


def test_bad_usage():
    import subprocess
    from conftest import TESSERA
    for arguments, word in ((["mock:echo?frob=1"], "frob"), (["mock:echo", "--port", "70000"], "65535"), (["mock:echo", "--api-key-file", "/nonexistent"], "api-key-file"),
                            (["mock:echo", "--allowed-local-media-path", "/nonexistent"], "not a directory"), (["mock:echo", "--host", "256.1.1.1"], "--host")):
        done = subprocess.run([TESSERA, "serve", *arguments], capture_output=True, text=True, timeout=20)
        assert done.returncode == 2 and word in done.stderr, (arguments, done)


def stream_lines(served, body, timeout=30):
    request = urllib.request.Request(served.url + "/v1/chat/completions", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=timeout)


def endless(served):
    """A stream under way that goes on until it is closed."""
    response = stream_lines(served, {"messages": [{"role": "user", "content": "a"}], "ignore_eos": True, "stream": True})
    response.readline()
    return response


def test_a_full_queue_is_429():
    served = serving("mock:echo?max_queue=1&max_running=1&step_us=1000")
    running = endless(served)
    results = []
    waiting = threading.Thread(target=lambda: results.append(served.chat()[0]))
    waiting.start()
    assert wait_until(lambda: served.metric("num_requests_waiting") == 1)
    status, headers, body = served.chat()
    assert status == 429 and headers["Retry-After"] and body["error"]["type"] == "rate_limit_error"
    running.close()
    waiting.join()
    assert results == [200]
    assert served.stop()[0] == 0


def test_requests_per_client():
    served = serving("mock:echo?step_us=1000", "--max-requests-per-client", "2")
    held = [endless(served), endless(served)]
    for _ in range(3):
        status, headers, body = served.chat()
        assert status == 429 and headers["Retry-After"] and body["error"]["code"] == "rate_limit_exceeded"
    for response in held: response.close()
    assert wait_until(lambda: served.chat(max_tokens=1)[0] == 200)  # places come back
    assert served.stop()[0] == 0


def test_sigterm_finishes_what_runs():
    served = serving("mock:echo?step_us=20000")
    response = stream_lines(served, {"messages": [{"role": "user", "content": "a" * 40}], "stream": True})
    response.readline()
    served.process.send_signal(signal.SIGTERM)
    text = response.read()
    assert text.endswith(b"data: [DONE]\n\n") and b'"finish_reason":"stop"' in text
    assert served.process.wait(30) == 0
    with pytest.raises(OSError):
        served.request("GET", "/health")


def test_drain_timeout_ends_the_rest_with_an_error():
    served = serving("mock:echo?step_us=20000", "--drain-timeout", "0.3")
    response = stream_lines(served, {"messages": [{"role": "user", "content": "a"}], "ignore_eos": True, "stream": True})
    response.readline()
    served.process.send_signal(signal.SIGTERM)
    text = response.read()
    assert b"shutting down" in text and text.endswith(b"data: [DONE]\n\n")
    assert served.process.wait(30) == 0


def test_requests_while_draining_get_503():
    """A request whose head is not whole when SIGTERM comes. Where none of it had been read, its connection is closed as idle; so try again."""
    body = b'{"messages":[{"role":"user","content":"a"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = b""
    for _ in range(10):
        served = serving("mock:echo?step_us=1000")
        response = endless(served)
        kept = socket.create_connection(("127.0.0.1", served.port), timeout=30)
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + head[:20])
        assert kept.recv(4096).startswith(b"HTTP/1.1 200 ")
        served.process.send_signal(signal.SIGTERM)
        assert wait_until(lambda: not accepts(served))
        try:
            kept.sendall(head[20:] + body)
            answer = kept.recv(4096)
        except ConnectionError:
            answer = b""
        response.close()
        assert served.process.wait(30) == 0
        if answer: break
    assert answer.startswith(b"HTTP/1.1 503 ")


def accepts(served):
    try:
        socket.create_connection(("127.0.0.1", served.port), timeout=30).close()
        return True
    except ConnectionError:
        return False


def test_a_closed_connection_cancels_its_request(echo):
    gone = echo.metric("client_disconnects_total")
    for stream in (True, False):
        body = json.dumps({"messages": [{"role": "user", "content": "a"}], "ignore_eos": True, "stream": stream}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection = socket.create_connection(("127.0.0.1", echo.port))
        connection.sendall(head + body)
        assert wait_until(lambda: echo.metric("num_requests_running") == 1)
        connection.close()
        assert wait_until(lambda: echo.metric("num_requests_running") == 0)
    assert echo.metric("client_disconnects_total") == gone + 2


def test_local_media(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir(), outside.mkdir()
    (inside / "a.png").write_bytes(png_bytes())
    (outside / "b.png").write_bytes(png_bytes())
    (inside / "link.png").symlink_to(outside / "b.png")
    served = serving("mock:echo", "--allowed-local-media-path", str(inside))
    assert served.chat(messages=with_picture(f"file://{inside}/a.png"))[0] == 200
    messages = set()
    for name in (f"{outside}/b.png", f"{inside}/link.png", f"{inside}/../out/b.png", f"{inside}/%2e%2e/out/b.png", f"{inside}/absent.png", f"{inside}", "/etc/passwd", "/dev/zero"):
        status, _, body = served.chat(messages=with_picture(f"file://{name}"))
        assert status == 400, name
        messages.add(body["error"]["message"])
    assert len(messages) == 1  # what is refused and what is not there look alike
    assert served.stop()[0] == 0


def test_remote_media_is_public_only():
    served = serving("mock:echo", "--allowed-media-domains", "localhost:*", "--allowed-media-domains", f"127.0.0.1:80", "--allowed-media-domains", "localhost")
    for url in ("http://127.0.0.1/x.png", "http://localhost/x.png", "http://10.0.0.1/x.png", "http://[::1]/x.png", "http://user@localhost/x.png"):
        status, _, body = served.chat(messages=with_picture(url))
        assert status == 400 and body["error"]["code"] == "invalid_image_url", url
    assert served.stop()[0] == 0


def test_the_log_has_no_user_text(tmp_path):
    served = Served("mock:echo", "--log-level", "debug", "--log-json").wait_ready()
    served.chat(messages=[{"role": "user", "content": "my secret words"}], user="someone-private")
    served.chat(messages=with_picture("http://secret.example/p.png"))
    served.chat(secret_field=1)
    code, errors = served.stop()
    assert code == 0 and "secret" not in errors and "private" not in errors
    lines = [json.loads(line) for line in errors.splitlines()]
    assert any(line["event"] == "request" and line["status"] == 200 and line["id"] for line in lines)


def test_a_lost_device_restarts_the_server_once_and_then_ends_it():
    served = serving("mock:echo?lost_after=2")
    for life in range(2):  # the second is the same process on the same port
        assert wait_until(lambda: refuses_or(lambda: served.request("GET", "/ready")[0] == 200))
        assert [served.chat()[0] for _ in range(2)] == [200, 200], life
        status, _, body = served.chat()
        assert status == 500 and "the device is lost" in body["error"]["message"], life
        assert wait_until(lambda: restarted(served))
    assert served.process.wait(timeout=20) == 1
    errors = served.process.stderr.read()
    assert "restarting" in errors and "a second time: the device is lost: [echo]" in errors


def restarted(served):
    try:
        with open(f"/proc/{served.process.pid}/environ") as variables:
            return "TESSERA_RESTARTED" in variables.read()
    except OSError:  # over
        return True


def refuses_or(condition):
    """False while the server is between two lives."""
    try:
        return condition()
    except OSError:
        return False
