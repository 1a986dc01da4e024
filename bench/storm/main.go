// Command storm starts 50 sleepers, eight at a time, through the API, and removes
// them, beside bare crun doing the same.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"atoll/bench/lib"
	"atoll/test/rig"
)

func main() {
	lib.Enter()
	n := flag.Int("n", 50, "instances")
	width := flag.Int("width", 8, "at a time")
	rounds := flag.Int("rounds", 4, "rounds")
	flag.Parse()
	lib.WithPool(func(_ context.Context, p *rig.Pool) error { return measure(p, *n, *width, *rounds) })
}

func measure(p *rig.Pool, n, width, rounds int) error {
	c, err := lib.NewCrun()
	if err != nil {
		return err
	}
	defer c.Close()
	sl, err := c.Bundle("sleep", "sleep", "100000")
	if err != nil {
		return err
	}
	var up, down, crunUp, crunDown []float64
	cl := p.Client()
	for r := range rounds + 1 {
		name := func(i int) string { return fmt.Sprintf("s%d-%d", r, i) }
		t0 := time.Now()
		if err := each(n, width, func(i int) error { return create(cl, name(i)) }); err != nil {
			return err
		}
		if err := settle(cl, "running", n); err != nil {
			return err
		}
		t1 := time.Now()
		if err := each(n, width, func(i int) error { return remove(cl, name(i)) }); err != nil {
			return err
		}
		if err := settle(cl, "", 0); err != nil {
			return err
		}
		t2 := time.Now()
		if err := each(n, width, func(i int) error {
			cmd := c.Cmd("run", "-d", "-b", sl, name(i))
			return cmd.Run() // no pipes: its child lives on
		}); err != nil {
			return fmt.Errorf("crun run: %w", err)
		}
		t3 := time.Now()
		if err := each(n, width, func(i int) error { return c.Cmd("delete", "-f", name(i)).Run() }); err != nil {
			return fmt.Errorf("crun delete: %w", err)
		}
		t4 := time.Now()
		if r > 0 {
			rate := func(a, b time.Time) float64 { return float64(n) / b.Sub(a).Seconds() }
			up, down = append(up, rate(t0, t1)), append(down, rate(t1, t2))
			crunUp, crunDown = append(crunUp, rate(t2, t3)), append(crunDown, rate(t3, t4))
		}
	}
	fmt.Printf("%-28s %10s %10s\n", fmt.Sprintf("%d sleepers, %d at a time", n, width), "start/s", "remove/s")
	fmt.Printf("%-28s %10.1f %10.1f\n", "atoll", lib.Middle(up), lib.Middle(down))
	fmt.Printf("%-28s %10.1f %10.1f\n", "bare crun", lib.Middle(crunUp), lib.Middle(crunDown))
	lib.JSON(map[string]any{"bench": "storm", "n": n, "width": width, "rounds": rounds,
		"per_s": lib.Round(lib.Middle(up), 1), "crun_per_s": lib.Round(lib.Middle(crunUp), 1), "ratio": lib.Ratio(lib.Middle(up), lib.Middle(crunUp)),
		"remove_per_s": lib.Round(lib.Middle(down), 1), "ratio_remove": lib.Ratio(lib.Middle(down), lib.Middle(crunDown))})
	return nil
}

// each does n things, so many at a time.
func each(n, width int, fn func(i int) error) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	next := make(chan int)
	for range width {
		wg.Go(func() {
			for i := range next {
				if err := fn(i); err != nil {
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	return first
}

func create(cl *http.Client, name string) error {
	body, err := json.Marshal(map[string]any{"kind": "Instance", "metadata": map[string]any{"name": name, "tenant": "demo"},
		"spec": map[string]any{"image": "busybox", "command": []string{"sleep", "100000"}, "networks": []any{map[string]any{"name": "none"}}}})
	if err != nil {
		return err
	}
	resp, err := cl.Post("http://atoll/v1/instances?tenant=demo", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		var b bytes.Buffer
		_, _ = b.ReadFrom(resp.Body)
		return fmt.Errorf("create %s: %s %s", name, resp.Status, b.String())
	}
	// One at a time means: running before the next.
	return wait(cl, name)
}

func wait(cl *http.Client, name string) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		resp, err := cl.Get("http://atoll/v1/instances/" + name + "?tenant=demo")
		if err != nil {
			return err
		}
		var in struct {
			Status struct{ State, Message string }
		}
		err = json.NewDecoder(resp.Body).Decode(&in)
		resp.Body.Close()
		if err != nil {
			return err
		}
		switch in.Status.State {
		case "running":
			return nil
		case "failed", "backoff":
			return fmt.Errorf("%s: %s", name, in.Status.Message)
		}
	}
	return fmt.Errorf("%s does not run", name)
}

func remove(cl *http.Client, name string) error {
	req, err := http.NewRequest(http.MethodDelete, "http://atoll/v1/instances/"+name+"?tenant=demo", nil)
	if err != nil {
		return err
	}
	resp, err := cl.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode >= 300 {
		return fmt.Errorf("delete %s: %s", name, resp.Status)
	}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		resp, err := cl.Get("http://atoll/v1/instances/" + name + "?tenant=demo")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound {
			return nil
		}
	}
	return fmt.Errorf("%s is still there", name)
}

// settle checks that there are just n instances, in the state if one is given.
func settle(cl *http.Client, state string, n int) error {
	resp, err := cl.Get("http://atoll/v1/instances?tenant=demo")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var l struct {
		Items []struct{ Status struct{ State string } }
	}
	if err := json.NewDecoder(resp.Body).Decode(&l); err != nil {
		return err
	}
	ok := 0
	for _, i := range l.Items {
		if state == "" || i.Status.State == state {
			ok++
		}
	}
	if ok != n || len(l.Items) != n {
		fmt.Fprintf(os.Stderr, "%d instances, %d %s\n", len(l.Items), ok, state)
		return fmt.Errorf("not all are %s", state)
	}
	return nil
}
