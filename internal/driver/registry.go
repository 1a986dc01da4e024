package driver

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sort"

	"atoll/internal/errs"
)

// Registry holds the drivers this build has. It is a value, filled by visible
// lines in cmd/atolld/builtin/builtin.go; nothing registers itself.
type Registry struct {
	runtimes map[string]func(Deps, json.RawMessage) (Runtime, error)
	networks map[string]func(Deps, json.RawMessage) (Network, error)
	storages map[string]func(Deps, json.RawMessage) (Storage, error)
	speakers map[string]func(Deps, json.RawMessage) (Announcer, error)
}

// NewRegistry is empty.
func NewRegistry() *Registry {
	return &Registry{
		runtimes: map[string]func(Deps, json.RawMessage) (Runtime, error){},
		networks: map[string]func(Deps, json.RawMessage) (Network, error){},
		storages: map[string]func(Deps, json.RawMessage) (Storage, error){},
		speakers: map[string]func(Deps, json.RawMessage) (Announcer, error){},
	}
}

// AddRuntime registers a runtime; its config type C is decoded strictly from the node's section.
func AddRuntime[C any, D Runtime](r *Registry, name string, fn func(Deps, C) (D, error)) {
	r.runtimes[name] = func(d Deps, raw json.RawMessage) (Runtime, error) { return build[C, D, Runtime](name, fn, d, raw) }
}

// AddNetwork registers a network driver.
func AddNetwork[C any, D Network](r *Registry, name string, fn func(Deps, C) (D, error)) {
	r.networks[name] = func(d Deps, raw json.RawMessage) (Network, error) { return build[C, D, Network](name, fn, d, raw) }
}

// AddStorage registers a storage driver.
func AddStorage[C any, D Storage](r *Registry, name string, fn func(Deps, C) (D, error)) {
	r.storages[name] = func(d Deps, raw json.RawMessage) (Storage, error) { return build[C, D, Storage](name, fn, d, raw) }
}

// AddAnnouncer registers a driver that speaks with routers.
func AddAnnouncer[C any, D Announcer](r *Registry, name string, fn func(Deps, C) (D, error)) {
	r.speakers[name] = func(d Deps, raw json.RawMessage) (Announcer, error) { return build[C, D, Announcer](name, fn, d, raw) }
}

func build[C any, D, I any](name string, fn func(Deps, C) (D, error), d Deps, raw json.RawMessage) (I, error) {
	var zero I
	var c C
	if len(raw) > 0 {
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&c); err != nil {
			return zero, errs.New(errs.Invalid, "config of driver %s: %w", name, err)
		}
	}
	drv, err := fn(d, c)
	if err != nil {
		return zero, fmt.Errorf("driver %s: %w", name, err)
	}
	return any(drv).(I), nil
}

// Runtime builds a registered runtime.
func (r *Registry) Runtime(name string, d Deps, config json.RawMessage) (Runtime, error) {
	return lookup(r.runtimes, "runtime", name, d, config)
}

// Network builds a registered network driver.
func (r *Registry) Network(name string, d Deps, config json.RawMessage) (Network, error) {
	return lookup(r.networks, "network", name, d, config)
}

// Storage builds a registered storage driver.
func (r *Registry) Storage(name string, d Deps, config json.RawMessage) (Storage, error) {
	return lookup(r.storages, "storage", name, d, config)
}

// Announcer builds a registered driver that speaks with routers.
func (r *Registry) Announcer(name string, d Deps, config json.RawMessage) (Announcer, error) {
	return lookup(r.speakers, "announcer", name, d, config)
}

// Runtimes lists the registered names, sorted.
func (r *Registry) Runtimes() []string { return names(r.runtimes) }

func lookup[I any](m map[string]func(Deps, json.RawMessage) (I, error), what, name string, d Deps, config json.RawMessage) (I, error) {
	fn, ok := m[name]
	if !ok {
		var zero I
		return zero, errs.New(errs.Unsupported, "no %s driver %q in this build; there are: %v", what, name, names(m))
	}
	return fn(d, config)
}

func names[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for n := range m {
		out = append(out, n)
	}
	sort.Strings(out)
	return out
}
