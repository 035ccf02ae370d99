# Everything that you do with this project is a target. `make help` lists them.
# They need only Python 3.11+ and make, and install everything else into .venv.

PYTHON ?= python3
BIN := .venv/bin
PORT ?= 8099
IMAGE ?= generation-service

# The tests run in parallel and in a random order.
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install install-dev run test check tools examples samples demo demo-picture torture proto proto-check settings-page simulator bench bench-against bench-curves image sbom lock format lint clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

# These files record that a lock file is installed; a changed lock file is installed again.
.venv/installed: requirements.lock requirements-client.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		-r requirements.lock -r requirements-client.lock
	@echo "$(CURDIR)/client" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/kie_generation.pth"
	@touch $@

.venv/installed-dev: requirements-dev.lock .venv/installed
	@echo "installing the development tools into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

.venv/installed-bench: requirements-bench.lock .venv/installed-dev
	@echo "installing matplotlib into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.lock
	@touch $@

install: .venv/installed  ## Install what the service and its client need into .venv

install-dev: .venv/installed-dev  ## Also install the development tools

run: install  ## Serve on 127.0.0.1:50051; without KIE_API_KEY for a trial with the bundled simulator
	@exec $(BIN)/python -m service

simulator: install  ## Run only the simulator of Kie, on PORT (8099)
	@exec $(BIN)/python -m providers.kie.simulator --port $(PORT)

demo: install  ## Run tasks of four models on a service with the simulator; results in demo-results/
	@$(BIN)/python -m examples.demo

demo-picture: install  ## Record docs/demo.svg from a run of the demo
	@$(BIN)/python -m examples.demo.picture

test: install-dev  ## Run the tests; FILE=tests/unit/test_x.py runs only that file, folder or test
	@$(PYTEST) $(FILE)

check: install-dev lint proto-check samples .tools/grpcurl  ## Run the linters and all tests, as CI does
	@$(PYTEST)

# Go programs that tests use. `make test` never builds them: it skips the tests of those that are missing. promtool without service
# discovery takes half as long to build, and checks rules as well. helm and promtool are built without optimization, which is quicker.
tools: $(patsubst %,.tools/%,$(shell sed 's|.*/||; s|@.*||' tools.txt))  ## Build the tools of tools.txt into .tools/, with Go (minutes)

.tools/%: tools.txt
	@$(call with,go,GOBIN="$(CURDIR)/.tools/new" go install $$(grep "/$*@" tools.txt),mv .tools/new/$* $@ && touch $@)

examples: install-dev samples  ## Build the sample clients in examples/, and run them against the service
	@$(PYTEST) -n 0 -v tests/client/test_examples.py

samples: examples/go/build/example examples/node/node_modules/.package-lock.json examples/java/target/example.jar

PROTO := protos/generation/v1/generation.proto

examples/go/build/example: $(PROTO) $(addprefix examples/go/,main.go follow.go go.mod go.sum buf.gen.yaml) | install-dev
	@cd examples/go && $(call with,go,go mod download,PATH="$(CURDIR)/$(BIN):$$PATH" go generate && go build -buildvcs=false -o build/example)

examples/node/node_modules/.package-lock.json: $(addprefix examples/node/,package.json package-lock.json)
	@$(call with,npm,npm ci --prefix examples/node --ignore-scripts --no-audit --no-fund --silent,touch $@)

examples/java/target/example.jar: $(PROTO) examples/java/pom.xml examples/java/src/main/java/example/Example.java
	@cd examples/java && $(call with,mvn,mvn --quiet --batch-mode generate-sources,mvn --quiet --batch-mode package)

# Make the target with the program $(1): $(2) fetches what it needs, $(3) builds. Without the program, or offline, it is skipped.
with = if ! command -v $(1) >/dev/null; then echo "SKIPPED: $@ is not built, because $(1) is not installed"; \
	else echo "building $@ ..." && if $(2); then $(3); else echo "SKIPPED: $@ is not built, because a download failed"; fi; fi

format: install-dev  ## Format the code, and fix what the linter can fix
	@$(BIN)/ruff check --quiet --fix-only
	@$(BIN)/ruff format --quiet
	@$(BIN)/buf format -w protos

lint: install-dev
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

torture: install-dev  ## Run the long tests: kills, faults, attacks (many minutes)
	@$(PYTEST) -m torture -n 0 -s

bench: .venv/installed-bench  ## Compare the service with a minimal baseline server; results in benchmarks/results.md (17 minutes)
	@$(BIN)/python -m benchmarks
	@$(BIN)/python -m benchmarks.charts

bench-against: install-dev  ## Compare this checkout with an old commit, BASE (three minutes)
	@$(BIN)/python -m benchmarks.against --base "$(BASE)"

bench-curves: .venv/installed-bench  ## Measure how cost grows with rows, tasks and watchers (many minutes)
	@$(BIN)/python -m benchmarks --curves
	@$(BIN)/python -m benchmarks.charts

OUT ?= .

proto: install-dev  ## Generate the messages of the service and of the client from protos/
	@$(BIN)/buf format -w protos
	@$(call generate,generated,generated)
	@$(call generate,client/kie_generation/generated,kie_generation.generated)

# Generate into the folder $(1), which is the Python package $(2). protoc derives the name of the Python module from the path
# of the proto, and writes it into the import of the stubs and into the classes. Both get the module's name in the package.
define generate
mkdir -p $(OUT)/$(1) \
	&& PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos \
		--python_out=$(OUT)/$(1) --mypy_out=quiet:$(OUT)/$(1) \
		--grpc_python_out=$(OUT)/$(1) --mypy_grpc_out=quiet:$(OUT)/$(1) generation/v1/generation.proto \
	&& sed -i.protoc -e "s/^from generation\.v1 import/from $(2).generation.v1 import/" \
		-e "s/'generation\.v1\.generation_pb2'/'$(2).generation.v1.generation_pb2'/" $(OUT)/$(1)/generation/v1/*.py* \
	&& rm $(OUT)/$(1)/generation/v1/*.protoc \
	&& touch $(OUT)/$(1)/py.typed $(addprefix $(OUT)/$(1),$(addsuffix __init__.py,/ /generation/ /generation/v1/))
endef

# The contract keeps its own rules, does not break clients of the published version, and the generated code is up to date.
proto-check: install-dev
	@$(BIN)/buf lint protos
	@$(BIN)/buf format --diff --exit-code protos
	@$(BIN)/buf breaking protos --against protos/published.binpb
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && $(MAKE) --no-print-directory proto OUT="$$tmp" \
		&& for each in generated client/kie_generation/generated; do \
			diff -r --exclude=__pycache__ "$$each" "$$tmp/$$each" || exit; done

settings-page: install-dev  ## Write the settings into docs/settings.md and the schema of the chart
	@$(BIN)/python -m tests.support.settings_page
	@$(BIN)/python -m tests.support.chart_schema

image:  ## Build the container image
	docker build --tag $(IMAGE) .

CYCLONEDX := $(BIN)/uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py

sbom: install-dev  ## List what the image installs, as a CycloneDX SBOM in build/sbom.cdx.json
	@mkdir -p build
	@PYTHONWARNINGS=ignore $(CYCLONEDX) requirements requirements.lock --pyproject pyproject.toml \
		--output-reproducible --output-file build/sbom.cdx.json
	@echo "wrote build/sbom.cdx.json"

PIN := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

lock: install-dev  ## Pin the dependencies again: of the service, the client, the development and the benchmarks
	@$(PIN) pyproject.toml -o requirements.lock
	@$(PIN) --constraint requirements.lock client/pyproject.toml --extra cli -o requirements-client.lock
	@$(PIN) --constraint requirements.lock --constraint requirements-client.lock --group dev -o requirements-dev.lock
	@$(PIN) --constraint requirements.lock --constraint requirements-client.lock --constraint requirements-dev.lock --group bench \
		-o requirements-bench.lock

clean:  ## Remove what the targets created, except databases
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache demo-results .tools build
	@rm -rf examples/go/build examples/go/generation examples/node/node_modules examples/java/target
