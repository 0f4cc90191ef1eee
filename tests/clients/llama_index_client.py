"""LlamaIndex's class for servers like OpenAI's: chat, streams and completions."""

import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

PROMPT = "The quick brown fox"

result = {}
for model in ("base", "toy/plurals"):
    common = {
        "model": model, "api_base": sys.argv[1], "api_key": "none", "temperature": 0,
        "max_tokens": 8, "max_retries": 0,
    }  # fmt: skip
    chat = OpenAILike(**common, is_chat_model=True)
    messages = [ChatMessage(role="user", content=PROMPT)]
    result[model] = {
        "chat": chat.chat(messages).message.content,
        "stream": "".join(chunk.delta or "" for chunk in chat.stream_chat(messages)),
        "completion": OpenAILike(**common, is_chat_model=False).complete(PROMPT).text,
    }
print(json.dumps(result))
