"""The command line program ``llm`` with models of a server like OpenAI's."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROMPT = "The quick brown fox"

folder = Path(os.environ["LLM_USER_PATH"])
folder.mkdir(exist_ok=True)
models = [
    {"model_id": name, "model_name": model, "api_base": sys.argv[1]}
    for name, model in (("base", "base"), ("plurals", "toy/plurals"))
]
(folder / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML


def ask(*arguments: str) -> str:
    program = [str(Path(sys.executable).parent / "llm"), *arguments, "--key", "none"]
    options = ["-o", "temperature", "0", "-o", "max_tokens", "8"]
    done = subprocess.run([*program, *options, PROMPT], capture_output=True, check=True)
    return done.stdout.decode().removesuffix("\n")


print(
    json.dumps(
        {
            "base": {"chat": ask("-m", "base", "--no-stream"), "stream": ask("-m", "base")},
            "toy/plurals": {
                "chat": ask("-m", "plurals", "--no-stream"),
                "stream": ask("-m", "plurals"),
            },
        }
    )
)
