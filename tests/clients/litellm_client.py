"""LiteLLM with the provider "openai": chat, streams, completions, responses and embeddings."""

import json
import sys

import litellm

PROMPT = "The quick brown fox"
MESSAGES = [{"role": "user", "content": PROMPT}]

common = {"api_base": sys.argv[1], "api_key": "none", "num_retries": 0}
result = {}
for model in ("base", "toy/plurals"):
    chat = {**common, "model": f"openai/{model}", "messages": MESSAGES, "temperature": 0}
    chat["max_tokens"] = 8
    answer = litellm.completion(**chat)
    chunks = litellm.completion(**chat, stream=True)
    completion = litellm.text_completion(
        **common, model=f"text-completion-openai/{model}", prompt=PROMPT, temperature=0,
        max_tokens=8,
    )  # fmt: skip
    response = litellm.responses(
        **common, model=f"openai/{model}", input=PROMPT, temperature=0, max_output_tokens=16
    )
    embeddings = litellm.embedding(**common, model=f"openai/{model}", input=[PROMPT, "another"])
    result[model] = {
        "chat": answer.choices[0].message.content,
        "stream": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
        "completion": completion.choices[0].text,
        "response": response.output[0].content[0].text,
        "embeddings": [one["embedding"] for one in embeddings.data],
    }
print(json.dumps(result))
