// Package bpf is the wall around every instance on a tenant's network: eBPF programs
// on the host's ends of the instances' cables, and the tables they look things up in
// (docs/adr/0016-tenant-networks.md, points 4 to 9). It knows interfaces by their index
// and nothing of namespaces, bridges or security groups; the driver that has those uses it.
//
// Everything that matters is in the kernel: programs are attached without a link, maps
// are pinned in a file system of ours. So the rules stay in force when the daemon dies, and Open finds
// again what an earlier life left. It starts no goroutines. Whatever happens, it must
// never leave a port with no program on it where there was one.
//
// The order of a caller's life: Open; the tables (SetDevice, PutMembers, PutPairs,
// PutLists, PutPrefixes); SetPort, then Attach; when all that was there before is attached
// again, Settle. A change of rules is Apply.
package bpf

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"

	"atoll/internal/errs"
	"atoll/internal/sys/mount"
)

//go:generate ./generate.sh

// layout is the number of what the maps hold. Raise it with any change in maps.h that an
// older program would read wrongly: the maps of another layout are never touched.
const layout = 1

// Config is how a wall is made.
type Config struct {
	// Dir is where maps and programs are pinned: a BPF file system of ours, mounted there
	// when it is none yet. Nobody else puts anything into it.
	Dir string
	// Sizes of the tables, in entries; 0: the default. They count when a table is made: one that
	// was pinned earlier keeps its size.
	Sizes Sizes
	// Times after which flows are forgotten; 0: the default.
	Times Times
	// Vary is for benches, and never for production.
	Vary Vary
}

// Vary makes every IPv4 packet that an instance sends another flow, whatever its ports say, so that a
// bench measures new flows by repeating one packet.
type Vary struct {
	On bool
	// Hosts and Ports are one less than a power of two: how many addresses and ports from the
	// packet's own on are meant in turn.
	Hosts, Ports uint32
}

// Sizes are in entries. Flows are allocated at once, 144 and 168 bytes each and the
// oldest go when they are full; the others take memory as they fill.
type Sizes struct {
	Flows4, Flows6, Frags  uint32 // default 131072, 65536, 4096
	Ports, Members         uint32 // default 4096, 262144
	Pairs, Lists, Prefixes uint32 // default 524288, 524288, 65536
	Rules                  uint32 // default 262144: that have been hit and are counted
}

// Times are how long a silent flow is known.
type Times struct {
	TCPIdle  time.Duration // both sides have spoken; default 5 h
	TCPBrief time.Duration // half open or closed; default 60 s
	OneWay   time.Duration // others, no answer yet; default 60 s
	BothWays time.Duration // others; default 180 s
	Fragment time.Duration // what is left of a packet; default 30 s
}

// Wall is the programs and maps of one host. It may be used by many goroutines.
type Wall struct {
	dir  string // of this layout
	root string
	wallMaps
	progs map[string]*ebpf.Program
	noTCX bool // tests make it true; the kernel is asked each time

	mu sync.Mutex // orders changes of ports, which are read, changed and written
}

// Programs, by their names in the kernel.
const (
	progFrom  = "atoll_from"
	progTo    = "atoll_to"
	progHost  = "atoll_host"
	progVXLAN = "atoll_vxlan"
)

// Probe says whether this kernel can do all that is needed: nil, or an errs.Unsupported
// that says what is missing. It leaves nothing behind.
func Probe() error {
	spec, err := loadSpec(Config{Sizes: Sizes{Flows4: 64, Flows6: 64, Frags: 64, Ports: 16, Members: 16, Pairs: 16, Lists: 16, Prefixes: 16, Rules: 16}})
	if err != nil {
		return err
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return unsupported(err)
	}
	coll.Close()
	return nil
}

// loadSpec is the compiled object, made for this kernel.
func loadSpec(cfg Config) (*ebpf.CollectionSpec, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, unsupported(err)
	}
	spec, err := loadWall()
	if err != nil {
		return nil, errs.New(errs.Internal, "the embedded eBPF object: %w", err)
	}
	for name, n := range cfg.Sizes.byMap() {
		spec.Maps[name].MaxEntries = n
	}
	coarse := uint32(0)
	if features.HaveProgramHelper(ebpf.SchedCLS, asm.FnKtimeGetCoarseNs) == nil {
		coarse = 1
	}
	vary := uint32(0)
	if cfg.Vary.On {
		vary = 1
	}
	set := map[string]any{"coarse_clock": coarse, "vary": vary, "vary_hosts": cfg.Vary.Hosts, "vary_ports": cfg.Vary.Ports}
	for name, d := range map[string]time.Duration{"tcp_idle": cfg.Times.TCPIdle, "tcp_brief": cfg.Times.TCPBrief,
		"one_way": cfg.Times.OneWay, "both_ways": cfg.Times.BothWays, "frag_time": cfg.Times.Fragment} {
		if d < 0 {
			return nil, errs.InvalidFields("wall", []errs.Field{{Field: "times", Value: d.String(), Rule: "must not be negative", Example: "60s"}})
		}
		if d > 0 {
			set[name] = uint64(d)
		}
	}
	for name, v := range set {
		if err := spec.Variables[name].Set(v); err != nil {
			return nil, errs.New(errs.Internal, "constant %s of the eBPF object: %w", name, err)
		}
	}
	return spec, nil
}

func (s Sizes) byMap() map[string]uint32 {
	or := func(n, otherwise uint32) uint32 {
		if n == 0 {
			return otherwise
		}
		return n
	}
	ports := or(s.Ports, 4096)
	return map[string]uint32{
		"flows4": or(s.Flows4, 131072), "flows6": or(s.Flows6, 65536), "frags": or(s.Frags, 4096),
		"ports": ports, "limits": ports, "tallies": ports + 1, "devices": ports,
		"members": or(s.Members, 262144), "stations": or(s.Members, 262144), "pairs": or(s.Pairs, 524288), "lists": or(s.Lists, 524288),
		"prefixes": or(s.Prefixes, 65536), "rules": or(s.Rules, 262144), "dries": ports * 2,
	}
}

// Open loads the programs, or finds those of an earlier life, and makes or finds the maps.
// Nothing is attached by it. errs.Unsupported says what the kernel lacks.
func Open(cfg Config) (*Wall, error) {
	if !filepath.IsAbs(cfg.Dir) {
		return nil, errs.InvalidFields("wall", []errs.Field{{Field: "dir", Value: cfg.Dir, Rule: "must be an absolute path", Example: "/run/atoll/bpf"}})
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder of the wall's pins: %w", err)
	}
	if err := mount.BPF(cfg.Dir); err != nil {
		return nil, unsupported(err)
	}
	w := &Wall{root: cfg.Dir, dir: filepath.Join(cfg.Dir, fmt.Sprintf("v%d", layout)), progs: map[string]*ebpf.Program{}}
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder of the wall's pins: %w", err)
	}
	spec, err := loadSpec(cfg)
	if err != nil {
		return nil, err
	}
	if err := w.load(spec); err != nil {
		w.Close()
		return nil, err
	}
	return w, w.greet()
}

// load finds or makes maps and programs, each pinned as soon as it is there: killed
// at any point, the next Open goes on from what it finds.
func (w *Wall) load(spec *ebpf.CollectionSpec) error {
	for name, ms := range spec.Maps {
		if strings.HasPrefix(name, ".") {
			continue
		}
		ms.Pinning = ebpf.PinByName
		old, err := ebpf.LoadPinnedMap(filepath.Join(w.dir, name), nil)
		switch {
		case err == nil:
			ms.MaxEntries = old.MaxEntries() // a table that is full of what counts is not made anew for its size
			old.Close()
		case !errors.Is(err, os.ErrNotExist):
			return fmt.Errorf("pinned map %s: %w", name, err)
		}
	}
	opts := ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: w.dir}}
	dir := w.programDir(spec)
	if w.pinned(dir) {
		// Only the maps are wanted: the programs are there, with these constants.
		spec.Programs = nil
		delete(spec.Maps, ".rodata")
		spec.Variables = nil
		return w.assign(spec, opts)
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, opts)
	if err != nil {
		return unsupported(err)
	}
	defer coll.Close()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("folder of the wall's programs: %w", err)
	}
	for name, p := range coll.Programs {
		os.Remove(filepath.Join(dir, name)) // of a life that ended in the middle
		if err := p.Pin(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
		w.progs[name] = p
	}
	coll.Programs = nil
	return w.take(coll)
}

func (w *Wall) assign(spec *ebpf.CollectionSpec, opts ebpf.CollectionOptions) error {
	coll, err := ebpf.NewCollectionWithOptions(spec, opts)
	if err != nil {
		return unsupported(err)
	}
	defer coll.Close()
	return w.take(coll)
}

func (w *Wall) take(coll *ebpf.Collection) error {
	if err := coll.Assign(&w.wallMaps); err != nil {
		return errs.New(errs.Internal, "maps of the eBPF object: %w", err)
	}
	return nil
}

// programDir is named after the code and its constants: other ones are other programs.
func (w *Wall) programDir(spec *ebpf.CollectionSpec) string {
	h := sha256.New()
	h.Write(_WallBytes)
	for _, name := range slices.Sorted(maps.Keys(spec.Variables)) {
		h.Write(spec.Variables[name].Value)
	}
	return filepath.Join(w.dir, programPrefix+hex.EncodeToString(h.Sum(nil)[:8]))
}

const programPrefix = "programs-"

// pinned loads the programs of an earlier life; false if not all are there.
func (w *Wall) pinned(dir string) bool {
	for _, name := range []string{progFrom, progTo, progHost, progVXLAN} {
		p, err := ebpf.LoadPinnedProgram(filepath.Join(dir, name), nil)
		if err != nil {
			w.closePrograms()
			return false
		}
		w.progs[name] = p
	}
	return true
}

// greet makes what must be there once: the tally of what belongs to no port, and settings.
func (w *Wall) greet() error {
	var s settings
	if err := w.wallMaps.Settings.Lookup(uint32(0), &s); err != nil {
		return fmt.Errorf("read the wall's settings: %w", err)
	}
	if s.EventCost == 0 {
		s.set(Telling{Rate: 1000, Burst: 1000})
		if err := w.wallMaps.Settings.Put(uint32(0), &s); err != nil {
			return fmt.Errorf("write the wall's settings: %w", err)
		}
	}
	return w.makeTally(0)
}

// Settle removes what older programs and layouts were pinned by. Call it when everything that an earlier life had attached
// is attached again: until then the old programs find their maps.
func (w *Wall) Settle() error {
	mine, err := w.mine()
	if err != nil {
		return err
	}
	tops, err := os.ReadDir(w.root)
	if err != nil {
		return fmt.Errorf("pins of the wall: %w", err)
	}
	for _, e := range tops {
		if p := filepath.Join(w.root, e.Name()); p != w.dir && ours(e) {
			if err := os.RemoveAll(p); err != nil {
				return fmt.Errorf("pins of an older wall: %w", err)
			}
		}
	}
	subs, err := os.ReadDir(w.dir)
	if err != nil {
		return fmt.Errorf("pins of the wall: %w", err)
	}
	for _, e := range subs {
		if p := filepath.Join(w.dir, e.Name()); e.IsDir() && p != mine {
			if err := os.RemoveAll(p); err != nil {
				return fmt.Errorf("pins of older programs: %w", err)
			}
		}
	}
	return nil
}

// ours is the folder of a layout. The kernel may have put files of its own beside them (CONFIG_BPF_PRELOAD).
func ours(e os.DirEntry) bool {
	n, found := strings.CutPrefix(e.Name(), "v")
	_, err := strconv.ParseUint(n, 10, 32)
	return found && err == nil && e.IsDir()
}

// mine is the folder in which this life's programs are pinned.
func (w *Wall) mine() (string, error) {
	id, err := programID(w.progs[progFrom])
	if err != nil {
		return "", err
	}
	dirs, err := filepath.Glob(filepath.Join(w.dir, programPrefix+"*"))
	if err != nil {
		return "", fmt.Errorf("pins of the wall: %w", err)
	}
	for _, d := range dirs {
		p, err := ebpf.LoadPinnedProgram(filepath.Join(d, progFrom), nil)
		if err != nil {
			continue
		}
		got, err := programID(p)
		p.Close()
		if err == nil && got == id {
			return d, nil
		}
	}
	return "", errs.New(errs.NotFound, "the wall's programs are not pinned in %s any more", w.dir).WithHint("something removed them: restart the daemon")
}

func programID(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, fmt.Errorf("ask about a program: %w", err)
	}
	id, ok := info.ID()
	if !ok {
		return 0, errs.New(errs.Unsupported, "this kernel does not number its programs").WithHint("Linux 5.10 or newer is needed")
	}
	return id, nil
}

// Close lets go of the wall. What is in the kernel stays, and in force.
func (w *Wall) Close() error {
	w.closePrograms()
	w.wallMaps.Close() // closing a map has nothing to tell
	return nil
}

func (w *Wall) closePrograms() {
	for n, p := range w.progs {
		p.Close()
		delete(w.progs, n)
	}
}

// Remove closes the wall and takes away its pins, those of older ones too, and the file
// system they are in. What is still attached goes with its interface: Detach, or delete those, first.
func (w *Wall) Remove() error {
	w.Close()
	return Remove(w.root)
}

// Remove takes away what any Wall pinned in dir. Nil when there is nothing.
func Remove(dir string) error {
	if ok, err := mount.IsBPF(dir); err != nil || !ok {
		return err
	}
	es, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("pins of the wall: %w", err)
	}
	for _, e := range es {
		if !ours(e) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("pins of the wall: %w", err)
		}
	}
	if err := mount.Detach(dir); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("folder of the wall's pins: %w", err)
	}
	return nil
}

// unsupported says what the kernel would need. A refusal of the verifier is told by its last lines.
func unsupported(err error) error {
	var ve *ebpf.VerifierError
	switch {
	case errors.As(err, &ve):
		return errs.New(errs.Unsupported, "the kernel refuses the wall's programs: %s", lastLines(fmt.Sprintf("%+v", ve), 3)).
			WithHint("Linux 5.10 or newer with CONFIG_BPF_SYSCALL, CONFIG_BPF_JIT and CONFIG_NET_CLS_BPF is needed")
	case errors.Is(err, os.ErrPermission):
		return errs.New(errs.Unsupported, "eBPF programs may not be loaded: %w", err).
			WithHint("run as root with CAP_BPF and CAP_NET_ADMIN; kernel lockdown and some container engines forbid it")
	case errors.Is(err, ebpf.ErrNotSupported):
		return errs.New(errs.Unsupported, "eBPF: %w", err).
			WithHint("Linux 5.10 or newer with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF is needed")
	}
	return errs.New(errs.Unsupported, "load the wall: %w", err).WithHint("Linux 5.10 or newer with CONFIG_BPF_SYSCALL, CONFIG_BPF_JIT and CONFIG_NET_CLS_BPF is needed")
}

func lastLines(s string, n int) string {
	ls := bytes.Split(bytes.TrimSpace([]byte(s)), []byte("\n"))
	return string(bytes.Join(ls[max(0, len(ls)-n):], []byte("; ")))
}

// Version is that of the programs in this build: what was found out with others does not count.
func Version() string {
	h := sha256.Sum256(_WallBytes)
	return hex.EncodeToString(h[:8])
}
