"""LangChain's ChatOpenAI, unchanged: over the echo engine, and structured answers over the demo model."""

import asyncio

import pytest
from conftest import data_url, serving
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from openai import BadRequestError
from pydantic import BaseModel, Field


def chat(served, model="echo", **options):
    return ChatOpenAI(base_url=served.url + "/v1", api_key="unused", model=model, max_retries=0, **options)


def test_invoke_stream_batch_and_async(echo):
    answer = chat(echo).invoke([SystemMessage("be brief"), HumanMessage("one"), AIMessage("two"), HumanMessage("hello")])
    assert answer.content == "hello" and answer.usage_metadata["output_tokens"] == 5
    assert answer.response_metadata["finish_reason"] == "stop"
    assert "".join(chunk.content for chunk in chat(echo).stream("streamed")) == "streamed"
    with_usage = list(chat(echo, stream_usage=True).stream("ab"))
    assert [chunk.usage_metadata["output_tokens"] for chunk in with_usage if chunk.usage_metadata] == [2]
    assert [message.content for message in chat(echo).batch(["a", "b", "c"])] == ["a", "b", "c"]

    async def streamed():
        return "".join([chunk.content async for chunk in chat(echo).astream("later")])
    assert asyncio.run(streamed()) == "later"


def test_pictures_and_answers_that_go_back(echo):
    first = chat(echo).invoke("first")
    parts = [{"type": "image_url", "image_url": {"url": data_url(), "detail": "low"}}, {"type": "text", "text": "this?"}]
    assert chat(echo).invoke([HumanMessage("first"), first, HumanMessage(parts)]).content == "this?"
    block = {"type": "image", "base64": data_url().split(",")[1], "mime_type": "image/png"}  # LangChain's own form
    assert chat(echo).invoke([HumanMessage([block, {"type": "text", "text": "and this?"}])]).content == "and this?"


def test_every_option_of_its_own(echo):
    options = dict(temperature=0.5, max_tokens=4, top_p=0.9, seed=3, n=2, stop_sequences=["z"], presence_penalty=0.1, frequency_penalty=0.1,
                   logprobs=True, top_logprobs=2, timeout=30, extra_body={"top_k": 3, "min_p": 0.05, "cache_salt": "s"})
    answer = chat(echo, **options).invoke("hello")
    assert answer.content == "hell" and answer.response_metadata["finish_reason"] == "length"
    assert len(answer.response_metadata["logprobs"]["content"]) == 4
    with pytest.raises(BadRequestError, match="frobnicate"):
        chat(echo, extra_body={"frobnicate": 1}).invoke("hello")


def test_tools_are_refused_by_name(echo):
    with pytest.raises(BadRequestError, match="tools is not supported"):
        chat(echo).bind_tools([{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]).invoke("hello")


class Seen(BaseModel):
    shape: str = Field(description="of the largest thing", max_length=12)
    color: str | None = Field(default=None, max_length=8)
    count: int = Field(ge=0, le=9)


def test_structured_output():
    served = serving("demo", "--session-len", "1024")
    for include_raw in (False, True):
        found = chat(served, "demo", temperature=0).with_structured_output(Seen, method="json_schema", include_raw=include_raw).invoke("What is there?")
        seen = found["parsed"] if include_raw else found
        assert isinstance(seen, Seen) and len(seen.shape) <= 12 and 0 <= seen.count <= 9
    assert served.stop()[0] == 0
