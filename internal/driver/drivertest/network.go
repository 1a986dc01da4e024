package drivertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
)

// NetworkHost is a network driver under test and how to use it.
type NetworkHost struct {
	// Network is ready for use: Probe succeeded, and nothing is attached.
	Network driver.Network
	// NetNS makes an empty network namespace, as a runtime has made it for an instance,
	// and returns its path. It is gone at the end of the test.
	NetNS func() string
	// Address is the n-th address that instances may have, from 1.
	Address func(n int) string
	// Reopen is a new life of the daemon on the same host; the old driver is not used any more.
	Reopen func() driver.Network
}

// Network checks that a driver keeps the contract of driver.Network.
func Network(t *testing.T, open func(t *testing.T) NetworkHost) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, h NetworkHost)
	}{
		{"probe", netProbe},
		{"attachTwice", netAttachTwice},
		{"newNamespace", netNewNamespace},
		{"changedPorts", netChangedPorts},
		{"detach", netDetach},
		{"reopen", netReopen},
		{"addressHeld", netAddressHeld},
		{"portHeld", netPortHeld},
		{"modes", netModes},
		{"badInput", netBadInput},
		{"noNamespace", netNoNamespace},
		{"together", netTogether},
		{"teardown", netTeardown},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t)) })
	}
}

func (h NetworkHost) spec(id string, n int, ports ...api.Port) driver.Spec {
	in := &api.Instance{Head: api.Head{K: api.KindInstance}}
	in.Tenant, in.Name = "acme", id
	in.Spec.Ports = ports
	return driver.Spec{ID: id, Instance: in, Generation: 1, IDs: driver.IDRange{Base: 1 << 20, Count: 1 << 16},
		Network: driver.NetworkSpec{Mode: "bridge", Address: h.Address(n), Hostname: id}}
}

func (h NetworkHost) attach(t *testing.T, netns string, s driver.Spec) {
	t.Helper()
	if err := h.Network.Attach(context.Background(), netns, s); err != nil {
		t.Fatalf("attach %s: %v", s.ID, err)
	}
}

func (h NetworkHost) observe(t *testing.T, want ...string) {
	t.Helper()
	got, err := h.Network.Observe(context.Background())
	if err != nil {
		t.Fatalf("observe: %v", err)
	}
	slices.Sort(got)
	if slices.Sort(want); !slices.Equal(got, want) {
		t.Fatalf("observed %v, want %v", got, want)
	}
}

func (h NetworkHost) detach(t *testing.T, id string) {
	t.Helper()
	if err := h.Network.Detach(context.Background(), id); err != nil {
		t.Fatalf("detach %s: %v", id, err)
	}
}

func netProbe(t *testing.T, h NetworkHost) {
	c, err := h.Network.Probe(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if c.Type != "network" || c.Name == "" {
		t.Errorf("capability %+v must have type network and a name", c)
	}
	h.observe(t) // a probe leaves nothing
}

func netAttachTwice(t *testing.T, h NetworkHost) {
	ns := h.NetNS()
	s := h.spec("a", 1, api.Port{Port: 80, Publish: 8080})
	h.attach(t, ns, s)
	h.attach(t, ns, s)
	h.observe(t, "a")
}

func netNewNamespace(t *testing.T, h NetworkHost) {
	s := h.spec("a", 1)
	h.attach(t, h.NetNS(), s)
	h.attach(t, h.NetNS(), s) // restarted: the runtime made a new one
	h.observe(t, "a")
	s.Network.Address = h.Address(2)
	h.attach(t, h.NetNS(), s)
	h.attach(t, h.NetNS(), h.spec("b", 1)) // the first address is free again
	h.observe(t, "a", "b")
}

func netChangedPorts(t *testing.T, h NetworkHost) {
	ns := h.NetNS()
	h.attach(t, ns, h.spec("a", 1, api.Port{Port: 80, Publish: 8080}))
	h.attach(t, ns, h.spec("a", 1, api.Port{Port: 80, Publish: 8081}))
	h.attach(t, ns, h.spec("a", 1, api.Port{Port: 81, Publish: 8081}))
	h.attach(t, h.NetNS(), h.spec("b", 2, api.Port{Port: 80, Publish: 8080}))
	h.observe(t, "a", "b")
}

func netDetach(t *testing.T, h NetworkHost) {
	h.detach(t, "never-there")
	h.attach(t, h.NetNS(), h.spec("a", 1, api.Port{Port: 53, Publish: 5353, Protocol: "udp"}))
	h.attach(t, h.NetNS(), h.spec("b", 2))
	h.detach(t, "a")
	h.observe(t, "b")
	h.detach(t, "a")
	h.attach(t, h.NetNS(), h.spec("c", 1, api.Port{Port: 53, Publish: 5353, Protocol: "udp"})) // all of it is free
	h.observe(t, "b", "c")
}

func netReopen(t *testing.T, h NetworkHost) {
	ns := h.NetNS()
	s := h.spec("a", 1, api.Port{Port: 80, Publish: 8080})
	h.attach(t, ns, s)
	h.attach(t, h.NetNS(), h.spec("b", 2))
	h.Network = h.Reopen()
	h.observe(t, "a", "b")
	h.detach(t, "b") // an orphan, before anything was attached in this life
	h.observe(t, "a")
	h.attach(t, ns, s) // adopted
	h.observe(t, "a")
	h.Network = h.Reopen()
	h.detach(t, "a")
	h.observe(t)
}

func netAddressHeld(t *testing.T, h NetworkHost) {
	h.attach(t, h.NetNS(), h.spec("a", 1))
	err := h.Network.Attach(context.Background(), h.NetNS(), h.spec("b", 1))
	if !errors.Is(err, errs.Conflict) {
		t.Fatalf("an address that is taken: %v, want a conflict", err)
	}
	h.observe(t, "a") // and nothing half-made
	h.detach(t, "a")
	h.attach(t, h.NetNS(), h.spec("b", 1))
}

func netPortHeld(t *testing.T, h NetworkHost) {
	p := api.Port{Port: 80, Publish: 8080}
	h.attach(t, h.NetNS(), h.spec("a", 1, p))
	err := h.Network.Attach(context.Background(), h.NetNS(), h.spec("b", 2, p))
	if !errors.Is(err, errs.Conflict) {
		t.Fatalf("a published port that is taken: %v, want a conflict", err)
	}
	h.observe(t, "a")
	p.Protocol = "udp" // is another one
	h.attach(t, h.NetNS(), h.spec("b", 2, p))
}

func netModes(t *testing.T, h NetworkHost) {
	for _, mode := range []string{"none", "host"} {
		s := h.spec("m", 1)
		s.Network.Mode, s.Network.Address = mode, ""
		h.attach(t, h.NetNS(), s)
		h.observe(t)
		h.detach(t, "m")
	}
	h.attach(t, h.NetNS(), h.spec("m", 1))
	s := h.spec("m", 1)
	s.Network.Mode = "none"
	h.attach(t, h.NetNS(), s) // changed its mind
	h.observe(t)
}

func netBadInput(t *testing.T, h NetworkHost) {
	for what, change := range map[string]func(*driver.Spec){
		"no address":      func(s *driver.Spec) { s.Network.Address = "" },
		"garbage address": func(s *driver.Spec) { s.Network.Address = "10.88.0.0.1" },
		"foreign address": func(s *driver.Spec) { s.Network.Address = "203.0.113.7" },
		"mode":            func(s *driver.Spec) { s.Network.Mode = "bridged" },
		"empty ID":        func(s *driver.Spec) { s.ID = "" },
		"ID with a space": func(s *driver.Spec) { s.ID = "a b" },
	} {
		s := h.spec("a", 1)
		change(&s)
		if err := h.Network.Attach(context.Background(), h.NetNS(), s); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want invalid", what, err)
		}
	}
	h.observe(t)
}

func netNoNamespace(t *testing.T, h NetworkHost) {
	if err := h.Network.Attach(context.Background(), "/proc/self/no-such-file", h.spec("a", 1)); err == nil {
		t.Fatal("attached to a namespace that does not exist")
	}
	if err := h.Network.Attach(context.Background(), "/proc/self/status", h.spec("a", 1)); err == nil {
		t.Fatal("attached to a file that is no namespace")
	}
	h.detach(t, "a")
	h.observe(t)
}

func netTogether(t *testing.T, h NetworkHost) {
	const n = 20
	var want []string
	paths := make([]string, n)
	for i := range n {
		want = append(want, fmt.Sprintf("t%02d", i))
		paths[i] = h.NetNS()
	}
	each := func(fn func(i int) error) {
		t.Helper()
		var wg sync.WaitGroup
		errc := make(chan error, n)
		for i := range n {
			wg.Go(func() { errc <- fn(i) })
		}
		wg.Wait()
		close(errc)
		for err := range errc {
			if err != nil {
				t.Error(err)
			}
		}
	}
	each(func(i int) error {
		return h.Network.Attach(context.Background(), paths[i], h.spec(want[i], i+1, api.Port{Port: 80, Publish: uint16(9000 + i)}))
	})
	h.observe(t, want...)
	each(func(i int) error {
		if i%2 == 0 {
			return h.Network.Detach(context.Background(), want[i])
		}
		_, err := h.Network.Observe(context.Background())
		return err
	})
	h.observe(t, slices.DeleteFunc(want, func(s string) bool { return (s[2]-'0')%2 == 0 })...)
}

func netTeardown(t *testing.T, h NetworkHost) {
	if err := h.Network.Teardown(context.Background()); err != nil {
		t.Fatalf("teardown of nothing: %v", err)
	}
	h.attach(t, h.NetNS(), h.spec("a", 1, api.Port{Port: 80, Publish: 8080}))
	h.attach(t, h.NetNS(), h.spec("b", 2))
	if err := h.Network.Teardown(context.Background()); err != nil {
		t.Fatal(err)
	}
	h.observe(t)
	h.attach(t, h.NetNS(), h.spec("c", 1, api.Port{Port: 80, Publish: 8080})) // and starts again
	h.observe(t, "c")
	h.Network = h.Reopen()
	if err := h.Network.Teardown(context.Background()); err != nil {
		t.Fatalf("teardown in a new life: %v", err)
	}
	h.observe(t)
}
