# Plain targets; `make help` lists them. Needs Go and make, nothing else.
GO          ?= go
STATICCHECK  = honnef.co/go/tools/cmd/staticcheck@v0.8.2
COMMANDS     = $(notdir $(filter-out cmd/internal,$(wildcard cmd/*)))
REF         ?=
FETCH_FLAGS ?=

export CGO_ENABLED = 0

.PHONY: all build test test-vm race demo lint cross bench fuzz peers clean help
.DEFAULT_GOAL := all

all: build ## build everything

build: ## the five commands, static, into bin/
	$(GO) build -trimpath -o bin/ $(COMMANDS:%=./cmd/%)

test: ## all tests; what the machine lacks is skipped and named, or fails with INTEROP=1
	$(GO) test -timeout 20m ./...

# Where goroutines share something; the decoders and writers, which do not, are
# slow under the detector.
CONCURRENT = $(addprefix ./pkg/,blockmap disk layer nbd ociarchive registry source spancache zinfo) ./cmd/erofs-nbd ./cmd/oci-fetch ./internal/testregistry

test-vm: ## the kernel's NBD driver, in a virtual machine with Debian's kernel
	scripts/vm-kernel
	INTEROP=1 LAYERPIPE_TEST_VM=1 $(GO) test -count=1 -timeout 20m -v ./internal/vm

race: ## the tests of concurrent code under the race detector (wants a C compiler)
	CGO_ENABLED=1 $(GO) test -race -short -timeout 20m $(CONCURRENT)

demo: build ## an image from a registry to a mounted EROFS, whole and lazily (REF=..., FETCH_FLAGS=--plain-http)
	$(GO) run ./internal/demo -bin bin $(if $(REF),-ref '$(REF)') $(if $(FETCH_FLAGS),-fetch-flags '$(FETCH_FLAGS)')

lint: ## gofmt, go vet, staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')) && if [ -n "$$unformatted" ]; then echo "gofmt would change:" $$unformatted; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

cross: ## build and vet for the other systems (what needs Linux says so there)
	@set -e; for target in linux/arm64 darwin/arm64 windows/amd64; do \
		echo "cross: $$target"; \
		GOOS=$${target%/*} GOARCH=$${target#*/} $(GO) build -o /dev/null ./...; \
		GOOS=$${target%/*} GOARCH=$${target#*/} $(GO) vet ./...; \
	done

# BENCH limits it: make bench BENCH=images. libdeflate is compared where its
# header is (Debian: libdeflate-dev).
BENCH ?= images gzindex registry lazy nbd libdeflate
bench: build peers ## ratios against the peers, each in one run with them (BENCH=images ...)
	@set -e; for b in $(BENCH); do echo; echo "== $$b"; case $$b in \
	nbd) $(GO) test ./cmd/erofs-nbd -run - -bench Local -benchtime 10x ;; \
	libdeflate) if [ -e /usr/include/libdeflate.h ]; then \
		tar -C "$$($(GO) env GOROOT)" -cf bin/toolchain.tar src pkg; \
		for level in 1 6 9; do gzip -$$level <bin/toolchain.tar >bin/toolchain.$$level.gz; done; rm bin/toolchain.tar; \
		CGO_ENABLED=1 $(GO) run -tags libdeflate ./bench/libdeflate -rounds 5 bin/toolchain.?.gz; else echo "no libdeflate here"; fi ;; \
	*) $(GO) run ./bench/$$b ;; \
	esac; done

fuzz: ## each fuzz target for FUZZTIME (5s)
	scripts/fuzz $(FUZZTIME)

peers: ## the erofs-utils that interop tests compare with, into .peers (Debian)
	scripts/peers

clean: ## remove what make made
	rm -rf bin
	$(MAKE) -C docs/example clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
