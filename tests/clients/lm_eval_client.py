"""lm-evaluation-harness with tasks of its three kinds, by its own command.

Arguments: base URL, folder of the tokenizer, a JSON Lines file for each kind of task.
"""

import json
import subprocess
import sys
from pathlib import Path

MODELS = ("base", "toy/plurals")
KINDS = {
    "multiple_choice": """
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: " "
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "generate_until": """
doc_to_text: "{{text}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "loglikelihood_rolling": """
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
}

url, tokenizer, *files = sys.argv[1:]
for (kind, settings), file in zip(KINDS.items(), files, strict=True):
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {json.dumps(file)}}}}}\n"
    names = f"task: {kind}\noutput_type: {kind}\ntest_split: test\n"
    Path(f"{kind}.yaml").write_text(names + data + settings)

results = {}
for model in MODELS:
    settings = {
        "model": model, "base_url": f"{url}/completions", "tokenizer": tokenizer,
        "tokenizer_backend": "huggingface", "num_concurrent": 4,
    }  # fmt: skip
    output = Path("results") / model
    program = [str(Path(sys.executable).parent / "lm_eval"), "run"]
    model_args = ",".join(f"{name}={value}" for name, value in settings.items())
    subprocess.run(
        [*program, "--model", "local-completions", "--model_args", model_args, "--tasks", *KINDS,
         "--include_path", ".", "--log_samples", "--output_path", str(output)],
        check=True, stdout=sys.stderr,
    )  # fmt: skip
    (file,) = output.rglob("results_*.json")
    scores = json.loads(file.read_text())["results"]
    results[model] = {"scores": scores}
    for kind in KINDS:
        (file,) = output.rglob(f"samples_{kind}_*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows.sort(key=lambda row: row["doc_id"])
        results[model][kind] = [[row["arguments"], row["resps"]] for row in rows]
print(json.dumps(results))
