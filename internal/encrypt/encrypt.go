// Package encrypt has one host encrypt what networks of tenants send to the other hosts, as the pool wants it
// (docs/encryption.md): it keeps the host's WireGuard and its keys, has the others' keys from the store, and leads
// the tunnels of the network driver through it. What it says of itself the agent publishes (Extend); it writes
// nothing to the store.
//
// Run owns all goroutines. Start must be called before anything of tenants' networks is told to the driver. Once the
// pool's hosts encrypt, it must never let a tunnel leave the host in the clear, whatever fails.
package encrypt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
	"atoll/internal/sys/wg"
)

// Deps is what an Actor is built from.
type Deps struct {
	Node    string
	State   string // directory of the keys; survives reboots
	Store   store.Store
	Clock   clock.Clock
	Log     *slog.Logger
	Driver  driver.Fabric // nil, or one that is not Carried: there is nothing to encrypt
	Host    Host
	Random  io.Reader
	Publish func() // has the agent call Extend soon
}

// Actor is one host's.
type Actor struct {
	Deps
	driver driver.Carried
	engine *reconcile.Engine

	work   sync.Mutex // held by who looks and acts
	keys   *keyring
	device wg.Device // nil: none is open
	ear    ear
	watch  chan struct{} // there is a process whose end is to be seen
	heard  time.Time     // when ear last listened
	unused bool          // nothing of an earlier life is left

	mu  sync.Mutex // guards what follows
	now told
}

// told is what the host says of itself.
type told struct {
	demanded bool
	carried  netip.Addr // where tunnels go; the zero Addr: as configured
	status   *api.NodeEncryption
	failed   string // why it does not do what the pool wants
	silent   string // who does not answer
}

// New makes it; no goroutine, no I/O.
func New(d Deps) *Actor {
	a := &Actor{Deps: d, watch: make(chan struct{}, 1)}
	if c, ok := d.Driver.(driver.Carried); ok {
		if outer, _ := c.Outer(); outer.IsValid() {
			a.driver = c
		}
	}
	a.engine = reconcile.New(d.Store, d.Clock, d.Log, reconcile.Events{})
	a.engine.Add(&controller{a}, 1)
	return a
}

// Start does what the pool wanted when it was last heard of, and asks it. The host works on when that fails, by what is
// said of it then.
func (a *Actor) Start(ctx context.Context) error {
	if a.driver == nil {
		return nil
	}
	a.work.Lock()
	defer a.work.Unlock()
	_, err := a.sync(ctx)
	if err != nil {
		a.Log.Warn("encryption between hosts is not as it should be; trying again", "error", err)
	}
	return ctx.Err()
}

// Run works until ctx ends. What encrypts goes on.
func (a *Actor) Run(ctx context.Context) error {
	if a.driver == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	var wait sync.WaitGroup
	wait.Go(func() { _ = a.engine.Run(ctx) }) // always ctx's error
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-a.watch:
			a.Host.Lives(ctx.Done())
			a.engine.Enqueue(name, api.EncryptionRef())
		}
	}
	wait.Wait()
	a.work.Lock()
	defer a.work.Unlock()
	a.closeDevice()
	return ctx.Err()
}

// controller is the Actor as the engine sees it.
type controller struct{ *Actor }

const name = "encryption"

func (*controller) Name() string { return name }

// Watches what is wanted, and the others' keys.
func (*controller) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindEncryption}, {Kind: api.KindHostKey}}
}

// Owns nothing.
func (*controller) Owns() []api.Kind { return nil }

// Key is one name: everything is looked at together.
func (*controller) Key(api.Ref) api.Ref { return api.EncryptionRef() }

// Reconcile makes the host what it should be.
func (c *controller) Reconcile(ctx context.Context, _ store.Store, _ api.Ref) (reconcile.Result, error) {
	c.work.Lock()
	defer c.work.Unlock()
	again, err := c.sync(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{Again: again, Poll: true}, nil
}

const (
	lookEvery   = 10 * time.Second       // what nobody reports
	lookClosely = 100 * time.Millisecond // while another host takes its next key
	followFor   = time.Minute            // and for so long after it said it would
)

// sync looks at everything and acts. It is called with work held.
func (a *Actor) sync(ctx context.Context) (time.Duration, error) {
	t := told{}
	again, err := a.act(ctx, &t)
	if err != nil && t.demanded {
		t.failed = err.Error()
	}
	a.mu.Lock()
	changed := !reflect.DeepEqual(a.now, t)
	a.now = t
	a.mu.Unlock()
	if changed && a.Publish != nil {
		a.Publish()
	}
	return again, err
}

// wish is what the pool wants; when it cannot be asked, what it wanted last.
func (a *Actor) wish(ctx context.Context) (spec api.EncryptionSpec, demanded, active bool, err error) {
	e, err := store.Get[*api.Encryption](ctx, a.Store, api.EncryptionRef())
	switch {
	case errors.Is(err, errs.NotFound):
		return spec, false, false, nil
	case err != nil && a.keys != nil:
		return api.EncryptionSpec{Port: a.keys.Port}, true, a.keys.Active, nil
	case err != nil:
		return spec, false, false, fmt.Errorf("read %s: %w", api.EncryptionRef(), err)
	}
	return e.Spec, e.Demanded(), e.Demanded() && e.Status.Mode == api.EncryptionWireguard, nil
}

func (a *Actor) act(ctx context.Context, t *told) (time.Duration, error) {
	if a.keys == nil {
		k, err := loadKeys(a.State)
		if err != nil { // whether it may send in the clear is not known: it may not
			t.demanded = true
			_, port := a.driver.Outer()
			t.status = &api.NodeEncryption{Active: a.Host.Shut(port) == nil}
			return 0, err
		}
		a.keys = k
	}
	spec, demanded, active, err := a.wish(ctx)
	if err != nil {
		return 0, err
	}
	if !demanded {
		return lookEvery, a.stop(ctx)
	}
	a.unused = false
	t.demanded, t.status = true, &api.NodeEncryption{}
	err = a.ready(spec, active) // what it notes is how a later life knows what there is to undo
	if active {
		// Nothing leaves in the clear any more, also when the rest fails.
		_, port := a.driver.Outer()
		serr := a.Host.Shut(port)
		t.status.Active = serr == nil
		err = errors.Join(err, serr)
	}
	if err != nil {
		return 0, err
	}
	again, err := a.follow(ctx, spec, t)
	if err != nil {
		return 0, err
	}
	if active {
		inner := api.InnerAddress(a.Node)
		if err := a.driver.Carry(ctx, driver.Underlay{Local: inner, Also: []netip.Addr{inner}}); err != nil {
			return 0, fmt.Errorf("lead tunnels through WireGuard: %w", err)
		}
		t.carried = inner
	}
	return again, nil
}

// ready has the keyring say what must be known after a restart.
func (a *Actor) ready(spec api.EncryptionSpec, active bool) error {
	k := a.keys
	if k == nil {
		var err error
		if k, err = newKeyring(a.Random, a.Clock.Now().UTC()); err != nil {
			return err
		}
	}
	if a.keys != nil && k.Active == active && k.Port == int(spec.EffectivePort()) {
		return nil
	}
	next := *k
	next.Active, next.Port = active, int(spec.EffectivePort())
	if err := next.save(a.State); err != nil {
		return err
	}
	a.keys = &next
	return nil
}

// follow keeps the device: its key, its port, its peers.
func (a *Actor) follow(ctx context.Context, spec api.EncryptionSpec, t *told) (time.Duration, error) {
	list, _, err := store.List[*api.HostKey](ctx, a.Store, api.Selector{Kind: api.KindHostKey})
	if err != nil && !errors.Is(err, errs.Unavailable) {
		return 0, fmt.Errorf("list keys of hosts: %w", err)
	}
	away := err != nil
	outer, _ := a.driver.Outer()
	inner := api.InnerAddress(a.Node)
	a.closeDevice()
	d, by, err := a.Host.Ensure(ctx, netip.PrefixFrom(inner, api.InnerPrefix().Bits()), outer)
	if err != nil {
		return 0, fmt.Errorf("WireGuard on this host: %w", err)
	}
	a.device = d
	if by == ByProcess {
		select {
		case a.watch <- struct{}{}:
		default: // it is watched, or will be
		}
	}
	now := a.Clock.Now().UTC()
	shown := ""
	if i := slices.IndexFunc(list, func(k *api.HostKey) bool { return k.Name == a.Node }); i >= 0 {
		shown = list[i].Spec.Next
	}
	var again time.Duration
	if spec.Mode != "" { // else the pool was not asked: nobody would learn of a new key
		if again, err = a.turn(spec, shown, now); err != nil {
			return 0, err
		}
	}
	st, err := d.State()
	if err != nil {
		return 0, err
	}
	private, public, err := a.keys.private()
	if err != nil {
		return 0, err
	}
	var c wg.Change
	want := wanted(a.Node, list, st.Peers)
	if !away { // else the peers stay who they are
		c = change(st.Peers, want)
	}
	if st.Public.Text() != public {
		c.Private = &private
	}
	if port := spec.EffectivePort(); st.Port != port {
		c.Port = &port
	}
	if !c.Empty() {
		if err := d.Apply(c); err != nil {
			return 0, err
		}
	}
	if now.Sub(a.heard) >= lookEvery {
		a.heard = now
		t.silent = silent(a.ear.listen(st.Peers, want, now))
	} else {
		t.silent = a.told().silent
	}
	t.status.Key, t.status.Since, t.status.By = public, a.keys.Since, by
	t.status.Endpoint, t.status.Address = netip.AddrPortFrom(outer, spec.EffectivePort()).String(), inner.String()
	if a.keys.Next != "" {
		_, next, err := pair(a.keys.Next)
		if err != nil {
			return 0, err
		}
		from := a.keys.NextFrom
		t.status.Next, t.status.NextFrom = next, &from
	}
	return sooner(again, following(a.Node, list, now)), nil
}

// turn takes the next key when it is time. It is on the disk before it is used.
func (a *Actor) turn(spec api.EncryptionSpec, shown string, now time.Time) (time.Duration, error) {
	next := *a.keys
	changed, again, err := next.turn(a.Node, spec.EffectiveRotate(), shown, a.Random, now)
	if err != nil || !changed {
		return again, err
	}
	if err := next.save(a.State); err != nil {
		return 0, err
	}
	if next.Key != a.keys.Key {
		a.Log.Info("this host has a new key for encryption")
	}
	a.keys = &next
	return again, nil
}

// following is how soon to look again for the sake of hosts that take their next key.
func following(self string, list []*api.HostKey, now time.Time) time.Duration {
	again := lookEvery
	for _, k := range list {
		if k.Name == self || k.Spec.NextFrom == nil || k.Spec.Next == "" {
			continue
		}
		switch left := k.Spec.NextFrom.Sub(now); {
		case left > 0:
			again = sooner(again, left)
		case left > -followFor:
			again = sooner(again, lookClosely)
		}
	}
	return again
}

func sooner(a, b time.Duration) time.Duration {
	if a <= 0 || b > 0 && b < a {
		return b
	}
	return a
}

// stop is what a pool has that wants no encryption: tunnels as configured, no WireGuard, no keys.
func (a *Actor) stop(ctx context.Context) error {
	if a.unused {
		return nil
	}
	if a.keys != nil {
		if err := a.Host.Unshut(); err != nil {
			return err
		}
	}
	if err := a.driver.Carry(ctx, driver.Underlay{Also: []netip.Addr{api.InnerAddress(a.Node)}}); err != nil {
		return fmt.Errorf("lead tunnels as configured: %w", err)
	}
	a.closeDevice()
	if a.keys != nil {
		if err := a.Host.Remove(ctx); err != nil {
			return err
		}
		if err := os.RemoveAll(a.State); err != nil { // last: it says that there was something to undo
			return errs.New(errs.Unavailable, "keys of this host: %w", err)
		}
	}
	a.keys, a.ear, a.unused = nil, ear{}, true
	return nil
}

func (a *Actor) closeDevice() {
	if a.device != nil {
		_ = a.device.Close() // a socket that was read from
		a.device = nil
	}
}

func (a *Actor) told() told {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.now
}

// Extend adds to a node's status what there is to say of encryption: a host that should encrypt
// and cannot takes no part in networks of tenants.
func (a *Actor) Extend(st *api.NodeStatus) {
	if a.driver == nil {
		return
	}
	t := a.told()
	i := slices.IndexFunc(st.Drivers, func(c api.Capability) bool { return c.Type == "network" && c.Name == api.DriverOverlay })
	if i >= 0 {
		c := st.Drivers[i]
		c.Features = maps.Clone(c.Features)
		local := t.carried
		if !local.IsValid() {
			local, _ = a.driver.Outer()
		}
		c.Features["tunnel"] = local.String()
		st.Drivers = slices.Clone(st.Drivers)
		if st.Drivers[i] = c; t.failed != "" {
			st.Drivers = slices.Delete(st.Drivers, i, i+1)
		}
	}
	if !t.demanded {
		return
	}
	st.Encryption = t.status
	st.Conditions = append(st.Conditions,
		api.Condition{Type: api.ConditionEncryption, Status: t.failed == "", Reason: "WireGuard", Message: t.failed})
	path := api.Condition{Type: api.ConditionEncryptedPath, Status: t.silent == "", Reason: "Handshakes"}
	if t.silent != "" {
		path.Message = "nothing is heard of hosts to which something is sent: " + t.silent
	}
	st.Conditions = append(st.Conditions, path)
}
