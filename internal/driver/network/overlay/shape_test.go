package overlay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/driver/network/overlay/bpf"
	"atoll/internal/errs"
	"atoll/internal/sys/systest"
)

// pour sends n bytes from one box to another by TCP and says at how many bits per second they came.
func pour(t *testing.T, from, to *box, n int64) float64 {
	t.Helper()
	var l net.Listener
	must(t, to.ns.Do(func() (err error) { l, err = net.Listen("tcp", fmt.Sprintf("%s:5001", to.four)); return err }))
	defer l.Close()
	var c net.Conn
	must(t, from.ns.Do(func() (err error) { c, err = net.DialTimeout("tcp", l.Addr().String(), 3*time.Second); return err }))
	defer c.Close()
	in, err := l.Accept()
	must(t, err)
	defer in.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(c, zeros{}, n)
		sent <- err
	}()
	began := time.Now()
	_, err = io.CopyN(io.Discard, in, n)
	took := time.Since(began)
	must(t, errors.Join(err, <-sent))
	return float64(n) * 8 / took.Seconds()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func within(t *testing.T, what string, got, want, part float64) {
	t.Helper()
	if got < want*(1-part) || got > want*(1+part) {
		t.Errorf("%s: %.2f Mbit/s, want %.2f", what, got/1e6, want/1e6)
	}
}

func TestLimits(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	x := hosts(t, 1)[0]
	a, b := x.box("a", 2, 256), x.box("b", 3, 257)
	l := newLAN(70001, "acme", a, b)
	l.replace(x)
	l.attach()
	free := pour(t, a, b, 20<<20)
	if free < 500e6 {
		t.Skipf("this machine carries %.0f Mbit/s only", free/1e6)
	}
	attach := func(s api.Shaping, limit int64) {
		s2 := a.spec(70001, "acme")
		s2.Instance.Spec.Shaping = &s
		if limit != 0 {
			s2.Instance.Spec.Limits = api.Resources{api.NetBandwidth: limit}
		}
		x.do(func(d *Driver) error { return d.Attach(t.Context(), a.ns.Path(), s2) })
	}
	attach(api.Shaping{Ingress: &api.Rate{Limit: "16M"}}, 32e6)
	within(t, "from it", pour(t, a, b, 4<<20), 32e6*0.955, 0.12) // of a frame of 1514 bytes 1448 are counted here
	within(t, "to it", pour(t, b, a, 2<<20), 16e6*0.955, 0.12)
	// What the daemon leaves goes on, and is put back when somebody removes it.
	inNet(t, x.d, "tc qdisc del dev "+wireName(&wire{ID: "a", Name: "eth0"})+" root")
	must(t, x.ns.Do(func() error { x.reopen(); return nil }))
	l.replace(x)
	within(t, "to it, after a new life", pour(t, b, a, 2<<20), 16e6*0.955, 0.12)
	within(t, "from it, after a new life", pour(t, a, b, 4<<20), 32e6*0.955, 0.12)
	// Moved while it runs.
	cable := driver.Cable{ID: "a", Name: "eth0"}
	x.do(func(d *Driver) error {
		return d.Shape(t.Context(), cable, api.Band{}, api.Band{Limit: 64e6})
	})
	within(t, "from it, moved", pour(t, a, b, 8<<20), 64e6*0.955, 0.12)
	if got := pour(t, b, a, 20<<20); got < free/4 {
		t.Errorf("to it, freed: %.0f Mbit/s of %.0f", got/1e6, free/1e6)
	}
	x.do(func(d *Driver) error {
		tr, err := d.Traffic(t.Context())
		if f := tr[cable]; len(tr) != 1 || f.From.Limit != 64e6 || f.From.Bytes < 8<<20 || f.To != (driver.Passed{}) {
			t.Errorf("traffic %+v", tr)
		}
		if err := d.Shape(t.Context(), driver.Cable{ID: "a", Name: "eth1"}, api.Band{}, api.Band{}); errs.KindOf(err) != errs.NotFound {
			t.Errorf("an interface that is not there was bounded: %v", err)
		}
		return err
	})
	// Without limits nothing of them is left, and nothing with the instance.
	for _, last := range []func(){
		func() { attach(api.Shaping{}, 0) },
		func() { attach(api.Shaping{}, 8e6); x.do(func(d *Driver) error { return d.Detach(t.Context(), "a") }) },
	} {
		last()
		if out := listNet(t, x.d, "ip -br link show type ifb"); out != "" {
			t.Errorf("left: %s", out)
		}
		if out := listNet(t, x.d, "tc qdisc show"); strings.Contains(out, "htb") {
			t.Errorf("left: %s", out)
		}
	}
}

// What the wall refuses is not counted as sent; what is too often is refused, and counted with its reason.
func TestWallIsInFront(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	x := hosts(t, 1)[0]
	a, b := x.box("a", 2, 256), x.box("b", 3, 257)
	l := newLAN(70001, "acme", a, b)
	l.replace(x)
	l.attach()
	s := a.spec(70001, "acme")
	s.Instance.Spec.Limits = api.Resources{api.NetBandwidth: 100e6}
	s.Instance.Spec.Shaping = &api.Shaping{ConnectionsPerSecond: 5, PacketsPerSecond: 1000}
	x.do(func(d *Driver) error { return d.Attach(t.Context(), a.ns.Path(), s) })
	b.serve(80)
	a.reaches(b, 80)
	from := func() (out driver.Passed) {
		x.do(func(d *Driver) error {
			tr, err := d.Traffic(t.Context())
			out = tr[driver.Cable{ID: "a", Name: "eth0"}].From
			return err
		})
		return out
	}
	before := from()
	if before.Bytes < 500 {
		t.Errorf("%d bytes of two connections", before.Bytes)
	}
	send := func(n int, to string) {
		must(t, a.ns.Do(func() error {
			for i := range n {
				c, err := net.Dial("udp", net.JoinHostPort(to, fmt.Sprint(1000+i)))
				if err != nil {
					return err
				}
				if _, err := c.Write(make([]byte, 1000)); err != nil {
					return err
				}
				c.Close()
			}
			return nil
		}))
	}
	time.Sleep(time.Second) // a second's worth may come at once again
	send(50, b.four.String())
	after := from()
	if got := after.Bytes - before.Bytes; got < 4*1000 || got > 12*1042+2000 {
		t.Errorf("%d bytes were sent by 50 connections of which 5 a second are allowed", got)
	}
	x.do(func(d *Driver) error {
		drops, err := d.wall.Drops()
		var limited uint64
		for _, at := range drops {
			limited += at[bpf.ConnLimit]
		}
		if limited < 35 {
			t.Errorf("%d refused for their number: %v", limited, drops)
		}
		return err
	})
}
