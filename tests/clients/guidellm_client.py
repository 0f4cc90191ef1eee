"""guidellm's load of chat, completions and responses, with prompts and answers of a fixed length.

Arguments: base URL, folder of the tokenizer.
"""

import json
import subprocess
import sys
from pathlib import Path

MODELS = ("base", "toy/plurals")
FORMATS = ("chat/completions", "completions", "responses")

url, tokenizer = sys.argv[1:]
program = str(Path(sys.executable).parent / "guidellm")
results = {}
for model in MODELS:
    for form in FORMATS:
        report = Path(f"{model} {form}.json".replace("/", "-"))
        options = {
            "backend": {
                "kind": "openai_http", "target": url, "model": model,
                "request_format": f"/v1/{form}",
            },
            "profile": {"kind": "concurrent", "streams": [4]},
            "constraint": {"kind": "max_requests", "count": 12},
            "tokenizer": {"kind": "hf_auto", "model": tokenizer},
            "data": {"kind": "synthetic_text", "prompt_tokens": 24, "output_tokens": 8},
            "output": {"kind": "json", "path": str(report)},
        }  # fmt: skip
        command = [program, "run", "--disable-console"]
        for name, value in options.items():
            command += [f"--{name}", json.dumps(value)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        (benchmark,) = json.loads(report.read_text())["benchmarks"]
        results[f"{model} {form}"] = {
            "totals": benchmark["metrics"]["request_totals"],
            "requests": [
                [one["output"], one["output_tokens"]] for one in benchmark["requests"]["successful"]
            ],
        }
print(json.dumps(results))
