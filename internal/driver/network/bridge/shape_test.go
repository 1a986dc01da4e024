package bridge

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/systest"
)

// pour sends n bytes to a port in another namespace, nil being the host, and says at how many bits per second they came.
func (w *world) pour(from, to *netlink.Namespace, addr string, n int64) float64 {
	w.t.Helper()
	var l net.Listener
	w.must(in(to, func() (err error) { l, err = net.Listen("tcp4", addr); return err }))
	defer l.Close()
	var c net.Conn
	w.must(in(from, func() (err error) { c, err = net.DialTimeout("tcp4", addr, patient); return err }))
	defer c.Close()
	far, err := l.Accept()
	w.must(err)
	defer far.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, n))
		sent <- err
	}()
	began := time.Now()
	_, err = io.CopyN(io.Discard, far, n)
	took := time.Since(began)
	w.must(errors.Join(err, <-sent))
	return float64(n) * 8 / took.Seconds()
}

// Limits hold towards what is outside and from there, and move while the instance runs.
func TestLimits(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	w := newWorld(t, Config{})
	s := spec("a", "acme", "10.88.0.2")
	s.Instance.Spec.Limits = api.Resources{api.NetBandwidth: 32e6}
	s.Instance.Spec.Shaping = &api.Shaping{Ingress: &api.Rate{Limit: "16M"}}
	ns := w.start(s)
	b := w.start(spec("b", "acme", "10.88.0.3"))
	check := func(what string, got, want float64) {
		t.Helper()
		if got < want*0.82 || got > want*1.06 { // of a frame of 1414 bytes 1348 are counted here
			t.Errorf("%s: %.2f Mbit/s of %.2f", what, got/1e6, want/1e6)
		}
	}
	check("to the outside", w.pour(ns, w.outside, outIP+":5001", 4<<20), 32e6)
	check("from an instance of the host", w.pour(b, ns, "10.88.0.2:5001", 2<<20), 16e6)
	c := driver.Cable{ID: "a", Name: "eth0"}
	w.must(w.d.Shape(context.Background(), c, api.Band{}, api.Band{Limit: 64e6}))
	check("to an instance of the host, moved", w.pour(ns, b, "10.88.0.3:5001", 8<<20), 64e6)
	tr, err := w.d.Traffic(context.Background())
	w.must(err)
	if f := tr[c]; len(tr) != 1 || f.From.Bytes < 12<<20 || f.From.Limit != 64e6 || f.To.Limit != 0 {
		t.Errorf("traffic %+v", tr)
	}
	if err := w.d.Shape(context.Background(), driver.Cable{ID: "c", Name: "eth0"}, api.Band{}, api.Band{}); !errors.Is(err, errs.NotFound) {
		t.Errorf("an instance that is not here was bounded: %v", err)
	}
	w.must(w.d.Detach(context.Background(), "a"))
	w.must(w.d.Detach(context.Background(), "b"))
	w.must(w.d.Teardown(context.Background()))
	w.clean()
}
