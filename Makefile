# What people and CI type. Needs Rust from rustup, make, bash and a C compiler (for SQLite, in the examples).

# Of `make run`: how many processes, and the first of their ports.
NODES ?= 3
HTTP_PORT ?= 8080
GROUP_PORT ?= 7946
# Of `make run-nats`, beside those.
NATS_PORT ?= 4222
# Of `make run-axum-https`: the first of two ports.
HTTPS_PORT ?= 8443

# Of `make chaos`: names of faults (all of them), gets per second of each of five processes, seconds of each fault.
FAULTS ?=
RATE ?= 2000
DURING ?= 30

CARGO ?= cargo
TARGET = $(or $(CARGO_TARGET_DIR),target)

# Debian packages that tests want beyond the above.
PACKAGES = nats-server iproute2 iptables avahi-daemon avahi-utils dbus

.PHONY: help run run-mdns run-nats compose-up compose-down minikube-run minikube-logs minikube-clean run-typed run-custom-provider run-axum-https run-rest-api-cache test lint doc clean deps proto bench bench-hit-ratio bench-memory bench-churn measure-ring interleavings chaos bench-overload fuzz sim sim-build sim-seed mutants

help:
	@echo 'make run              three processes of examples/cluster on loopback that share one cache (NODES=5 for five)'
	@echo 'make run-mdns         the same, found by multicast DNS on loopback'
	@echo 'make run-nats         the same, found over a nats-server that it starts too (NATS_PORT=4222)'
	@echo 'make compose-up       three containers and nginx on 8080 (compose-down; PREBUILT=1 where no registry can be reached)'
	@echo 'make minikube-run     the same on minikube, from an image that it builds (minikube-logs, minikube-clean)'
	@echo 'make run-typed        examples/typed: protobuf messages from a database, by two nodes in one program'
	@echo 'make run-custom-provider  examples/custom-provider: peers from an HTTP endpoint, by a provider in twenty lines'
	@echo 'make run-axum-https   examples/axum-https: two processes in axum, HTTPS for users, mutual TLS for peers (HTTPS_PORT=8443)'
	@echo 'make run-rest-api-cache   examples/rest-api-cache: the API of GitHub behind a cache (GITHUB_API_TOKEN, if there is one)'
	@echo 'make test             all tests, and whether the generated code is up to date; names what it left out'
	@echo 'make lint             formatting, clippy and docs with warnings denied, every feature alone'
	@echo 'make doc              the documentation, in $(TARGET)/doc'
	@echo 'make proto            generates the protocol code again from its .proto file'
	@echo 'make measure-ring     how evenly the ring spreads keys: 200 sets of names of each style and size; how fast it is'
	@echo 'make bench            against memcached, Redis, the crate groupcache 0.3 and bare parts: half an hour, on two cores'
	@echo '                      (BENCH="remote local" for some, ROUNDS=1, SECONDS_EACH=0.3)'
	@echo 'make bench-hit-ratio  how often a get finds its value in memory, against plain LRU of the same bytes'
	@echo 'make bench-memory     what a million entries take, against what is accounted'
	@echo 'make bench-churn      what deploys cost the backend, hand-over on and off and the crate groupcache 0.3: 25 minutes'
	@echo 'make chaos            five processes under load, and fault after fault: ten minutes (FAULTS=kill,cut RATE=2000 DURING=30)'
	@echo 'make bench-overload   an owner asked for ten times what it can load; all peers gone for 30 s'
	@echo 'make fuzz             cargo-fuzz on what anybody may send, a minute for each of seven targets (SECONDS_EACH=60)'
	@echo 'make interleavings    flights, store, view and requests to peers under 10,000 orders of their locks each; part of make test'
	@echo 'make sim              10,000 simulated clusters under faults, judged by the promises (SEEDS=200, FROM=1; builds everything once more)'
	@echo 'make sim-seed SEED=7  one of them, with what happens in it'
	@echo 'make mutants          known bugs, put in one at a time: what finds each, and after how many seeds'
	@echo 'make deps             what tests and lints want beyond the compiler'
	@echo 'make clean            removes what was built'

# Started by make itself, with neither cargo nor a shell in between: signals reach the launcher.
run: export NODES := $(NODES)
run: export HTTP_PORT := $(HTTP_PORT)
run: export GROUP_PORT := $(GROUP_PORT)
run:
	@$(CARGO) build -p cluster
	@$(TARGET)/debug/launch

run-mdns: export NODES := $(NODES)
run-mdns: export HTTP_PORT := $(HTTP_PORT)
run-mdns: export GROUP_PORT := $(GROUP_PORT)
run-mdns: export MDNS := 1
run-mdns: export PROGRAM := cluster-mdns
run-mdns:
	@$(CARGO) build -p cluster -p cluster-mdns
	@$(TARGET)/debug/launch

run-nats: export NODES := $(NODES)
run-nats: export HTTP_PORT := $(HTTP_PORT)
run-nats: export GROUP_PORT := $(GROUP_PORT)
run-nats: export NATS_PORT := $(NATS_PORT)
run-nats: export PROGRAM := cluster-nats
run-nats:
	@$(CARGO) build -p cluster -p cluster-nats
	@$(TARGET)/debug/launch

compose-up compose-down: export PREBUILT := $(PREBUILT)
compose-up:
	@tools/compose up --build --detach

compose-down:
	@tools/compose down --volumes

minikube-run minikube-logs minikube-clean:
	@tools/minikube $(@:minikube-%=%)

run-typed:
	@$(CARGO) run --quiet -p typed

run-custom-provider:
	@$(CARGO) run --quiet -p custom-provider

run-axum-https: export HTTPS_PORT := $(HTTPS_PORT)
run-axum-https:
	@$(CARGO) build -p axum-https
	@examples/axum-https/run $(TARGET)/debug

run-rest-api-cache: export CONFIG ?= examples/rest-api-cache/config.yaml
run-rest-api-cache:
	@$(CARGO) build -p rest-api-cache
	@$(TARGET)/debug/rest-api-cache

test:
	@tools/test

# A measurement, not a test: tools/test leaves it out and says so.
measure-ring:
	$(CARGO) test --release -p groupcache-core --lib -- --ignored --nocapture in_200_sets_of_each_style of_an_owner_and_of_a_ring

# memcached and Redis take part where they are installed; the suite names those that are not.
bench:
	@$(CARGO) build --quiet --release -p bench --bin suite --bin allocations
	@$(TARGET)/release/allocations
	@$(TARGET)/release/suite $(BENCH)

bench-hit-ratio:
	@$(CARGO) run --quiet --release -p bench --bin hit-ratio

bench-memory:
	@$(CARGO) run --quiet --release -p bench --bin memory

# Ten real processes; target/bench/churn.svg is the plot. CHURN="(a)" for one of its parts, WHO=ours for one of the three.
bench-churn:
	@$(CARGO) build --quiet --release -p bench --bin churn
	@$(TARGET)/release/churn $(if $(CHURN),"$(CHURN)")

bench-overload:
	@$(CARGO) run --quiet --release -p bench --bin overload

# Each target of verification/fuzz/ for SECONDS_EACH; `make test` runs the same ones on their inputs and on damaged ones.
fuzz: export SECONDS_EACH ?= 60
fuzz:
	@tools/fuzz

# A build of its own: the locks of the core are other ones. Half a minute on two cores, and three for the build.
interleavings:
	@RUSTFLAGS='--cfg shuttle' $(CARGO) test --profile simulation -p groupcache-core --lib --target-dir $(TARGET)/shuttle interleavings

# The build of the tests: whether gets fail is looked at, and not how fast they could be.
chaos: export FAULTS := $(FAULTS)
chaos: export RATE := $(RATE)
chaos: export DURING := $(DURING)
chaos:
	@$(CARGO) build -p chaos
	@$(TARGET)/debug/chaos

# A build of its own too: sockets, clocks and the order of tasks are simulated.
SIMULATED = RUSTFLAGS='--cfg simulation --cfg tokio_unstable' $(CARGO)
SIMULATED_ARGUMENTS = --profile simulation -p simulation --target-dir $(TARGET)/simulation
SIMULATION = $(TARGET)/simulation/simulation/simulation
SEEDS ?= 10000
FROM ?= 1

sim-build:
	$(SIMULATED) build $(SIMULATED_ARGUMENTS)

sim: sim-build
	$(SIMULATION) same $(FROM) 5
	$(SIMULATION) seeds $(FROM) $(SEEDS)

sim-seed: export VERBOSE := 1
sim-seed: sim-build
	$(SIMULATION) seed $(SEED)

mutants: export CARGO := $(CARGO)
mutants: export TARGET := $(TARGET)
mutants: export SIMULATION := $(SIMULATION)
mutants: sim-build
	@verification/simulation/mutants

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	$(CARGO) clippy -p groupcache-core -- -D warnings
	$(CARGO) clippy -p groupcache-core --features tls -- -D warnings
	$(CARGO) clippy -p groupcache-discovery --no-default-features -- -D warnings
	for feature in static file dns kubernetes mdns nats nats-credentials nats-kv nats-micro tls testing; do \
		$(CARGO) clippy -p groupcache-discovery --no-default-features --features $$feature -- -D warnings || exit 1; done
	$(CARGO) clippy -p discovery-static --all-targets -- -D warnings
	$(CARGO) clippy -p discovery-kubernetes --all-targets -- -D warnings
	$(CARGO) clippy -p discovery-mdns --all-targets -- -D warnings
	$(CARGO) clippy -p discovery-nats --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --all-features --no-deps
	$(CARGO) run --quiet -p codegen -- --check
	$(CARGO) run --quiet -p prose

doc:
	$(CARGO) doc --workspace --all-features --no-deps

proto:
	$(CARGO) run --quiet -p codegen

clean:
	$(CARGO) clean

deps:
	@tools/deps $(PACKAGES)
