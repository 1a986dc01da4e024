// Package test holds what looks at the whole: the floors and doors of the tree,
// and the tests on a real kernel.
package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// This file is a statement of policy. Do not change it to fix a build: if a
// package needs what its floor must not know, the package stands on the wrong
// floor or the contract below it is wrong.

const module = "atoll"

// floors maps a package, or everything below it ("/…"), to its floor; the longest
// match wins. A package imports from strictly lower floors only. The numbers leave
// room between the floors of docs/floors.md: kinds are made of errors, so these
// stand below them, and every edge may use the one door to the kernel (ADR 0002).
var floors = map[string]int{
	// 0 words
	"internal/errs":    0,
	"internal/clock":   0,
	"internal/near":    0,
	"internal/release": 0,
	"api":              1,
	"internal/explain": 2, // what kinds say of themselves
	"web":              1,
	"deploy":           1,
	// 1 contracts and edges
	"internal/sys/…":   10,
	"internal/store":   11,
	"internal/driver":  11,
	"internal/policy":  11,
	"internal/metrics": 11,
	"internal/audit":   11,
	"internal/auth":    11,
	"internal/tunnel":  11,
	"internal/trace":   10,
	"internal/trace/…": 11, // readers of recorded loads
	// 1 images: their words and files, then what is done with them, then the store of them
	"internal/image/oci":      11,
	"internal/image/disk":     11,
	"internal/image/flight":   11,
	"internal/image/layer":    12,
	"internal/image/registry": 12,
	"internal/image/busybox":  12,
	"internal/image/archive":  13,
	"internal/image":          14,
	// 2 implementations, pure engines
	"internal/store/…":                    20,
	"internal/tunnel/…":                   20,
	"internal/driver/…":                   20,
	"internal/driver/network/overlay/bpf": 19, // its driver's wall
	"internal/policy/…":                   20,
	"internal/sched":                      20,
	"internal/segment":                    20,
	"internal/balance":                    20,
	"internal/ipam":                       20,
	"internal/fabric":                     30,
	"internal/resolve":                    30,
	"internal/dhcp":                       30,
	"internal/shaping":                    30,
	"internal/droplist":                   30,
	"internal/announce":                   30,
	"internal/encrypt":                    30,
	"internal/balance/…":                  20,
	"internal/reconcile":                  20,
	"internal/lease":                      20,
	"internal/join":                       20, // a host's key, certificate and renewal
	"internal/join/…":                     20, // what becomes of a pool that comes with its host
	"internal/stage":                      20, // versions of the programs on a host
	"internal/fence":                      20,
	"internal/fence/…":                    20,
	"internal/plan":                       25, // asks sched, policies and admission what would be
	// 3 actors
	"internal/control/host":     29, // controllers of whole hosts, which control lists
	"internal/control/workload": 29, // what makes instances
	"internal/control":          30,
	"internal/agent":            30,
	// 4 surfaces; the command line in storeys: what it is made of, what verbs are made
	// of, the verbs by subject, the list of them
	"internal/cli/render":    32,
	"internal/cli/term":      32,
	"internal/cli/parse":     33,
	"internal/cli/conn":      34,
	"internal/cli/stream":    35,
	"internal/cli/verb":      36,
	"internal/cli/live":      37,
	"internal/cli/workload":  37,
	"internal/cli/object":    37,
	"internal/cli/plan":      37,
	"internal/cli/setup":     37,
	"internal/cli/flow":      37,
	"internal/cli/tell":      38,
	"internal/cli/drop":      38,
	"internal/cli/pool":      39,
	"internal/server/schema": 38,
	"internal/server/…":      39, // what the server reads and writes in its own way
	"internal/sim/scenario":  39,
	"internal/sim/report":    39,
	"internal/server":        40,
	"internal/cli":           40,
	"internal/sim":           40,
	// 5 assembly
	"cmd/atolld/builtin": 45, // also what benches decide by
	"cmd/atolld/twin":    46, // atolld sim
	"cmd/atolld/adopt":   46, // atolld join --adopt
	"cmd/atolld/change":  46, // upgrades of one host
	"cmd/atolld/reach":   46, // the way to the other hosts, for the doctor
	"cmd/atolld/images":  46, // the image store, for the agent
	"test/rig":           47, // pools for tests and benches
	"test/lab":           48, // pools of several hosts
	"bench/lib":          49,
	"cmd/…":              50,
	"test":               50,
	"test/…":             50,
	"bench":              50,
	"bench/…":            50,
}

// suites are conformance suites and what tests share: they belong to the contract above them, and only
// tests import them.
var suites = map[string]string{
	"internal/store/storetest":   "internal/store",
	"internal/driver/drivertest": "internal/driver",
	"internal/auth/authtest":     "internal/auth",
	"internal/image/imagetest":   "internal/image",
	"internal/sys/systest":       "internal/sys/…",
}

// doors lists what only some packages may import.
var doors = []struct {
	what string   // import path prefix
	only []string // packages, or "x/…"
	why  string
}{
	{"golang.org/x/sys/unix", []string{"internal/sys/…"}, "one door to the kernel"},
	{"github.com/vishvananda/netlink", []string{"internal/sys/…"}, "one door to the kernel"},
	{"github.com/vishvananda/netns", []string{"internal/sys/…"}, "one door to the kernel"},
	{"github.com/google/nftables", []string{"internal/sys/…"}, "one door to the kernel"},
	{"github.com/cilium/ebpf", []string{"internal/sys/…", "internal/driver/network/…"}, "one door to the kernel"},
	{"golang.zx2c4.com/wireguard", []string{"internal/sys/wg"}, "one door to WireGuard"},
	{"go.etcd.io/etcd", []string{"internal/store/etcdstore"}, "etcd is one implementation of the store"},
	{"github.com/google/go-containerregistry", []string{"internal/image", "internal/image/registry", "bench/…", "test/…", "test"}, "images are one package's business"},
	{"github.com/hashicorp/yamux", []string{"internal/tunnel/wire"}, "who opens a stream need not know how it travels"},
	{"github.com/bougou/go-ipmi", []string{"internal/fence/bmc"}, "power is switched in one place"},
	{"github.com/stmcginnis/gofish", []string{"internal/fence/bmc"}, "power is switched in one place"},
	{"github.com/insomniacslk/dhcp", []string{"internal/dhcp"}, "who somebody is, is told in one place"},
	{"github.com/miekg/dns", []string{"internal/resolve"}, "names are answered in one place"},
	{"github.com/osrg/gobgp", []string{"internal/driver/announce/gobgp"}, "routers are spoken with in one place"},
	{"github.com/cedar-policy", []string{"internal/auth"}, "decisions are made in one place"},
}

// unreachable lists what a binary must not contain, directly or not.
var unreachable = map[string][]string{
	"cmd/atoll": {"internal/server", "internal/control", "internal/agent", "internal/sched", "internal/driver", "internal/store/etcdstore", "internal/image", "go.etcd.io/etcd", "github.com/vishvananda/netlink", "github.com/hashicorp/yamux", "github.com/osrg/gobgp"},
}

type pkg struct {
	ImportPath              string
	Imports                 []string
	TestImports             []string
	XTestImports            []string
	Deps                    []string
	Name                    string
	GoFiles, IgnoredGoFiles []string
}

func load(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps=false", "-json=ImportPath,Imports,TestImports,XTestImports,Deps,Name,GoFiles", "./...")
	cmd.Dir = ".."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for dec.More() {
		var p pkg
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 20 {
		t.Fatalf("only %d packages found", len(pkgs))
	}
	return pkgs
}

func floorOf(path string) (int, bool) {
	best, floor, ok := -1, 0, false
	for pat, f := range floors {
		if pat == path {
			return f, true
		}
		if covers(pat, path) && len(pat) > best {
			best, floor, ok = len(pat), f, true
		}
	}
	return floor, ok
}

func covers(pat, path string) bool {
	if base, deep := strings.CutSuffix(pat, "/…"); deep {
		return strings.HasPrefix(path, base+"/")
	}
	return pat == path
}

func ours(imp string) (string, bool) { return strings.CutPrefix(imp, module+"/") }

func TestFloors(t *testing.T) {
	for _, p := range load(t) {
		if parent, ok := suites[p.ImportPath]; ok {
			for _, imp := range p.Imports {
				if in, mine := ours(imp); mine && in != parent {
					if f, known := floorOf(in); !known || f >= 10 {
						t.Errorf("suite %s imports %s: only %s and words", p.ImportPath, in, parent)
					}
				}
			}
			continue
		}
		floor, ok := floorOf(p.ImportPath)
		if !ok {
			t.Errorf("%s stands on no floor: add it to floors, or put it where it belongs", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			in, mine := ours(imp)
			if !mine {
				continue
			}
			if suites[in] != "" {
				t.Errorf("%s imports the suite %s outside of tests", p.ImportPath, in)
				continue
			}
			if f, known := floorOf(in); known && f >= floor {
				t.Errorf("%s (floor %d) imports %s (floor %d)", p.ImportPath, floor, in, f)
			}
		}
	}
}

func TestDoors(t *testing.T) {
	for _, p := range load(t) {
		for _, d := range doors {
			allowed := false
			for _, o := range d.only {
				allowed = allowed || covers(o, p.ImportPath)
			}
			if allowed {
				continue
			}
			for _, imp := range p.Imports {
				if imp == d.what || strings.HasPrefix(imp, d.what+"/") {
					t.Errorf("%s imports %s, which only %v may: %s", p.ImportPath, imp, d.only, d.why)
				}
			}
		}
	}
}

func TestBinariesStaySmall(t *testing.T) {
	for _, p := range load(t) {
		for _, bad := range unreachable[p.ImportPath] {
			for _, dep := range p.Deps {
				d := strings.TrimPrefix(dep, module+"/")
				if d == bad || strings.HasPrefix(d, bad+"/") {
					t.Errorf("%s reaches %s", p.ImportPath, dep)
				}
			}
		}
	}
}

// Sizes of HOUSE: a file stops at 800 lines.
func TestFilesStayReadable(t *testing.T) {
	err := filepath.WalkDir("..", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasPrefix(filepath.Base(path), "zz_") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if n := strings.Count(string(b), "\n"); n > 800 {
			t.Errorf("%s has %d lines; split it by purpose", path, n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A package stops at 4,000 lines, without its tests and what is generated. One that
// reaches that is cut by purpose; the only exception is the folder of kinds (ADR 0010).
func TestPackagesStayReadable(t *testing.T) {
	lines := map[string]int{}
	err := filepath.WalkDir("..", func(path string, d os.DirEntry, err error) error {
		name := filepath.Base(path)
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "zz_") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		lines[filepath.Dir(path)] += strings.Count(string(b), "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, n := range lines {
		if n > 4000 && dir != "../api" {
			t.Errorf("%s has %d lines; cut it into packages of one purpose", dir, n)
		}
	}
}

// Time and chance come from parameters, so that the simulator can replay the product.
func TestNoHiddenTimeOrChance(t *testing.T) {
	allowed := []string{"../internal/clock/", "../cmd/", "../test/", "../bench/"}
	err := filepath.WalkDir("../internal", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		for _, a := range allowed {
			if strings.HasPrefix(path, a) {
				return nil
			}
		}
		if strings.Contains(path, "/drivertest/") || strings.Contains(path, "/storetest/") {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(b), "\n") {
			code, _, _ := strings.Cut(line, "//")
			for _, bad := range []string{"time.Now()", "time.Sleep(", "time.After(", "time.NewTimer(", "time.NewTicker(", "time.Tick(", "rand.Int(", "rand.Intn(", "rand.IntN(", "rand.Float64(", "func init()"} {
				if strings.Contains(code, bad) && !strings.Contains(code, "."+bad) {
					t.Errorf("%s:%d uses %s; take a clock.Clock or a *rand.Rand", path, i+1, strings.TrimSuffix(bad, "("))
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheTableHasNoGhosts(t *testing.T) {
	have := map[string]bool{}
	for _, p := range load(t) {
		have[p.ImportPath] = true
	}
	for s := range suites {
		if !have[s] {
			t.Errorf("suite %s is in the table, but not in the tree", s)
		}
	}
}
