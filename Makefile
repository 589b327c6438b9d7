# `make help` lists the targets.

GO       ?= go
BIN      := bin
COMMANDS := dbbackup dbrecover dbrewind dbrepl dbctl
# The majors that `make test` runs its integration tests on: what is named here
# is installed where it is missing; by default 15 and the newest one that is there.
MAJORS     ?=
ALL_MAJORS := 13 14 15 16 17 18
FUZZTIME   ?= 20s
SEEDS      ?= 300
KILLS      ?= 300
ROUNDS     ?= 30
# Packages whose integration tests run servers share the machine: two at a time.
PARALLEL ?= 2

comma := ,
empty :=
space := $(empty) $(empty)
list   = $(subst $(space),$(comma),$(strip $(1)))

.DEFAULT_GOAL := help
.PHONY: help build test test-matrix test-rewind-long test-backup-long bench bench-rewind bench-backup fuzz lint demo fixtures clean postgres stores

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

build: ## build the five commands into bin/
	@mkdir -p $(BIN)
	$(GO) build -o $(BIN)/ $(addprefix ./cmd/,$(COMMANDS))

test: ## run every test (MAJORS="15 17" chooses the servers)
	@scripts/postgres.sh $(or $(MAJORS),ensure)
	CGO_ENABLED=0 $(GO) test -run TestCompress ./internal/repo # as built without a C compiler
	TIDEMARK_PG_MAJORS=$(call list,$(MAJORS)) $(GO) test -p $(PARALLEL) -timeout 15m ./...

test-matrix: ## run every test, integration tests on all six majors
	@scripts/postgres.sh $(ALL_MAJORS)
	TIDEMARK_PG_MAJORS=$(call list,$(ALL_MAJORS)) $(GO) test -p $(PARALLEL) -timeout 60m ./...

test-rewind-long: ## rewind after random work (SEEDS: 300), break rewinds off (KILLS: 300), rewind large tables
	@scripts/postgres.sh $(or $(MAJORS),15)
	TIDEMARK_PG_MAJORS=$(or $(call list,$(MAJORS)),15) TIDEMARK_SEEDS=$(SEEDS) TIDEMARK_KILLS=$(KILLS) $(GO) test -run 'TestDifferential|TestCrashMatrix' -v -timeout 6h ./internal/rewind
	TIDEMARK_PG_MAJORS=$(or $(call list,$(MAJORS)),15) TIDEMARK_LARGE=1 TMPDIR=$(or $(TMPDIR),/tmp) $(GO) test -run TestOverOneGigabyte -v -timeout 1h ./internal/rewind

test-backup-long: ## chains of backups after random work (SEEDS: 300), faults, backups killed anywhere (ROUNDS: 30)
	@scripts/postgres.sh $(or $(MAJORS),15)
	@scripts/stores.sh
	TIDEMARK_SEEDS=$(SEEDS) $(GO) test -run 'TestChains|TestAnyOrder' -v -timeout 6h ./internal/repo
	$(GO) test -run 'TestFaults|TestResume|TestPinWhileRemoved' -count=$(ROUNDS) -timeout 6h ./internal/repo
	TIDEMARK_PG_MAJORS=$(or $(call list,$(MAJORS)),15) TIDEMARK_STORES=required $(GO) test -run 'Killed|TestInterrupted|TestStreamCut|TestOverSSHCut|TestTwoCreatesAndExpire' -count=$(ROUNDS) -timeout 6h ./internal/backup

bench: ## run the benchmarks, with the ratios to PostgreSQL's own tools
	@scripts/postgres.sh ensure
	$(GO) test -run '^$$' -bench . -benchmem -p 1 -timeout 30m ./...
	$(GO) run ./bench

bench-rewind: ## dbrewind against pg_rewind on copies of a 3 GB cluster (BENCHFLAGS=-short: a minute)
	@scripts/postgres.sh ensure
	$(GO) run ./bench/rewind $(BENCHFLAGS)

bench-backup: ## dbbackup against pgbackrest, pg_basebackup and wal-g on a 3 GB cluster (BENCHFLAGS=-short: a minute)
	@scripts/postgres.sh ensure
	$(GO) run ./bench/backup $(BENCHFLAGS)

fuzz: ## run every fuzz target for FUZZTIME each (default 20s)
	@set -e; for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 50x $$pkg; \
		done; \
	done

lint: ## gofmt, vet, staticcheck, the import arrows
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "gofmt would change:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test -count=1 ./internal/lint

demo: build ## a cluster through backup, switchover, crash, failover, rewind and recovery
	@scripts/postgres.sh ensure
	@$(GO) build -o $(BIN)/ ./examples/ledger
	@examples/failover-playbook.sh

stores: ## install the S3 server and sshd that the tests of remote repositories use
	@scripts/stores.sh

fixtures: ## write testdata/ anew with servers of all six majors
	@scripts/postgres.sh $(ALL_MAJORS)
	$(GO) run ./testdata/generate

clean: ## remove what the build made
	rm -rf $(BIN)
