"""Clients that nobody wants. The server must answer or cut each of them, and be as it was afterwards."""

import concurrent.futures
import json
import random
import socket
import time

import pytest
from conftest import FULL, SANITIZED, serving, wait_until

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def post(body, extra=b""):
    return HEAD + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chat_body(**fields):
    return json.dumps({"messages": [{"role": "user", "content": "hello"}], **fields}).encode()


@pytest.mark.parametrize("data,status", [
    (b"NONSENSE\r\n\r\n", 400), (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400), (b"GET / HTTP/9.9\r\n\r\n", 400),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20000 + b"\r\n\r\n", 431),
    (HEAD + b"Content-Length: 999999999999\r\n\r\n", 413), (HEAD + b"Content-Length: -1\r\n\r\n", 400), (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400), (HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n", 400),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1" + b";x" * 200000, 400),
    *[(post(body, b"Connection: close\r\n"), 400) for body in (b"", b"{", b"[]", b"\xff\xfe", b"[" * 100000, b'{"messages":' + b"[" * 70 + b"]" * 70 + b"}")],
])
def test_malformed(echo, data, status):
    answer = echo.raw(data)
    first = answer.split(b"\r\n", 1)[0]
    assert first.split(b" ")[1] == str(status).encode(), answer[:300]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert json.loads(body)["error"]["message"]


def test_chunked_body_above_the_bound():
    served = serving("mock:echo", "--max-body-bytes", "1MiB")
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        answer = b""
        try:
            for _ in range(200):
                connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        except OSError:
            pass
        try:
            answer = connection.recv(4096)
        except OSError:
            pass
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert SANITIZED or served.memory_kib() < 200_000
    assert served.stop()[0] == 0


def test_expect_continue(echo):
    body = chat_body()
    with socket.create_connection(("127.0.0.1", echo.port), timeout=10) as connection:
        connection.sendall(HEAD + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 OK")
    refused = echo.raw(HEAD.replace(b"application/json", b"text/plain") + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 415 ")  # and no invitation to send the body


def test_pipelined_requests_are_answered_in_order(echo):
    many = b"".join(post(chat_body(messages=[{"role": "user", "content": f"number {i}"}])) for i in range(50))
    answer = echo.raw(many + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    positions = [answer.index(b'"content":"number %d"' % i) for i in range(50)]
    assert positions == sorted(positions) and answer.count(b"HTTP/1.1 200 OK") == 51


def test_http_1_0_streams_without_chunks(echo):
    body = chat_body(stream=True)
    answer = echo.raw(post(body).replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert answer.startswith(b"HTTP/1.0 200 OK") and b"chunked" not in answer and answer.endswith(b"data: [DONE]\n\n")


def test_slow_headers_and_slow_bodies_are_cut():
    served = serving("mock:echo", "--header-timeout", "0.5", "--body-timeout", "1.0")
    connections = []
    for data in (b"", b"GET / HTTP/1.1\r\nHo", HEAD + b"Content-Length: 100\r\n\r\n{"):
        connection = socket.create_connection(("127.0.0.1", served.port), timeout=10)
        connection.sendall(data)
        connections.append(connection)
    started = time.monotonic()
    answers = []
    for connection in connections:
        data = b""
        while chunk := connection.recv(4096):
            data += chunk
        answers.append(data)
    assert time.monotonic() - started < 8
    assert answers[0] == b"" and answers[1].startswith(b"HTTP/1.1 408 ") and answers[2].startswith(b"HTTP/1.1 408 ")
    for connection in connections: connection.close()
    assert served.stop()[0] == 0


def test_a_client_that_does_not_read_is_cut():
    served = serving("mock:echo?step_us=0&session_len=100000000")
    before = served.memory_kib()
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(post(chat_body(stream=True, ignore_eos=True)))
        wait_until(lambda: served.metric("client_disconnects_total") > 0)
    assert served.metric("client_disconnects_total") == 1
    assert wait_until(lambda: served.metric("num_requests_running") == 0)  # the engine hears of it a step later
    assert SANITIZED or served.memory_kib() - before < 60_000
    assert served.stop()[0] == 0


def test_connections_above_the_bound_get_503():
    served = serving("mock:echo", "--max-connections", "8")
    held = [socket.create_connection(("127.0.0.1", served.port), timeout=10) for _ in range(8)]
    extra = socket.create_connection(("127.0.0.1", served.port), timeout=10)
    assert extra.recv(4096).startswith(b"HTTP/1.1 503 ")
    for connection in held: connection.close()
    extra.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if served.request("GET", "/health")[0] == 200: break
        except OSError:
            pass
        time.sleep(0.05)
    assert served.request("GET", "/health")[0] == 200
    assert served.stop()[0] == 0


def test_256_streams_at_once():
    served = serving("mock:echo?step_us=20000")
    body = post(chat_body(stream=True, ignore_eos=True, max_tokens=50), b"Connection: close\r\n")
    connections = []
    for _ in range(256):
        connection = socket.create_connection(("127.0.0.1", served.port), timeout=60)
        connection.sendall(body)
        connections.append(connection)
    assert served.threads() < 24  # a few threads carry all of them
    for connection in connections:
        data = b""
        while chunk := connection.recv(65536):
            data += chunk
        assert data.count(b'"content":"') == 50 and b"data: [DONE]" in data
        connection.close()
    assert served.stop()[0] == 0


def hostile(random_, served, new_tokens):
    """One client; returns True for a good request that was answered, None for a hostile one, False for a failure."""
    kind = random_.randrange(10)
    words = "".join(random_.choices("abcdefgh é🙂\\\"\n", k=random_.randrange(1, 40)))
    good = chat_body(messages=[{"role": "user", "content": words}], stream=random_.random() < 0.5, max_tokens=new_tokens)
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        try:
            if kind <= 3:  # good
                connection.sendall(post(good, b"Connection: close\r\n"))
                data = b""
                while chunk := connection.recv(65536): data += chunk
                return data.startswith(b"HTTP/1.1 200 ") and (b"[DONE]" in data or b'"finish_reason":"' in data)
            if kind == 4:  # vanishes somewhere in the request
                request = post(good)
                connection.sendall(request[:random_.randrange(len(request))])
            elif kind == 5:  # vanishes somewhere in the answer
                connection.sendall(post(chat_body(stream=True, ignore_eos=True)))
                connection.recv(random_.randrange(1, 2000))
            elif kind == 6:  # broken JSON
                broken = bytearray(good)
                for _ in range(random_.randrange(1, 5)): broken[random_.randrange(len(broken))] = random_.randrange(256)
                connection.sendall(post(bytes(broken), b"Connection: close\r\n"))
                while connection.recv(65536): pass
            elif kind == 7:  # announces too much
                connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % random_.randrange(1 << 27, 1 << 40) + b"x" * 5000)
                connection.recv(65536)
            elif kind == 8:  # a bad picture
                url = "data:image/png;base64," + "".join(random_.choices("ABCD+/=%", k=random_.randrange(0, 200)))
                content = [{"type": "image_url", "image_url": {"url": url}}]
                connection.sendall(post(chat_body(messages=[{"role": "user", "content": content}]), b"Connection: close\r\n"))
                while connection.recv(65536): pass
            else:  # noise
                connection.sendall(bytes(random_.randrange(256) for _ in range(random_.randrange(1, 300))))
        except OSError:
            return False if kind <= 3 else None
    return None


@pytest.mark.parametrize("model,quick", [("mock:echo?step_us=500", 1_500), ("demo", 300)])
def test_many_hostile_clients(model, quick):
    """10,000 with --full, of each engine: no crash, no leak of memory, blocks or connections, every good request answered."""
    count = 10_000 if FULL else quick
    served = serving(model, "--max-connections", "4096", *(("--session-len", "512") if model == "demo" else ()))
    new_tokens = 8 if model == "demo" else 1000
    seeds = [random.Random(i) for i in range(16)]
    work = lambda worker, requests: [hostile(seeds[worker], served, new_tokens) for _ in range(requests)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda worker: work(worker, 20), range(16)))  # pools, buffers and caches fill once
        assert wait_until(served.idle)
        before = served.memory_kib()
        results = [result for batch in pool.map(lambda worker: work(worker, count // 16), range(16)) for result in batch]
    assert False not in results and results.count(True) > count / 4
    assert served.process.poll() is None and served.chat(max_tokens=1)[0] == 200
    assert wait_until(served.idle)
    after = served.memory_kib()
    print(f"{model}: {len(results)} requests, {results.count(True)} good ones answered, resident {before} KiB before, {after} KiB after")
    assert SANITIZED or after - before < 30_000
    code, errors = served.stop()
    assert code == 0, errors
