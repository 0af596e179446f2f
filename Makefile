# Commands for people and CI. Needs Rust from rustup, make, bash and a C compiler (for SQLite, in the examples).

# Options of `make run`: number of processes, and the first port of each kind.
NODES ?= 3
HTTP_PORT ?= 8080
GROUP_PORT ?= 7946
# Further option of `make run-nats`.
NATS_PORT ?= 4222
# Option of `make run-axum-https`: the first of two ports.
HTTPS_PORT ?= 8443

# Options of `make chaos`: names of faults (empty: all), gets per second of each of five processes, seconds per fault,
# seconds before and after it, and the bound on staleness in seconds of the group that has one.
FAULTS ?=
RATE ?= 2000
DURING ?= 30
BEFORE ?= 5
AFTER ?= 5
BOUND ?= 10

CARGO ?= cargo
TARGET = $(or $(CARGO_TARGET_DIR),target)

# Debian packages that tests need beyond the tools named above.
PACKAGES = nats-server iproute2 iptables avahi-daemon avahi-utils dbus prometheus

.PHONY: help run run-mdns run-nats compose-up compose-down minikube-run minikube-logs minikube-clean run-typed run-custom-provider run-axum-https run-rest-api-cache check test verify compat lint doc clean deps proto bench bench-hit-ratio bench-memory bench-churn measure-ring interleavings chaos bench-overload bench-blocked fuzz sim sim-build sim-seed mutants model

help:
	@echo 'make run              runs three processes of examples/cluster on loopback that share one cache (NODES=5 for five)'
	@echo 'make run-mdns         runs the same processes with discovery by multicast DNS on loopback'
	@echo 'make run-nats         starts a nats-server and runs the same processes with discovery over NATS (NATS_PORT=4222)'
	@echo 'make compose-up       runs three containers and nginx on 8080 (end: compose-down; without a registry: PREBUILT=1)'
	@echo 'make minikube-run     builds an image and runs three pods on minikube (then minikube-logs, minikube-clean)'
	@echo 'make run-typed        runs examples/typed: protobuf messages from a database, with two nodes in one program'
	@echo 'make run-custom-provider  runs examples/custom-provider: peers from an HTTP endpoint, with a provider of 20 lines'
	@echo 'make run-axum-https   runs examples/axum-https: two processes, HTTPS for users, mutual TLS for peers (HTTPS_PORT=8443)'
	@echo 'make run-rest-api-cache   runs examples/rest-api-cache: the API of GitHub behind a cache (optional: GITHUB_API_TOKEN)'
	@echo 'make check            checks formatting, clippy and unit tests: before each commit'
	@echo 'make test             runs all tests side by side, checks that generated code is up to date, names tests left out'
	@echo 'make verify           runs the slower proofs: interleavings, 200 seeds, each fault for 5 s, compose, a bench smoke run'
	@echo 'make compat           runs processes of an older commit and of this one in one cluster'
	@echo 'make lint             checks formatting, clippy and docs with warnings denied, each feature alone, and prose'
	@echo 'make doc              writes the documentation to $(TARGET)/doc'
	@echo 'make proto            generates the protocol code from its .proto file'
	@echo 'make measure-ring     measures the speed of the ring and its spread of keys (200 sets of names per style and size)'
	@echo 'make bench            compares with memcached, Redis, the crate groupcache 0.3 and bare parts: 30 minutes on two cores'
	@echo '                      (BENCH="remote local" for a selection, ROUNDS=1, SECONDS_EACH=0.3)'
	@echo 'make bench-hit-ratio  measures the share of gets that memory answers, against plain LRU of the same bytes'
	@echo '                      (TRACES=folder for recorded requests, against other policies and the optimum)'
	@echo 'make bench-memory     compares the memory of a million entries with the accounted bytes'
	@echo 'make bench-churn      measures backend loads in deploys, with hand-over, without, and with groupcache 0.3: 25 minutes'
	@echo 'make chaos            runs five processes under load and faults, 13 minutes (FAULTS=kill,cut RATE=2000 DURING=30)'
	@echo 'make bench-overload   requests ten times the load capacity of an owner, and takes all peers away for 30 s'
	@echo 'make bench-blocked    measures hits at an owner with blocked workers, with and without threads of the node: a minute'
	@echo 'make fuzz             runs cargo-fuzz on untrusted input, one minute per target for seven targets (SECONDS_EACH=60)'
	@echo 'make interleavings    tests flights, store, view and requests to peers under 10,000 lock orders each; part of make verify'
	@echo 'make sim              simulates 10,000 clusters under faults, judged by the promises, in a separate build (SEEDS=200, FROM=1)'
	@echo 'make sim-seed SEED=7  simulates one cluster and prints its events'
	@echo 'make mutants          puts in known bugs one at a time, and prints which check finds each and after how many seeds'
	@echo 'make model            plays larger scenes of the model of the write protocol, and prints its tables: 5 minutes'
	@echo 'make deps             installs packages and components that tests and lints need beyond the compiler'
	@echo 'make clean            removes the build output'

# Make starts the launcher directly, without cargo or a shell in between, so that signals reach the launcher.
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

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) nextest run --workspace --all-features --lib --bins

test:
	@tools/test

verify: export CARGO := $(CARGO)
verify:
	@tools/verify

compat:
	@verification/compat

# Measurements, no tests: tools/test leaves them out and names them.
measure-ring:
	$(CARGO) test --release -p groupcache-core --lib -- --ignored --nocapture in_200_sets_of_each_style owner_lookup_and_ring_build_are_measured

# memcached and Redis take part where they are installed. The suite names a missing one.
bench:
	@$(CARGO) build --quiet --release -p bench --bin suite --bin allocations
	@$(TARGET)/release/allocations
	@$(TARGET)/release/suite $(BENCH)

bench-hit-ratio:
	@$(CARGO) run --quiet --release -p bench --bin hit-ratio -- $(TRACES)

bench-memory:
	@$(CARGO) run --quiet --release -p bench --bin memory

# Runs ten real processes and writes the plot target/bench/churn.svg. `CHURN="(a)"` selects one part, `WHO=ours` one of
# the three contestants.
bench-churn:
	@$(CARGO) build --quiet --release -p bench --bin churn
	@$(TARGET)/release/churn $(if $(CHURN),"$(CHURN)")

bench-overload:
	@$(CARGO) run --quiet --release -p bench --bin overload

bench-blocked:
	@$(CARGO) run --quiet --release -p bench --bin blocked

# Runs each target of verification/fuzz/ for SECONDS_EACH. `make test` runs the same targets on checked-in inputs and on
# damaged copies.
fuzz: export SECONDS_EACH ?= 60
fuzz:
	@tools/fuzz

# A separate build, because the core uses the locks of a checker. Takes 30 s on two cores, and 3 minutes for the build.
interleavings:
	@RUSTFLAGS='--cfg shuttle' $(CARGO) test --profile simulation -p groupcache-core --lib --target-dir $(TARGET)/shuttle interleavings

# Uses the build of the tests, because the run checks whether gets fail and not how fast they are.
chaos: export FAULTS := $(FAULTS)
chaos: export RATE := $(RATE)
chaos: export DURING := $(DURING)
chaos: export BEFORE := $(BEFORE)
chaos: export AFTER := $(AFTER)
chaos: export BOUND := $(BOUND)
chaos:
	@$(CARGO) build -p chaos
	@$(TARGET)/debug/chaos

# A separate build too, in which sockets, clocks and the order of tasks are simulated.
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

# The tests play the small scenes. `MODEL="'two reads' 'horizon first'"` plays one of them without a rule.
model:
	@$(CARGO) run --quiet --release -p model -- $(MODEL)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	$(CARGO) clippy -p groupcache-core -- -D warnings
	$(CARGO) clippy -p groupcache-core --features tls -- -D warnings
	$(CARGO) clippy -p groupcache-discovery --no-default-features -- -D warnings
	for feature in static file dns kubernetes mdns nats nats-credentials nats-kv nats-micro tls testing; do \
		$(CARGO) clippy -p groupcache-discovery --no-default-features --features $$feature -- -D warnings || exit 1; done
	$(CARGO) clippy -p groupcache-metrics --all-targets -- -D warnings
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
