// Package lab gives tests, benches and people several hosts on one machine: network
// namespaces joined by a bridge in a namespace of its own, each with the real daemon, its
// own directories and resource groups. Hosts are started, killed, stopped, cut off, slowed
// down, filled up, lost and brought back. Nothing touches the machine's own network.
//
// A lab belongs to the process that made it and ends with it, unless it is kept. What a
// process leaves that was killed is found by its name and removed when the next lab is
// made. Only what a lab has started is ever ended. Close waits for all goroutines.
package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"atoll/internal/errs"
	"atoll/internal/sys/mount"
	"atoll/test/rig"
)

// Options say what a lab is made of.
type Options struct {
	Hosts int      // how many; default 3
	Flags []string // more flags for every atolld up
	// Name of a lab that is kept: it stays when this process ends, and is found by Open. Default: an invented
	// one, and the lab ends with this process.
	Name string
	// Disk bounds the state directory of every host, in bytes: it is on a disk of its own that can be
	// filled (Host.FillDisk). Default 0: the machine's disk, which cannot.
	Disk int64
	// Here makes this process's own network namespace the switch of the lab, so that it reaches the
	// hosts by their addresses. It must not be the machine's; see rig.Alone.
	Here bool
}

// Lab is some hosts that can be one pool.
type Lab struct {
	Bin   string // directory of the binaries
	Name  string
	Dir   string // everything of the lab but what must be in memory
	Hosts []*Host
	Flags []string
	Disk  int64

	kept bool
	hub  *rig.Space // where the bridge is

	mu      sync.Mutex
	token   string // to join by
	secret  string // of an administrator, for the API over TLS
	stopped []func()
}

// prefix marks all that is of labs: directories, holders of namespaces, resource groups.
const prefix = "atl-"

// MaxHosts that one network of a lab holds.
const MaxHosts = 200

// port of the API on every host.
const port = "7443"

// Dir is where the lab of a name is.
func Dir(name string) string { return filepath.Join(os.TempDir(), prefix+name) }

// New makes hosts that run nothing yet. bin is the directory of the binaries; see rig.Build.
func New(ctx context.Context, bin string, o Options) (*Lab, error) {
	if o.Hosts == 0 {
		o.Hosts = 3
	}
	if o.Hosts < 1 || o.Hosts > MaxHosts {
		return nil, errs.InvalidFields("lab", []errs.Field{{Field: "hosts", Value: strconv.Itoa(o.Hosts), Rule: fmt.Sprintf("must be 1 to %d", MaxHosts), Example: "3"}})
	}
	if err := Sweep(ctx, bin); err != nil {
		return nil, err
	}
	l := &Lab{Bin: bin, Name: o.Name, Flags: o.Flags, Disk: o.Disk, kept: o.Name != ""}
	if l.Name == "" {
		var b [3]byte
		if _, err := rand.Read(b[:]); err != nil {
			return nil, err
		}
		l.Name = hex.EncodeToString(b[:])
	}
	l.Dir = Dir(l.Name)
	if err := os.Mkdir(l.Dir, 0o711); err != nil {
		return nil, errs.New(errs.Exists, "make a lab: %w", err).WithHint("make lab DO=down")
	}
	for i := range o.Hosts {
		l.Hosts = append(l.Hosts, newHost(l, i+1))
	}
	if err := errors.Join(l.own(), l.save()); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if err := l.build(o.Here); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// build makes the network and the directories.
func (l *Lab) build(here bool) (err error) {
	if here {
		l.hub, err = ownHub()
	} else {
		l.hub, err = rig.NewSpace(prefix+l.Name+"-hub", l.kept)
	}
	if err != nil {
		return err
	}
	if err := l.makeBridge(); err != nil {
		return err
	}
	for _, h := range l.Hosts {
		if err := os.MkdirAll(h.State, 0o711); err != nil {
			return err
		}
		if l.Disk > 0 {
			if err := mount.Tmpfs(h.State, l.Disk, 0o711); err != nil {
				return err
			}
		}
		if err := h.plug(); err != nil {
			return err
		}
	}
	return nil
}

// file is what a lab writes down of itself: lab.json.
type file struct {
	Bin   string   `json:"bin"`
	Hosts int      `json:"hosts"`
	Flags []string `json:"flags,omitempty"`
	Disk  int64    `json:"disk,omitempty"`
	Token string   `json:"token,omitempty"` // to join by
}

func (l *Lab) save() error {
	b, err := json.Marshal(file{Bin: l.Bin, Hosts: len(l.Hosts), Flags: l.Flags, Disk: l.Disk, Token: l.token})
	if err != nil {
		return err
	}
	tmp := filepath.Join(l.Dir, "lab.new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(l.Dir, "lab.json"))
}

// Open finds the kept lab of a name; errs.NotFound when there is none.
func Open(name string) (*Lab, error) {
	l, err := open(Dir(name))
	if err != nil {
		return nil, err
	}
	if l.hub = rig.FindSpace(prefix + name + "-hub"); l.hub == nil {
		return nil, errs.New(errs.Conflict, "the lab %s is no more: the machine was started anew, or its processes were killed", name).WithHint("make lab DO=down")
	}
	for _, h := range l.Hosts {
		h.space = rig.FindSpace(h.Group) // nil: it is off
	}
	return l, nil
}

// open reads what a lab wrote down.
func open(dir string) (*Lab, error) {
	b, err := os.ReadFile(filepath.Join(dir, "lab.json"))
	name := strings.TrimPrefix(filepath.Base(dir), prefix)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "there is no lab %s", name).WithHint("make lab HOSTS=3")
	}
	if err != nil {
		return nil, err
	}
	var f file
	if err := json.Unmarshal(b, &f); err != nil || f.Hosts < 1 || f.Hosts > MaxHosts {
		return nil, errs.New(errs.Invalid, "%s/lab.json cannot be read", dir).WithHint("make lab DO=down")
	}
	l := &Lab{Bin: f.Bin, Name: name, Dir: dir, Flags: f.Flags, Disk: f.Disk, token: f.Token, kept: true}
	for i := range f.Hosts {
		l.Hosts = append(l.Hosts, newHost(l, i+1))
	}
	return l, nil
}

// Host is the host of a name, such as isle2; nil when there is none.
func (l *Lab) Host(name string) *Host {
	for _, h := range l.Hosts {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// Close takes the lab away: daemons, instances, groups, namespaces, files.
func (l *Lab) Close() error {
	l.mu.Lock()
	stopped := l.stopped
	l.stopped = nil
	l.mu.Unlock()
	for _, fn := range stopped {
		fn()
	}
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	var wg sync.WaitGroup
	all := make([]error, len(l.Hosts))
	for i, h := range l.Hosts {
		wg.Go(func() { all[i] = h.remove(ctx) })
	}
	wg.Wait()
	if l.hub != nil {
		l.dropBridge()
		l.hub.Close()
	}
	if err := errors.Join(all...); err != nil {
		return fmt.Errorf("take the lab %s away: %w", l.Name, err)
	}
	return os.RemoveAll(l.Dir)
}

const (
	closePatience = 2 * time.Minute
	startPatience = 40 * time.Second
)

// atEnd has fn called by Close.
func (l *Lab) atEnd(fn func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = append(l.stopped, fn)
}
