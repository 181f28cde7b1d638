# Everything sets itself up: python3 and make are all that has to be there.
PYTHON ?= python3
BIN := .venv/bin
export MPLBACKEND := Agg

.PHONY: help train test style tests quick lint pretrained pretrained-events pretrained-cifar10 notebooks notebooks-test lab docs serve serve-zh

help:
	@echo "make train   train the small Spikformer on real digits (ARGS='--epochs 5' and so on)"
	@echo "make test    every test: style, code, notebooks (each alone: make style, tests, notebooks-test)"
	@echo "make quick   the tests that take seconds"
	@echo "make lab     Jupyter opens on the first chapter"
	@echo "make notebooks   run every script in tutorials/src and write its notebook (ARGS='05' for one chapter)"
	@echo "make serve   the documentation at http://127.0.0.1:8000 (make docs: into site/)"
	@echo "make serve-zh   the Chinese pages anew, after make docs, and both editions at http://127.0.0.1:8000/zh/"
	@echo "make lint    style, put right where a tool can do it"
	@echo "make pretrained   train the packaged digits model anew (pretrained-events: the two of simulated events,"
	@echo "                  pretrained-cifar10: cifar10-2-128, two hours)"

.venv/package: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/dev: .venv/package
	$(BIN)/pip install --quiet --editable ".[dev,benchmark,docs]"
	@touch $@

train: .venv/package
	$(BIN)/python -m spikformer_edu.train $(ARGS)

# All three run, whichever fails; make then fails too and names them.
test: .venv/dev
	$(MAKE) --keep-going style tests notebooks-test

style: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

tests: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 $(ARGS)

quick: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow" $(ARGS)

lab: .venv/dev
	env -u MPLBACKEND $(BIN)/jupyter lab tutorials/00_tour.ipynb

notebooks: .venv/dev
	$(BIN)/python tutorials/build.py $(ARGS)

# Runs every cell of every chapter and compares what it prints with what is committed.
notebooks-test: .venv/dev
	env -u MPLBACKEND -u SPIKFORMER_DATA OMP_NUM_THREADS=1 $(BIN)/pytest --nbval --nbval-current-env \
		--nbval-cell-timeout=300 --nbval-sanitize-with=tests/nbval.cfg -n 2 --dist loadfile tutorials/

.venv/docs: .venv/package
	$(BIN)/pip install --quiet --editable ".[docs]"
	@touch $@

# English, then Chinese, which uses its files and lies below zh/.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs.zh.yml

serve: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# The Chinese pages anew, after `make docs`, and both editions to look at.
serve-zh: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs.zh.yml
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory site

lint: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy spikformer_edu

# The CIFAR-10 model that comes with the package: one time step first, then four. About two hours on two cores.
CIFAR10 := --dataset cifar10 --model cifar10-2-128 --cooldown-epochs 0 --batch-size 64 --lr-batch-size 64 --precision bf16 \
	--val-fraction 0.04 --augment.randaugment 0 --augment.erasing 0 --augment.mixup 0 --augment.crop-padding 4 \
	--device cpu --no-figures
RESUME = $(if $(wildcard $(1)/resume.pt),--resume)
pretrained-cifar10: .venv/package
	$(BIN)/python -m spikformer_edu.train $(CIFAR10) --time-steps 1 --epochs 26 --warmup-epochs 1 --lr 0.0015 \
		--out runs/cifar10-t1 $(call RESUME,runs/cifar10-t1)
	$(BIN)/python -m spikformer_edu.train $(CIFAR10) --init-from runs/cifar10-t1 --epochs 1 --warmup-epochs 0 --lr 0.0005 \
		--out runs/cifar10-t4 $(call RESUME,runs/cifar10-t4)
	cd runs/cifar10-t1 && cp config.json metrics.csv results.json ../../docs/results/cifar10-2-128-t1/
	cd runs/cifar10-t4 && cp config.json metrics.csv results.json best.safetensors ../../spikformer_edu/pretrained/cifar10-2-128/
	$(BIN)/python docs/results/cifar10.py cifar10-2-128
	$(BIN)/python docs/figures.py

# The model that comes with the package, and the figures in the README.
pretrained: .venv/package
	rm -rf runs/pretrained
	OMP_NUM_THREADS=1 $(BIN)/python -m spikformer_edu.train --dataset digits --out runs/pretrained --device cpu --no-figures
	cd runs/pretrained && cp config.json metrics.csv results.json best.safetensors ../../spikformer_edu/pretrained/digits-2-64/
	$(BIN)/python -m spikformer_edu.visualize --checkpoint digits-2-64 --index 3 --out runs/pretrained/figures
	cp runs/pretrained/figures/atlas.png runs/pretrained/figures/attention_over_time.png docs/images/

# The two networks for simulated events: which digit, and which way it goes round.
pretrained-events: .venv/package
	for data in digits-dvs digits-motion; do \
		rm -rf runs/$$data && \
		OMP_NUM_THREADS=1 $(BIN)/python -m spikformer_edu.train --dataset $$data --out runs/$$data --device cpu --no-figures && \
		mkdir -p spikformer_edu/pretrained/$$data-2-64 && \
		cp runs/$$data/config.json runs/$$data/metrics.csv runs/$$data/results.json runs/$$data/best.safetensors \
			spikformer_edu/pretrained/$$data-2-64/ || exit 1; \
	done
