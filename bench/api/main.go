// Command api measures the API over the unix socket: full lists of 50 instances by
// eight clients, and durable creates.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"atoll/bench/lib"
	"atoll/test/rig"
)

func main() {
	lib.Enter()
	span := flag.Duration("time", 5*time.Second, "how long each is measured")
	clients := flag.Int("clients", 8, "clients")
	writers := flag.Int("writers", 8, "clients that create")
	flag.Parse()
	lib.WithPool(func(_ context.Context, p *rig.Pool) error { return measure(p, *span, *clients, *writers) })
}

func measure(p *rig.Pool, span time.Duration, clients, writers int) error {
	cl := p.Client()
	for i := range 50 {
		if err := create(cl, fmt.Sprint("i", i)); err != nil {
			return err
		}
	}
	// Stopped instances are whole objects, too; what is measured is the API, not crun.
	size := 0
	lists, err := load(clients, span, func(int, int64) error {
		n, err := list(cl)
		size = n
		return err
	})
	if err != nil {
		return err
	}
	one, err := load(1, span, func(int, int64) error { _, err := list(cl); return err })
	if err != nil {
		return err
	}
	creates, err := load(writers, span, func(w int, n int64) error { return create(cl, fmt.Sprintf("c%d-%d", w, n)) })
	if err != nil {
		return err
	}
	fmt.Printf("list of 50 instances (%d bytes)   %8.0f/s with %d clients   %8.0f/s with 1\n", size, lists, clients, one)
	fmt.Printf("durable creates with quota          %8.0f/s with %d clients\n", creates, writers)
	lib.JSON(map[string]any{"bench": "api", "list_rps": lib.Round(lists, 0), "list_rps_1": lib.Round(one, 0), "create_rps": lib.Round(creates, 0), "list_bytes": size})
	return nil
}

// load calls fn in so many loops for a time and gives calls per second.
func load(width int, span time.Duration, fn func(w int, n int64) error) (float64, error) {
	var done atomic.Int64
	var wg sync.WaitGroup
	errc := make(chan error, width)
	began := time.Now()
	for w := range width {
		wg.Go(func() {
			for time.Since(began) < span {
				if err := fn(w, done.Add(1)); err != nil {
					errc <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errc:
		return 0, err
	default:
		return float64(done.Load()) / time.Since(began).Seconds(), nil
	}
}

func list(cl *http.Client) (int, error) {
	resp, err := cl.Get("http://atoll/v1/instances?tenant=demo")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("list: %s", resp.Status)
	}
	return int(n), err
}

func create(cl *http.Client, name string) error {
	body, err := json.Marshal(map[string]any{"kind": "Instance", "metadata": map[string]any{"name": name, "tenant": "demo", "labels": map[string]string{"app": "bench"}},
		"spec": map[string]any{"image": "busybox", "command": []string{"sleep", "100000"}, "stopped": true, "requests": map[string]string{"cpu": "10m", "memory": "8Mi"}}})
	if err != nil {
		return err
	}
	resp, err := cl.Post("http://atoll/v1/instances?tenant=demo", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1000)) // only for the message
		return fmt.Errorf("create %s: %s %s", name, resp.Status, b)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
