package container

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
)

// daemonEnv makes the test program play the daemon: it says where and with which seed.
const daemonEnv = "ATOLL_TEST_DAEMON"

type daemonJob struct {
	State, Run, Layer, Group string
	Seed                     uint64
}

func TestMain(m *testing.M) {
	if j := os.Getenv(daemonEnv); j != "" {
		playDaemon(j)
		return
	}
	os.Exit(m.Run())
}

// playDaemon makes, starts, enters and removes instances until it is killed.
func playDaemon(j string) {
	var job daemonJob
	if err := json.Unmarshal([]byte(j), &job); err != nil {
		os.Exit(3)
	}
	r, err := New(driver.Deps{State: job.State, Run: job.Run, Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler)}, Config{Runtime: os.Getenv(runtimeVar)})
	if err != nil {
		os.Exit(3)
	}
	ctx := context.Background()
	f := &fixture{group: job.Group, layer: job.Layer}
	if _, err := r.setup(); err != nil {
		os.Exit(3)
	}
	_, _ = os.Stdout.WriteString("ready\n")
	for w := range 3 {
		go func() {
			rng := rand.New(rand.NewPCG(job.Seed, uint64(w)))
			for n := 0; ; n++ {
				id := fmt.Sprintf("c%d-%d", w, n%3)
				s := f.spec(id, "sh", "-c", "echo up; sleep "+[]string{"0", "0.05", "1000"}[rng.IntN(3)])
				if n%4 == 3 {
					s.Instance.Spec.Volumes = []api.Mount{{Path: "/eph"}}
				}
				_, _ = r.Ensure(ctx, s)
				if rng.IntN(4) > 0 {
					_ = r.Start(ctx, id)
				}
				if rng.IntN(2) == 0 {
					c, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
					_, _ = r.Exec(c, id, api.ExecRequest{Argv: []string{"sleep", "1000"}}, driver.Stream{})
					cancel()
				}
				if rng.IntN(2) == 0 {
					_ = r.Remove(ctx, id)
				}
			}
		}()
	}
	select {}
}

func TestAKilledDaemonLosesAndLeaksNothing(t *testing.T) {
	f := open(t)
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	rng := rand.New(rand.NewPCG(7, 7))
	mounts := count(t, "/proc/self/mountinfo")
	adopted := 0
	for round := range rounds {
		f.killedOnce(uint64(round), time.Duration(rng.IntN(300))*time.Millisecond)
		r := f.reopen()
		all, err := r.Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range all {
			if o.Phase == driver.PhaseRunning || o.Phase == driver.PhasePrepared {
				adopted++
				// What lives must be in our hands: it can be started, entered and stopped.
				if err := r.Start(t.Context(), o.ID); err != nil {
					if again, _, _ := r.look(r.env, o.ID); again.Phase != driver.PhaseExited {
						t.Errorf("round %d: start of adopted %s: %v", round, o.ID, err)
					}
				}
			}
			// Half of them go on in the next life, the others must vanish without a trace.
			if rng.IntN(2) == 0 {
				if err := r.Remove(t.Context(), o.ID); err != nil {
					t.Errorf("round %d: remove %+v: %v", round, o, err)
				}
			}
		}
	}
	if adopted == 0 {
		t.Error("no round left anything to adopt: nothing was tested")
	}
	r := f.reopen()
	all, err := r.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range all {
		if err := r.Remove(t.Context(), o.ID); err != nil {
			t.Errorf("remove %+v: %v", o, err)
		}
	}
	f.nothingLeft()
	if n := count(t, "/proc/self/mountinfo"); n != mounts {
		t.Errorf("%d mounts, were %d", n, mounts)
	}
}

// killedOnce runs a daemon and kills it after d.
func (f *fixture) killedOnce(seed uint64, d time.Duration) {
	f.t.Helper()
	j, err := json.Marshal(daemonJob{State: f.deps.State, Run: f.deps.Run, Layer: f.layer, Group: f.group, Seed: seed})
	if err != nil {
		f.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), daemonEnv+"="+string(j))
	out, err := cmd.StdoutPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	buf := make([]byte, 8)
	if n, err := out.Read(buf); err != nil || string(buf[:n]) != "ready\n" {
		f.t.Fatalf("the daemon did not start: %q %v", buf[:n], err)
	}
	time.Sleep(d)
	if err := cmd.Process.Kill(); err != nil {
		f.t.Fatal(err)
	}
	_ = cmd.Wait()
}

// nothingLeft fails for every trace of instances on the host.
func (f *fixture) nothingLeft() {
	f.t.Helper()
	for _, d := range []string{f.state("i"), f.run("i"), f.run("exit"), f.run("c")} {
		es, err := os.ReadDir(d)
		if err != nil {
			f.t.Error(err)
		}
		for _, e := range es {
			f.t.Errorf("left: %s/%s", d, e.Name())
		}
	}
	left := slices.DeleteFunc(f.groups.List(f.group), func(g string) bool { return g == supervisors(f.group) })
	if len(left) > 0 {
		f.t.Errorf("cgroups left: %v", left)
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		left := f.processes()
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			f.t.Errorf("processes left: %v", left)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// processes lists those that carry our directory in their arguments or a mount of ours.
func (f *fixture) processes() []string {
	var out []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		if pid, _ := strconv.Atoi(filepath.Base(d)); pid == os.Getpid() {
			continue
		}
		cmd, _ := os.ReadFile(d + "/cmdline")
		mounts, _ := os.ReadFile(d + "/mountinfo")
		if strings.Contains(string(cmd), f.deps.Run) || strings.Contains(string(mounts), f.deps.State) || strings.Contains(string(mounts), f.deps.Run) {
			out = append(out, filepath.Base(d)+" "+strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	return out
}

func count(t *testing.T, file string) int {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "\n")
}

func TestASupervisorThatIsKilled(t *testing.T) {
	f := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan driver.Observed, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f.Exits(ctx, func(o driver.Observed) { ended <- o })
	}()
	f.begin(f.spec("orphan", "sleep", "1000"))
	p, err := os.FindProcess(f.conmonPid("orphan"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case o := <-ended:
		if o.ID != "orphan" || o.ExitCode != 137 {
			t.Fatalf("%+v", o)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nobody noticed")
	}
	cancel()
	<-done
}

func TestAnEarlierBootHasEnded(t *testing.T) {
	f := open(t)
	f.begin(f.spec("boot", "sh", "-c", "echo kept >/f; echo kept; sleep 1000"))
	for f.logged("boot") == "" {
		time.Sleep(5 * time.Millisecond)
	}
	// What a boot does: processes and <Run> are gone, <State> stays.
	if err := f.clear(t.Context(), f.env, "boot", f.group+"/boot"); err != nil {
		t.Fatal(err)
	}
	r := f.reopen()
	if _, err := r.setup(); err != nil {
		t.Fatal(err)
	}
	r.env.boot = "another"
	all, err := r.Observe(t.Context())
	if err != nil || len(all) != 1 || all[0].Phase != driver.PhaseExited || all[0].ExitCode != 137 || all[0].UID == "" {
		t.Fatalf("%+v %v", all, err)
	}
	if _, err := r.Ensure(t.Context(), f.spec("boot", "cat", "/f")); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context(), "boot"); err != nil {
		t.Fatal(err)
	}
	for {
		if o, _, _ := r.look(r.env, "boot"); o.Phase == driver.PhaseExited {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if got := f.logged("boot"); got != "kept\nkept\n" {
		t.Fatalf("%q", got)
	}
	if err := r.Remove(t.Context(), "boot"); err != nil {
		t.Fatal(err)
	}
}
