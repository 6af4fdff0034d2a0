#!/usr/bin/env python3
"""What the `openai` package makes of `smq-run serve`: a transcript, and a check of each step.

    openai_client.py --url http://HOST:PORT

Chats, streams, completions with log-probabilities, a JSON schema, errors by their classes, and
cancellation, each printed and asserted; ends with the number of checks. Needs `pip install openai`.
"""

import argparse
import json
import time
import urllib.request

import openai
from openai import OpenAI

CHECKS = 0


def check(what, truth):
    global CHECKS
    assert truth, what
    CHECKS += 1
    print(f"  ok: {what}")


def metric(url, name, label=""):
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    lines = [line for line in text.splitlines() if line.startswith(name + "{") and label in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def wait(url, name, value):
    start = time.monotonic()
    while metric(url, name) != value:
        assert time.monotonic() - start < 60, (name, metric(url, name))
        time.sleep(0.01)
    return time.monotonic() - start


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    url = parser.parse_args().url
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    print(f"openai {openai.__version__}")

    models = client.models.list()
    model = models.data[0].id
    print(f"models.list: {[m.id for m in models.data]}")
    check("models.retrieve", client.models.retrieve(model).id == model)

    messages = [{"role": "user", "content": "What is the capital of France?"}]
    chat = client.chat.completions.create(
        model=model, messages=messages, max_completion_tokens=24, temperature=0
    )
    whole = chat.choices[0].message.content
    print(
        f"chat: {whole!r}, {chat.choices[0].finish_reason},"
        f" {chat.usage.prompt_tokens} + {chat.usage.completion_tokens} tokens"
    )
    check(
        "a chat has text and usage",
        whole
        and chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens,
    )

    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=messages,
            max_completion_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    joined = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    print(f"chat, streamed: {len(chunks)} chunks")
    check("the stream is the whole", joined == whole)
    check(
        "usage comes last",
        chunks[-1].usage.total_tokens == chat.usage.total_tokens and not chunks[-1].choices,
    )

    logged = client.chat.completions.create(
        model=model,
        messages=messages,
        max_completion_tokens=4,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    for entry in logged.choices[0].logprobs.content:
        top = [(t.token, round(t.logprob, 4)) for t in entry.top_logprobs]
        print(f"  {entry.token!r} {entry.logprob:.4f}, top {top}")
    check(
        "the greedy token is the most likely",
        all(e.top_logprobs[0].token == e.token for e in logged.choices[0].logprobs.content),
    )

    samples = dict(
        model=model, messages=messages, max_completion_tokens=12, temperature=1.0, seed=11, n=3
    )
    first, second = (client.chat.completions.create(**samples) for _ in range(2))
    texts = [c.message.content for c in first.choices]
    print(f"chat, n=3, seed=11: {texts}")
    check("a seed repeats itself", texts == [c.message.content for c in second.choices])

    completion = client.completions.create(
        model=model,
        prompt=["Once upon a time", "The sun"],
        max_tokens=8,
        temperature=0,
        logprobs=1,
        echo=True,
    )
    print(f"completions, two prompts, echo: {[c.text for c in completion.choices]}")
    check("two prompts, two choices", [c.index for c in completion.choices] == [0, 1])
    check("the prompt comes back", completion.choices[0].text.startswith("Once upon a time"))
    check(
        "the first token has no log-probability",
        completion.choices[0].logprobs.token_logprobs[0] is None,
    )
    streamed = client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=8, temperature=0, stream=True
    )
    joined = "".join(c.choices[0].text for c in streamed)
    check(
        "a streamed completion is the whole",
        "Once upon a time" + joined == completion.choices[0].text,
    )
    stop = joined.split()[2]
    stopped = client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=8, temperature=0, stop=[stop]
    )
    check(f"stop {stop!r} is left out", stopped.choices[0].text == joined[: joined.index(stop)])
    extra = client.completions.create(
        model=model,
        prompt="Once upon a time",
        max_tokens=6,
        temperature=0,
        extra_body={"ignore_eos": True, "min_tokens": 6, "top_k": 5},
    )
    check("fields beyond OpenAI's", extra.usage.completion_tokens == 6)

    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "population": {"type": "integer", "minimum": 0, "maximum": 99999999},
        },
        "required": ["city", "population"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=model,
        messages=messages,
        max_completion_tokens=80,
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": schema, "strict": True},
        },
    )
    print(f"chat, JSON schema: {answer.choices[0].message.content}")
    value = json.loads(answer.choices[0].message.content)
    check(
        "the schema is kept to",
        set(value) == {"city", "population"} and isinstance(value["population"], int),
    )

    print("errors:")
    for what, kind, call in [
        (
            "an unknown model",
            openai.NotFoundError,
            lambda: client.chat.completions.create(model="gpt-4", messages=messages),
        ),
        (
            "a temperature of 3",
            openai.BadRequestError,
            lambda: client.chat.completions.create(model=model, messages=messages, temperature=3),
        ),
        (
            "a suffix",
            openai.BadRequestError,
            lambda: client.completions.create(model=model, prompt="a", suffix="b"),
        ),
        (
            "an image",
            openai.BadRequestError,
            lambda: client.chat.completions.create(
                model=model,
                messages=[
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
                ],
            ),
        ),
        (
            "a prompt over the context",
            openai.BadRequestError,
            lambda: client.completions.create(model=model, prompt=[5] * 100000),
        ),
        (
            "another path",
            openai.NotFoundError,
            lambda: client.embeddings.create(model=model, input="a"),
        ),
    ]:
        try:
            call()
            check(f"{what} is refused", False)
        except kind as error:
            body = error.body or {}
            print(
                f"  {what}: {type(error).__name__} {error.status_code}"
                f" param={body.get('param')} code={body.get('code')}: {body.get('message')}"
            )
            check(f"{what} has the error's class", True)

    print("cancellation:")
    aborted = metric(url, "vllm:request_success_total", "abort")
    stream = client.completions.create(
        model=model,
        prompt="Once upon a time",
        max_tokens=2000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    for _, chunk in zip(range(3), stream):
        pass
    stream.close()
    took = wait(url, "vllm:num_requests_running", 0)
    print(f"  a stream that was closed after 3 chunks: no sequence runs {took * 1e3:.0f} ms later")
    wait(url, "vllm:kv_cache_usage_perc", 0)
    check("its pages are free", True)
    try:
        client.completions.create(
            model=model,
            prompt="Once upon a time",
            max_tokens=8000,
            timeout=0.3,
            extra_body={"ignore_eos": True},
        )
        check("it takes longer than 0.3 s", False)
    except openai.APITimeoutError:
        took = wait(url, "vllm:num_requests_running", 0)
        print(f"  a request given up after 0.3 s: no sequence runs {took * 1e3:.0f} ms later")
    check(
        "both count as aborted", metric(url, "vllm:request_success_total", "abort") == aborted + 2
    )
    print(f"{CHECKS} checks")


if __name__ == "__main__":
    main()
