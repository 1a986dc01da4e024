# Two commands do everything on a fresh Debian or Ubuntu with Go and root:
#   make up     install what is missing, build, start the pool, run a demo
#   make test   pass the tests (needs no running pool)
SHELL := /bin/bash
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
export CGO_ENABLED = 0
SOURCES = $(shell find api cmd internal web -name '*.go' 2>/dev/null) go.mod go.sum

.PHONY: up down lab build packages test check lint race bench fuzz help clean

help:            ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

up:              ## install, build, start the pool and a demo; harmless to repeat
	@deploy/up.sh

down:            ## take every trace off this host; DATA=1 also removes the data
	@deploy/down.sh $(if $(DATA),--data)

lab: build       ## several hosts on this one: HOSTS=3; DO=status, DO='kill isle2', DO=down, DO=help
	@go build -o bin/lab ./test/lab/cmd/lab && bin/lab $(or $(DO),up $(HOSTS))

packages:        ## install the OS packages Atoll and its tests need
	@deploy/packages.sh --test

build: bin/atoll bin/atolld bin/atoll-init bin/atoll-watchdog  ## build the binaries into bin/

bin/%: $(SOURCES)
	@mkdir -p bin
	go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

# What plays several hosts, and is about who answers in time, gets the machine for itself, one package after the other. The
# containers once more with runc, which hosts without crun have. The guests of test/vm come last and alone: emulated
# processors take it badly when others want the same cores.
HOSTS = /internal/(fence|store/etcdstore)$$|/test/(e2e|lab|safety)$$
test: packages build  ## all tests: units, properties, fuzz seeds, real kernels
	go test -timeout 20m $$(go list ./... | grep -v -E '/test/vm$$|$(HOSTS)')
	go test -timeout 20m -p 1 $$(go list ./... | grep -E '$(HOSTS)')
	ATOLL_TEST_RUNTIME=runc go test -timeout 5m ./internal/driver/runtime/container
	go test -timeout 40m ./test/vm

race: export CGO_ENABLED = 1
race:            ## the tests that matter for races, with the race detector
	go test -race -timeout 14m $$(go list ./api/... ./internal/... | grep -v -e /bench)

check:           ## gofmt, vet, staticcheck, floors, generated files
	@deploy/check.sh

fuzz:            ## fuzz every decoder for FUZZTIME (default 20s) each
	@deploy/fuzz.sh $(or $(FUZZTIME),20s)

bench: build     ## measure a claim side by side: make bench NAME=start
	@deploy/bench.sh $(NAME)

clean:
	rm -rf bin
