"""OpenAI's client for Python: every route that it can call here."""

import json
import sys

import openai

PROMPT = "The quick brown fox"
MESSAGES = [{"role": "user", "content": PROMPT}]

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
result = {"models": [model.id for model in client.models.list()]}
for model in ("base", "toy/plurals"):
    chat = {"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": 8}
    answer = client.chat.completions.create(**chat, logprobs=True, top_logprobs=2)
    scores = answer.choices[0].logprobs.content
    chunks = client.chat.completions.create(
        **chat, stream=True, stream_options={"include_usage": True}
    )
    streamed = list(chunks)
    completion = client.completions.create(
        model=model, prompt=PROMPT, echo=True, max_tokens=0, logprobs=1
    )
    response = client.responses.create(
        model=model, input=PROMPT, temperature=0, max_output_tokens=8, store=False
    )
    with client.responses.stream(
        model=model, input=MESSAGES, temperature=0, max_output_tokens=8
    ) as events:
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    embeddings = client.embeddings.create(model=model, input=[PROMPT, "another"])
    result[model] = {
        "chat": answer.choices[0].message.content,
        "bytes": bytes(byte for score in scores for byte in score.bytes).decode(errors="replace"),
        "stream": "".join(
            chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices
        ),
        "stream_tokens": streamed[-1].usage.completion_tokens,
        "tokens": answer.usage.completion_tokens,
        "echo": completion.choices[0].text,
        "logprobs": completion.choices[0].logprobs.token_logprobs,
        "response": response.output_text,
        "response_status": response.status,
        "response_stream": "".join(deltas),
        "embeddings": [one.embedding for one in embeddings.data],
    }
try:
    client.chat.completions.create(model="base", messages=MESSAGES, tools=[{"type": "x"}])
except openai.BadRequestError as error:
    result["refused"] = error.param
print(json.dumps(result))
