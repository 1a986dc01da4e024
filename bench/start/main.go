// Command start measures one container: create to first output, exec, and stop and
// remove, by the whole road (CLI, API, store, scheduler, agent, crun), beside bare
// crun and the engines that are installed, interleaved in one run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"time"

	"atoll/bench/lib"
	"atoll/test/rig"
)

func main() {
	lib.Enter()
	rounds := flag.Int("rounds", 20, "rounds")
	flag.Parse()
	lib.WithPool(func(_ context.Context, p *rig.Pool) error { return measure(p, *rounds) })
}

func measure(p *rig.Pool, rounds int) error {
	c, err := lib.NewCrun()
	if err != nil {
		return err
	}
	defer c.Close()
	start, err := starts(p, c, rounds)
	if err != nil {
		return err
	}
	fmt.Println()
	execs, err := execs(p, c, rounds)
	if err != nil {
		return err
	}
	fmt.Println()
	removes, err := removes(p, c, rounds)
	if err != nil {
		return err
	}
	m := map[string]any{"bench": "start", "rounds": rounds,
		"atoll_ms": lib.Round(start["atoll"].Median(), 1), "crun_ms": lib.Round(start["crun"].Median(), 1),
		"ratio":        lib.Ratio(start["atoll"].Median(), start["crun"].Median()),
		"atoll_net_ms": lib.Round(start["atoll net"].Median(), 1),
		"ratio_net":    lib.Ratio(start["atoll net"].Median(), start["crun"].Median()),
		"ratio_exec":   lib.Ratio(execs[0].Median(), execs[1].Median()),
		"ratio_remove": lib.Ratio(removes[0].Median(), removes[1].Median()),
	}
	for _, peer := range []string{"podman", "docker"} {
		if r := start[peer]; r != nil {
			m["ratio_"+peer] = lib.Ratio(start["atoll"].Median(), r.Median())
		} else {
			fmt.Println(peer, "is not usable here; skipped")
		}
	}
	fmt.Println()
	lib.JSON(m)
	return nil
}

func starts(p *rig.Pool, c *lib.Crun, rounds int) (map[string]*lib.Result, error) {
	hi, err := c.Bundle("hi", "echo", "hi")
	if err != nil {
		return nil, err
	}
	vs := []lib.Variant{
		{Name: "atoll", Run: func(int) (time.Duration, error) {
			return lib.FirstByte(p.Atoll("run", "--rm", "--network", "none", "busybox", "echo", "hi"))
		}},
		{Name: "crun", Run: func(n int) (time.Duration, error) {
			return lib.FirstByte(c.Cmd("run", "-b", hi, fmt.Sprint("r", n)))
		}},
		{Name: "atoll net", Run: func(int) (time.Duration, error) {
			return lib.FirstByte(p.Atoll("run", "--rm", "busybox", "echo", "hi"))
		}},
	}
	vs = append(vs, peers(c)...)
	rs := lib.Interleave(rounds, vs)
	lib.Table(os.Stdout, "create -> first output", rs)
	out := map[string]*lib.Result{}
	for _, r := range rs {
		out[r.Name] = r
		if len(r.Times) == 0 && (r.Name == "podman" || r.Name == "docker") {
			delete(out, r.Name) // installed, but cannot run here
			continue
		}
		if len(r.Times) == 0 {
			return nil, fmt.Errorf("%s never worked: %w", r.Name, r.Err)
		}
	}
	return out, nil
}

// peers are the engines that work here, each with an image made of the same files.
func peers(c *lib.Crun) []lib.Variant {
	var out []lib.Variant
	podman := []string{"--root", c.Path("podman"), "--runroot", c.Path("podman-run"), "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "crun", "--log-level", "error"}
	if ok(c, "podman", append(podman, "import", "-", "localhost/bb")...) {
		out = append(out, lib.Variant{Name: "podman", Run: func(int) (time.Duration, error) {
			return lib.FirstByte(exec.Command("podman", append(podman, "run", "--rm", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--network", "none", "localhost/bb", "echo", "hi")...))
		}})
	}
	if ok(c, "docker", "import", "-", "atoll-bench-bb") {
		out = append(out, lib.Variant{Name: "docker", Run: func(int) (time.Duration, error) {
			return lib.FirstByte(exec.Command("docker", "run", "--rm", "--network", "none", "atoll-bench-bb", "echo", "hi"))
		}})
	}
	return out
}

// ok gives an engine the root file system as its image.
func ok(c *lib.Crun, name string, args ...string) bool {
	tar := exec.Command("tar", "c", "-C", c.Path("rootfs"), ".")
	imp := exec.Command(name, args...)
	var err error
	if imp.Stdin, err = tar.StdoutPipe(); err != nil {
		return false
	}
	if tar.Start() != nil {
		return false
	}
	err = imp.Run()
	_ = tar.Process.Kill() // it waits for nobody when the engine is not there
	_ = tar.Wait()
	return err == nil
}

func execs(p *rig.Pool, c *lib.Crun, rounds int) ([]*lib.Result, error) {
	if _, err := p.Do("run", "-d", "--name", "ex", "--network", "none", "busybox", "sleep", "100000"); err != nil {
		return nil, err
	}
	sl, err := c.Bundle("sleep", "sleep", "100000")
	if err != nil {
		return nil, err
	}
	if out, err := detached(c.Cmd("run", "-d", "-b", sl, "ex")); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	rs := lib.Interleave(rounds, []lib.Variant{
		{Name: "atoll exec", Run: func(int) (time.Duration, error) { return lib.FirstByte(p.Atoll("exec", "ex", "--", "echo", "hi")) }},
		{Name: "crun exec", Run: func(int) (time.Duration, error) { return lib.FirstByte(c.Cmd("exec", "ex", "echo", "hi")) }},
	})
	lib.Table(os.Stdout, "exec -> first output", rs)
	_, err = lib.Whole(c.Cmd("delete", "-f", "ex"))
	return rs, err
}

// detached runs a command whose child outlives it: no pipe may be handed on.
func detached(cmd *exec.Cmd) (string, error) {
	f, err := os.CreateTemp("", "atoll-bench-")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	err = cmd.Run()
	b, rerr := os.ReadFile(f.Name())
	if rerr != nil {
		return "", rerr
	}
	return string(b), err
}

func removes(p *rig.Pool, c *lib.Crun, rounds int) ([]*lib.Result, error) {
	sl, err := c.Bundle("sleep2", "sleep", "100000")
	if err != nil {
		return nil, err
	}
	rs := lib.Interleave(rounds, []lib.Variant{
		{Name: "atoll delete --now", Run: func(n int) (time.Duration, error) {
			name := fmt.Sprint("r", n)
			if _, err := p.Do("run", "-d", "--name", name, "--network", "none", "busybox", "sleep", "100000"); err != nil {
				return 0, err
			}
			return lib.Whole(p.Atoll("delete", "--now", "instance/"+name))
		}},
		{Name: "crun delete -f", Run: func(n int) (time.Duration, error) {
			name := fmt.Sprint("r", n)
			if out, err := detached(c.Cmd("run", "-d", "-b", sl, name)); err != nil {
				return 0, fmt.Errorf("%w: %s", err, out)
			}
			return lib.Whole(c.Cmd("delete", "-f", name))
		}},
	})
	lib.Table(os.Stdout, "stop and remove", rs)
	return rs, nil
}
