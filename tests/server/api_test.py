"""The API as its clients see it: the openai package, and plain requests where that package hides something."""

import json
import time

import openai
import pytest
from conftest import data_url, serving, with_picture


@pytest.fixture(scope="module")
def client(echo):
    return openai.OpenAI(base_url=echo.url + "/v1", api_key="unused", max_retries=0)


def ask(client, text="hello", **fields):
    return client.chat.completions.create(model="echo", messages=[{"role": "user", "content": text}], **fields)


def test_chat(client):
    answer = ask(client, "hello, wörld 🙂")
    assert answer.choices[0].message.content == "hello, wörld 🙂"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 14 and answer.usage.completion_tokens == 14 and answer.usage.total_tokens == 28
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_streaming_with_usage(client):
    chunks = list(ask(client, "streamed", stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "streamed"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 8
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_streaming_without_usage_has_no_usage(client):
    assert all(c.usage is None for c in ask(client, stream=True))


def test_several_answers(client):
    answer = ask(client, "abc", n=3)
    assert [c.message.content for c in answer.choices] == ["abc"] * 3
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == 9
    texts = ["", "", ""]
    for chunk in ask(client, "abc", n=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["abc"] * 3


def test_limits_and_stops(client):
    assert ask(client, "abcdef", max_tokens=3).choices[0].message.content == "abc"
    assert ask(client, "abcdef", max_completion_tokens=2).choices[0].finish_reason == "length"
    stopped = ask(client, "one two three", stop=["two"])
    assert stopped.choices[0].message.content == "one " and stopped.choices[0].finish_reason == "stop"
    assert ask(client, "ab", extra_body={"ignore_eos": True}, max_tokens=5).choices[0].message.content == "ababa"


def test_logprobs(client):
    content = ask(client, "é", logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert content[0].token == "é" and content[0].bytes == [195, 169] and len(content[0].top_logprobs) == 2
    streamed = [c.choices[0].logprobs for c in ask(client, "ab", logprobs=True, stream=True) if c.choices]
    assert [p.content[0].token for p in streamed if p] == ["a", "b"]
    legacy = client.completions.create(model="echo", prompt="xyz", logprobs=2).choices[0].logprobs
    assert legacy.tokens == ["x", "y", "z"] and legacy.text_offset == [0, 1, 2] and len(legacy.top_logprobs[0]) == 2


def test_completions(client):
    assert client.completions.create(model="echo", prompt="plain").choices[0].text == "plain"
    assert "".join(c.choices[0].text for c in client.completions.create(model="echo", prompt="plain", stream=True)) == "plain"


def test_pictures(client):
    answer = client.chat.completions.create(model="echo", messages=with_picture(data_url(), detail="low"))
    assert answer.usage.prompt_tokens_details.image_tokens == 256
    many = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url(), "max_dynamic_patch": 4}}] * 3
             + [{"type": "text", "text": "three"}]}]
    answer = client.chat.completions.create(model="echo", messages=many, extra_body={"mm_processor_kwargs": {"max_dynamic_patch": 6}})
    assert answer.usage.prompt_tokens_details.image_tokens == 3 * 256
    part = {"type": "image_url", "image_url": {"url": data_url()}}
    turns = [{"role": "user", "content": [part, {"type": "text", "text": "one"}]}, {"role": "assistant", "content": "seen"},
             {"role": "user", "content": [{"type": "text", "text": "two"}, part, {"type": "text", "text": "and"}, part]}]
    answer = client.chat.completions.create(model="echo", messages=turns)
    assert answer.usage.prompt_tokens_details.image_tokens == 3 * 256
    with pytest.raises(openai.UnprocessableEntityError) as failure:  # well-formed, but no picture
        client.chat.completions.create(model="echo", messages=with_picture("data:image/png;base64,AAAA"))
    assert "picture 1" in str(failure.value)
    with pytest.raises(openai.BadRequestError):  # not even a data URL
        client.chat.completions.create(model="echo", messages=with_picture("data:image/png;base64,?"))


def test_conversation_goes_back_as_it_came(client):
    first = ask(client, "one")
    messages = [{"role": "user", "content": "one"}, first.choices[0].message.model_dump(), {"role": "user", "content": "two"}]
    assert client.chat.completions.create(model="echo", messages=messages).choices[0].message.content == "two"


def test_response_format_reaches_the_engine(client):
    answer = ask(client, 'say "hi"', response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content) == {"echo": 'say "hi"'}
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True}}
    with pytest.raises(openai.BadRequestError):  # the echo engine says that it has no grammar
        ask(client, response_format=schema)


def test_what_langchain_sends(echo):
    """The body of ChatOpenAI (langchain-openai 1.7) with its sampling options set, streamed and in a structured form."""
    body = {"model": "echo", "presence_penalty": 0.1, "frequency_penalty": 0.1, "seed": 3, "top_p": 0.9, "logprobs": True, "top_logprobs": 1,
            "stop": ["b"], "n": 1, "temperature": 0.5, "user": "u", "max_completion_tokens": 5, "top_k": 3,
            "messages": [{"content": "s", "role": "system"}, {"content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": data_url()}}], "role": "user"},
                         {"content": "a", "role": "assistant"}, {"content": "h", "role": "user"}]}
    status, _, answer = echo.chat(**body, stream=False)
    assert status == 200 and answer["choices"][0]["message"]["content"] == "h"
    status, _, text = echo.request("POST", "/v1/chat/completions", {**body, "stream": True, "stream_options": {"include_usage": True}})
    assert status == 200 and text.rstrip().endswith(b"data: [DONE]") and b'"total_tokens"' in text
    assert echo.chat(**body, stream=False, response_format={"type": "json_object"})[0] == 200


def test_models(client):
    assert [m.id for m in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").id == "echo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])


def test_tokenize(echo):
    status, _, body = echo.request("POST", "/tokenize", {"prompt": "hé", "return_token_strs": True})
    assert status == 200 and json.loads(body)["tokens"] == [104, 233] and json.loads(body)["token_strs"] == ["h", "é"]
    status, _, body = echo.request("POST", "/tokenize", {"messages": with_picture(data_url(), "ab")})
    assert json.loads(body)["count"] == 258
    status, _, body = echo.request("POST", "/detokenize", {"tokens": [104, 233]})
    assert json.loads(body) == {"prompt": "hé"}


@pytest.mark.parametrize("fields,param", [
    ({"temperature": 2.5}, "temperature"), ({"temperature": "1"}, "temperature"), ({"top_p": 0}, "top_p"), ({"top_k": -2}, "top_k"),
    ({"n": 17}, "n"), ({"n": 0}, "n"), ({"max_tokens": 0}, "max_tokens"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 1}, "top_logprobs"), ({"stop": ["x"] * 17}, "stop"), ({"stop": [""]}, "stop"), ({"seed": 1.5}, "seed"),
    ({"logit_bias": {"x": 1}}, "logit_bias"), ({"logit_bias": {"1": 101}}, "logit_bias"), ({"presence_penalty": 3}, "presence_penalty"),
    ({"tools": [{}]}, "tools"), ({"store": True}, "store"), ({"frobnicate": 1}, "frobnicate"), ({"stream_options": {}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"), ({"mm_processor_kwargs": {"max_dynamic_patch": 129}}, "mm_processor_kwargs.max_dynamic_patch"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"), ({"messages": []}, "messages"), ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"), ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
    ({"messages": with_picture("ftp://x/y")}, "messages[0].content[0].image_url.url"), ({"messages": with_picture("http://127.0.0.1/y")}, "messages[0].content[0].image_url.url"),
    ({"messages": with_picture("file:///etc/passwd")}, "messages[0].content[0].image_url.url"), ({"messages": with_picture(data_url(), detail="max")}, "messages[0].content[0].image_url.detail"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url()}}] * 65}]}, "messages[0].content[64].image_url.url"),
    ({"markup_tokens": ["img"]}, "markup_tokens"), ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
])
def test_what_is_wrong_is_named(echo, fields, param):
    status, _, body = echo.chat(**fields)
    assert status == 400 and body["error"]["param"] == param, body
    assert body["error"]["type"] == "invalid_request_error" and "\n" not in body["error"]["message"]


def test_fields_without_effect(echo):
    assert echo.chat(user="u", metadata={"a": "b"}, store=False, parallel_tool_calls=True, service_tier="auto", temperature=None)[0] == 200


def test_lenient_names_what_it_ignores():
    served = serving("mock:echo", "--lenient")
    status, headers, _ = served.chat(frobnicate=1, messages=[{"role": "user", "content": "x", "name": "n"}])
    assert status == 200 and headers["X-Tessera-Ignored-Fields"] == "messages[0].name, frobnicate"
    assert served.chat(tools=[{}])[0] == 400
    assert served.stop()[0] == 0


def test_request_ids(echo):
    assert echo.request("GET", "/health", headers={"X-Request-Id": "my-id.1"})[1]["X-Request-Id"] == "my-id.1"
    odd = echo.request("GET", "/health", headers={"X-Request-Id": "a b<c>"})[1]["X-Request-Id"]
    assert len(odd) == 32


def test_methods_and_paths(echo):
    assert echo.request("GET", "/nothing")[0] == 404
    status, headers, _ = echo.request("GET", "/v1/chat/completions")
    assert status == 405 and headers["Allow"] == "POST, OPTIONS"
    status, headers, body = echo.request("OPTIONS", "/v1/models")
    assert status == 204 and "GET" in headers["Allow"] and body == b""
    status, headers, body = echo.request("HEAD", "/health")
    assert status == 200 and int(headers["Content-Length"]) > 0 and body == b""
    assert echo.request("POST", "/tokenize", b"{}", {"Content-Type": "text/plain"})[0] == 415
    assert echo.request("POST", "/tokenize", b"{}", {"Content-Encoding": "gzip"})[0] == 415
    assert echo.request("GET", "/health", headers={"Host": "evil.example"})[0] == 400


def test_deadline(echo):
    started = time.monotonic()
    status, _, body = echo.request("POST", "/v1/chat/completions",
                                   {"messages": [{"role": "user", "content": "x"}], "ignore_eos": True}, {"X-Request-Timeout": "0.2"})
    assert status == 408 and time.monotonic() - started < 25
    assert json.loads(body)["error"]["code"] == "deadline_exceeded"


def test_a_prompt_that_does_not_fit(echo):
    status, _, body = echo.chat(messages=[{"role": "user", "content": "x" * 9000}])
    assert status == 400 and body["error"]["code"] == "context_length_exceeded"


def test_failures_in_the_middle():
    served = serving("mock:echo?fail_after=3")
    assert served.chat()[0] == 500
    client = openai.OpenAI(base_url=served.url + "/v1", api_key="x", max_retries=0)
    text = ""
    with pytest.raises(openai.APIError):
        for chunk in ask(client, "abcdef", stream=True):
            text += chunk.choices[0].delta.content or ""
    assert text == "abc"
    assert served.stop()[0] == 0


def test_metrics(echo):
    before = echo.metric("generation_tokens_total")
    assert echo.chat(max_tokens=4)[0] == 200
    assert echo.metric("generation_tokens_total") == before + 4
    text = echo.request("GET", "/metrics")[2].decode()
    for name in ("time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket", "num_requests_running", "num_requests_waiting",
                 "kv_cache_usage_perc", "prefix_cache_hits_total", "mm_cache_hits_total", "memory_planned_bytes", "tiles_encoded_total"):
        assert f"tessera:{name}{{" in text, name
    for i in range(3): echo.request("GET", f"/made-up-{i}")
    text = echo.request("GET", "/metrics")[2].decode()
    assert "made-up" not in text and 'path="other",status="404"' in text  # clients can't make series
    families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(families) == len(set(families))
