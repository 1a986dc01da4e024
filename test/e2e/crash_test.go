package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"atoll/test/rig"
)

// The daemon is killed at random points while instances are made, entered and
// removed. Afterwards: every write that was acknowledged is there, and nothing is
// on the host that should not be.
func TestKillsAtRandomPoints(t *testing.T) {
	p := start(t)
	cycles := 200
	if testing.Short() {
		cycles = 20
	}
	r := rand.New(rand.NewPCG(1, 2))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	kills := 0
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(50+r.IntN(900)) * time.Millisecond):
			}
			p.Kill()
			kills++
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			_, err := p.Start(ctx)
			cancel()
			if err != nil {
				t.Errorf("after kill %d: %v", kills, err)
				return
			}
		}
	})
	made, gone := map[string]bool{}, map[string]bool{}
	var mu sync.Mutex
	var work sync.WaitGroup
	next := make(chan int)
	for range 4 {
		work.Go(func() {
			for i := range next {
				name := fmt.Sprint("k", i)
				net := []string{"--network", "none"}
				if i%2 == 0 {
					net = []string{"-p", fmt.Sprint(20000+i, ":80")}
				}
				// A call that the kill cut off is made again, as its caller would.
				create := append(append([]string{"run", "-d", "--name", name}, net...), "busybox", "sleep", "100000")
				if insist(p, create, "exists") {
					mu.Lock()
					made[name] = true
					mu.Unlock()
				}
				_, _ = p.Do("exec", name, "--", "true") // it may be killed in between
				if i%4 == 3 {
					continue // stays
				}
				if insist(p, []string{"delete", "instance/" + name, "--now", "--ignore-not-found"}, "") {
					mu.Lock()
					gone[name] = true
					mu.Unlock()
				}
			}
		})
	}
	for i := range cycles {
		next <- i
	}
	close(next)
	work.Wait()
	close(stop)
	wg.Wait()
	t.Logf("%d kills, %d acknowledged creates, %d acknowledged deletes", kills, len(made), len(gone))
	if len(made) != cycles {
		t.Errorf("only %d of %d creates came through", len(made), cycles)
	}
	if kills == 0 {
		t.Fatal("the daemon was never killed")
	}

	there := names(t, do(t, p, "get", "instances", "-o", "json"))
	for n := range made {
		if !gone[n] && !there[n] && stays(n) {
			t.Errorf("%s was acknowledged and is lost", n)
		}
	}
	for n := range gone {
		if there[n] {
			why, _ := p.Do("get", "instance/"+n, "-o", "yaml") // what it says of itself helps to find out
			t.Errorf("%s was acknowledged as removed and is there:\n%s", n, why)
		}
	}
	for n := range there {
		do(t, p, "delete", "instance/"+n, "--now", "--ignore-not-found")
	}
	eventually(t, "traces of instances", func() (bool, string) { l := inside(p); return len(l) == 0, strings.Join(l, "\n") })
}

// insist makes a call until it is acknowledged; done is what the answer says when an
// earlier try had come through after all.
func insist(p *rig.Pool, args []string, done string) bool {
	for range 100 {
		_, stderr, err := p.Do2(args...)
		if err == nil || done != "" && strings.Contains(stderr, done) {
			return true
		}
		time.Sleep(50 * time.Millisecond)
	}
	return false
}

// stays tells the instances that were not to be removed.
func stays(name string) bool {
	var i int
	_, err := fmt.Sscanf(name, "k%d", &i)
	return err == nil && i%4 == 3
}

func names(t *testing.T, raw string) map[string]bool {
	t.Helper()
	var l struct {
		Items []struct{ Metadata struct{ Name string } }
	}
	if err := json.Unmarshal([]byte(raw), &l); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
	out := map[string]bool{}
	for _, i := range l.Items {
		out[i.Metadata.Name] = true
	}
	return out
}
