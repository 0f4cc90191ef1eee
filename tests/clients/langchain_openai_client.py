"""LangChain's OpenAI classes: chat, streams, batches, completions, responses and embeddings."""

import json
import sys

from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

PROMPT = "The quick brown fox"

common = {"base_url": sys.argv[1], "api_key": "none", "max_retries": 0}
result = {}
for model in ("base", "toy/plurals"):
    sampling = {"model": model, "temperature": 0, "max_tokens": 8}
    chat = ChatOpenAI(**common, **sampling)
    responses = ChatOpenAI(**common, **sampling, use_responses_api=True)
    embeddings = OpenAIEmbeddings(**common, model=model, check_embedding_ctx_length=False)
    result[model] = {
        "chat": chat.invoke([("human", PROMPT)]).content,
        "system": chat.invoke([("system", "Be brief."), ("human", PROMPT)]).content,
        "stream": "".join(chunk.content for chunk in chat.stream([("human", PROMPT)])),
        "batch": [message.content for message in chat.batch([PROMPT, "another"])],
        "completion": OpenAI(**common, **sampling).invoke(PROMPT),
        "response": responses.invoke([("human", PROMPT)]).text,
        "response_stream": "".join(chunk.text for chunk in responses.stream([("human", PROMPT)])),
        "embeddings": embeddings.embed_documents([PROMPT, "another"]),
    }
print(json.dumps(result))
