# The two commands of the README are `make demo` and `make test`. Each makes its own virtual environment.
PYTHON ?= python3
DEMO := .venv
TEST := .venv-test
SCENARIOS := sextant/studies/scenarios
MEASURED := sextant/validate/data/measured
H200 := --device h200 --out sextant/hwmodels/fits/h200.yaml
.PHONY: demo test lint bench figures fits clean

$(DEMO)/installed: pyproject.toml
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(TEST)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TEST)
	$(TEST)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[torch,test]"
	touch $@

demo: $(DEMO)/installed  ## DeepSeek-V3 on 2,048 H800: the training step, then a decode step
	$(DEMO)/bin/sextant run $(SCENARIOS)/deepseek_v3_h800_training.yaml --out results/deepseek_v3_h800_training
	$(DEMO)/bin/sextant run $(SCENARIOS)/deepseek_v3_h800_decode.yaml --out results/deepseek_v3_h800_decode

test: $(TEST)/installed  ## the whole suite
	$(TEST)/bin/python -m pytest $(PYTEST_ARGS)

lint: $(TEST)/installed  ## style, types, import contracts
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/lint-imports
	$(TEST)/bin/pyright

bench: $(TEST)/installed  ## speed, measured
	$(TEST)/bin/python -m pytest tests/benchmarks --benchmark-enable --benchmark-only --benchmark-columns=min,median,rounds

figures: $(DEMO)/installed  ## the README's figure and error table, from fresh runs
	$(DEMO)/bin/python -m sextant.studies.readme README.md docs/figures

fits: $(DEMO)/installed  ## the coefficients of the H200, from its shipped measurements; products first, others rest on them
	$(DEMO)/bin/sextant fit gemm $(MEASURED)/h200_kernels.csv $(MEASURED)/h200_between.csv $(H200)
	$(DEMO)/bin/sextant fit wgrad $(MEASURED)/h200_fp8_wgrad.csv $(H200)
	$(DEMO)/bin/sextant fit memory $(MEASURED)/h200_kernels.csv $(MEASURED)/h200_between.csv $(MEASURED)/h200_routing.csv $(H200)
	$(DEMO)/bin/sextant fit moe $(MEASURED)/h200_kernels.csv $(MEASURED)/h200_between.csv $(H200)
	$(DEMO)/bin/sextant fit attention $(MEASURED)/h200_kernels.csv $(MEASURED)/h200_between.csv $(MEASURED)/h200_deepseek_v3.csv $(H200)
	$(DEMO)/bin/sextant fit mhc $(MEASURED)/h200_kernels.csv $(MEASURED)/h200_between.csv $(MEASURED)/h200_streams.csv $(H200)
	$(DEMO)/bin/sextant fit gather $(MEASURED)/h200_kernels.csv $(MEASURED)/h200_between.csv $(H200)
	$(DEMO)/bin/sextant fit fetch $(MEASURED)/h200_fetch.csv $(MEASURED)/h200_resident.csv $(H200)
	$(DEMO)/bin/sextant fit conv2d $(MEASURED)/h200_kernels.csv $(MEASURED)/h200_between.csv $(H200)
	$(DEMO)/bin/sextant fit host_copy $(MEASURED)/h200_kernels.csv $(MEASURED)/h200_between.csv $(H200)

clean:
	rm -rf $(DEMO) $(TEST) results build *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
