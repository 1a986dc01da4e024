// Package adopt brings this host into another pool with what it runs: atolld join --adopt.
// It reads the host's own pool from its files, asks the other pool for a plan and to take
// the host, tells the drivers what tenants are called from then on, and puts the old pool
// away. It runs in the place of the daemon, whose lock the caller holds, and starts nothing.
// Every step may be the last; called again, it goes on.
package adopt

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/image"
	"atoll/internal/join"
	"atoll/internal/store"
	"atoll/internal/store/etcdstore"
)

// Host is this host, as the daemon would open it.
type Host struct {
	State   string
	Node    string // the name it is to have
	Named   bool   // whoever types has said so; else it keeps the one it has
	Subnet  string
	Version string
	Open    func(ctx context.Context, member string) (Store, error) // the pool's state, by the name of its member
	Drivers func() (Drivers, error)
	Images  func(ctx context.Context) (*image.Store, error)
	Deps    join.Deps
}

// Store is the state of the host's own pool.
type Store interface {
	store.Store
	Close() error
}

// Drivers are what its instances are run by.
type Drivers struct {
	Runtimes map[string]driver.Runtime
	Network  driver.Network
	Storage  driver.Storage
}

// Options are what was typed.
type Options struct {
	URLs           []string
	Token, Address string
	Into           string // tenant
	Output         string // "" or json
	DryRun, Yes    bool
	Out            io.Writer // for the plan, and what was done
}

// Run does it. Up to the moment in which the other pool takes the host nothing has
// changed; from then on every step may be repeated.
func Run(ctx context.Context, h Host, o Options) error {
	m, err := join.Moving(h.State)
	if err != nil {
		return err
	}
	if m == nil {
		if err := h.mayMove(); err != nil {
			if h.arrived(o) {
				return nil
			}
			return err
		}
	} else if m.Tenant != o.Into {
		return errs.New(errs.Conflict, "this host is on its way into %s already", m.Tenant).WithHint("finish that first: atolld join URL --adopt %s", m.Tenant)
	}
	if o.DryRun && m != nil && m.Answer != nil {
		fmt.Fprintln(os.Stderr, "the pool has taken this host; without --dry-run the command goes on with this:")
		return showPlan(o.Out, o, m.Plan)
	}
	var own *ownPool
	if _, err := os.Lstat(h.etcd()); err == nil { // else it was put away already
		if own, err = h.readOwn(ctx); err != nil {
			return err
		}
		switch {
		case m != nil:
			h.Node = m.Node
		case !h.Named:
			h.Node = own.Node
		}
	}
	if m == nil || m.Answer == nil {
		if m, err = h.ask(ctx, o, own, m); m == nil || err != nil {
			return err
		}
	}
	if own != nil {
		if err := h.rename(ctx, own, m.Plan); err != nil {
			return err
		}
	}
	id, err := m.Leave(h.State, h.Deps)
	if err != nil {
		return err
	}
	w := o.Out
	if o.Output == "json" {
		w = os.Stderr
	}
	fmt.Fprintf(w, "\n%s joined the pool with what it runs, in %s; servers: %s\nThe pool it had is kept: %s (a backup), %s (its files).\nIt takes part with: atolld up\n",
		id.Node(), m.Tenant, strings.Join(id.Endpoints(), " "), filepath.Join(h.State, backupBefore), filepath.Join(h.State, m.Aside))
	return nil
}

func (h *Host) etcd() string { return filepath.Join(h.State, "etcd") }

// backupBefore is the old pool, as atoll backup create would have written it.
const backupBefore = "before-join.atoll"

// mayMove refuses where there is no pool of this host's own, or not only of its own.
func (h *Host) mayMove() error {
	id, err := join.Load(h.State, h.Deps)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	if id != nil && !id.Founder() {
		return errs.New(errs.Conflict, "this host belongs to a pool already, as %s", id.Node()).WithHint("only a host whose pool is its own brings it along. Take it out there first: atoll drain %s, atoll node remove %s; then here: atolld down --data", id.Node(), id.Node())
	}
	copied, err := etcdstore.Inspect(h.etcd())
	if errors.Is(err, errs.NotFound) {
		return errs.New(errs.NotFound, "this host has no pool of its own in %s", h.State).WithHint("join without --adopt, or name its directory: --state DIR")
	}
	if err == nil && len(copied.Members) > 1 {
		return errs.New(errs.Conflict, "%d hosts keep the state of this host's pool", len(copied.Members)).WithHint("only a pool of one host can be brought along. Start it, and take the others out: atoll drain NODE, atoll node remove NODE")
	}
	return err
}

// arrived reports whether this host is in the pool already that it is to join: asked
// again after all was done, the command has nothing to do.
func (h *Host) arrived(o Options) bool {
	id, err := join.Load(h.State, h.Deps)
	if err != nil || id.Founder() {
		return false
	}
	for _, u := range o.URLs {
		if slices.Contains(id.Endpoints(), strings.TrimSuffix(u, "/")) {
			fmt.Fprintf(o.Out, "%s is in the pool already; servers: %s\nIt takes part with: atolld up\n", id.Node(), strings.Join(id.Endpoints(), " "))
			return true
		}
	}
	return false
}

// ownPool is the pool that this host has for itself.
type ownPool struct {
	join.Own
	objects []api.Object
	backup  func(w io.Writer) error
}

// readOwn reads it from its files; nothing serves it meanwhile.
func (h *Host) readOwn(ctx context.Context) (own *ownPool, err error) {
	copied, err := etcdstore.Inspect(h.etcd())
	if err != nil {
		return nil, err
	}
	member := h.Node
	if len(copied.Members) == 1 {
		member = cmp.Or(copied.Members[0].Name, member)
	}
	base, err := h.Open(ctx, member)
	if err != nil {
		return nil, fmt.Errorf("open this host's pool: %w", err)
	}
	defer func() { err = errors.Join(err, base.Close()) }()
	objs, rev, err := base.List(ctx, api.Selector{})
	if err != nil {
		return nil, fmt.Errorf("read this host's pool: %w", err)
	}
	own = &ownPool{objects: objs}
	own.Subnet = h.Subnet
	if id, err := join.Load(h.State, h.Deps); err == nil && id.Pool().Subnet != "" && id.Founder() {
		own.Subnet = id.Pool().Subnet
	}
	var names []string
	for _, o := range objs {
		b, err := api.Encode(o)
		if err != nil {
			return nil, errs.New(errs.Internal, "encode %s: %w", api.RefOf(o), err)
		}
		own.Own.Objects = append(own.Own.Objects, b)
		if n, ok := o.(*api.Node); ok {
			names = append(names, n.Name)
		}
	}
	switch {
	case len(names) > 1:
		return nil, errs.New(errs.Conflict, "this host's pool has %d hosts: %s", len(names), strings.Join(names, ", ")).
			WithHint("only a pool of one host can be brought along. Start it, and take the others out: atoll drain NODE, atoll node remove NODE")
	case len(names) == 0:
		return nil, errs.New(errs.Conflict, "this host's pool has no host").WithHint("start it once: atolld up")
	}
	own.Node = names[0]
	at := still{objs, rev}
	own.backup = func(w io.Writer) error { return store.Dump(context.WithoutCancel(ctx), at, w, time.Now()) }
	return own, nil
}

// still is a store as it was read once, for a backup.
type still struct {
	objs []api.Object
	rev  int64
}

func (s still) Get(context.Context, api.Ref) (api.Object, error) { return nil, errs.Unsupported }
func (s still) List(context.Context, api.Selector) ([]api.Object, int64, error) {
	return s.objs, s.rev, nil
}
func (s still) Commit(context.Context, ...store.Op) (int64, error) { return 0, errs.Unsupported }
func (s still) Watch(context.Context, api.Selector, int64, func(store.Event) error) error {
	return errs.Unsupported
}

// ask plans, shows the plan, asks whoever types, and has the pool take the host. nil:
// nothing was to be done. m is what an earlier attempt noted that did not hear an answer.
func (h *Host) ask(ctx context.Context, o Options, own *ownPool, m *join.Move) (*join.Move, error) {
	if own == nil {
		return nil, errs.New(errs.Internal, "the files of this host's pool are gone, and no pool has taken it")
	}
	req := join.Request{Dir: h.State, URLs: o.URLs, Token: o.Token, Node: h.Node, Address: o.Address, Version: h.Version}
	ans, err := join.Adopt(ctx, h.Deps, req, own.Own, o.Into, true)
	if err != nil {
		return nil, err
	}
	foreign, err := h.unmovable(own)
	if err != nil {
		return nil, err
	}
	ans.Plan.Clashes = append(ans.Plan.Clashes, foreign...)
	if err := showPlan(o.Out, o, &ans.Plan); err != nil {
		return nil, err
	}
	if len(ans.Plan.Clashes) > 0 {
		err := inTheWay(ans.Plan.Clashes)
		if m != nil && !o.DryRun { // an earlier attempt did not get there: the pool does not have this host
			err = errors.Join(err, m.Drop(h.State))
		}
		return nil, err
	}
	if o.DryRun {
		return nil, nil //nolint:nilnil // as was asked for
	}
	if !o.Yes && !agreed() {
		return nil, errs.New(errs.Conflict, "nothing was changed")
	}
	if err := h.keepBackup(own); err != nil {
		return nil, err
	}
	if m == nil {
		if m, err = join.NewMove(h.State, o.Into, h.Node); err != nil {
			return nil, err
		}
	}
	if err := m.Save(h.State); err != nil { // from here on the old pool must not go on by itself
		return nil, err
	}
	ans, err = join.Adopt(ctx, h.Deps, req, own.Own, o.Into, false)
	if err == nil && len(ans.Plan.Clashes) > 0 { // they came after the plan was shown
		err = inTheWay(ans.Plan.Clashes)
		for _, f := range ans.Plan.Clashes {
			fmt.Fprintln(os.Stderr, f)
		}
	}
	if err != nil {
		if known(err) {
			return nil, errors.Join(err, m.Drop(h.State))
		}
		return nil, fmt.Errorf("%w; whether the pool has taken this host is not known: repeat the command", err)
	}
	m.Plan, m.Answer = &ans.Plan, ans.Join
	return m, m.Save(h.State)
}

func inTheWay(clashes []errs.Field) error {
	return errs.New(errs.Conflict, "%d of what is in the way must be changed first; nothing was changed", len(clashes)).WithHint("change it, here or in the pool, and repeat the command; this host's pool goes on with: atolld up")
}

// known reports whether an error says for certain that the pool has not taken the host.
func known(err error) bool {
	switch errs.KindOf(err) {
	case errs.Invalid, errs.Unauthenticated, errs.Denied, errs.NotFound, errs.Exists, errs.Conflict, errs.Quota, errs.NoCapacity, errs.Unsupported:
		return true
	}
	return false
}

// unmovable are instances whose runtime cannot be told of new names.
func (h *Host) unmovable(own *ownPool) ([]errs.Field, error) {
	dv, err := h.Drivers()
	if err != nil {
		return nil, err
	}
	var out []errs.Field
	for _, o := range own.objects {
		in, ok := o.(*api.Instance)
		if !ok || in.Status.Node == "" {
			continue
		}
		kind := string(in.Spec.EffectiveIsolation())
		if _, ok := dv.Runtimes[kind].(driver.Renamer); !ok {
			out = append(out, errs.Field{Field: "instance " + in.Tenant + "/" + in.Name, Value: kind, Rule: "must be of an isolation that can be brought along: stop and remove it first, and make it anew in the pool", Example: "container"})
		}
	}
	return out, nil
}

func agreed() bool {
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return true
	}
	fmt.Fprint(os.Stderr, "\nGo on? [y/N] ")
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	return err == nil && slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(line)))
}

// keepBackup writes the old pool down, as a whole or not at all.
func (h *Host) keepBackup(own *ownPool) error {
	var b strings.Builder
	if err := own.backup(&b); err != nil {
		return err
	}
	return join.WriteFile(filepath.Join(h.State, backupBefore), []byte(b.String()))
}

// rename tells everything on this host that keeps names of tenants what these are from
// now on. Each part may be called again; processes run on.
func (h *Host) rename(ctx context.Context, own *ownPool, plan *api.AdoptPlan) error {
	imgs, err := h.Images(ctx)
	if err != nil {
		return err
	}
	err = renameImages(ctx, imgs, plan)
	if err := errors.Join(err, imgs.Close()); err != nil {
		return fmt.Errorf("names of images: %w", err)
	}
	dv, err := h.Drivers()
	if err != nil {
		return err
	}
	if r, ok := dv.Storage.(driver.Renamer); ok {
		if err := r.Rename(ctx, plan.Tenants); err != nil {
			return err
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(dv.Runtimes)) {
		rt := dv.Runtimes[kind]
		if r, ok := rt.(driver.Renamer); ok {
			if err := r.Rename(ctx, plan.Tenants); err != nil {
				return fmt.Errorf("instances of isolation %s: %w", kind, err)
			}
		}
		if err := reattach(ctx, dv.Network, rt, own, plan); err != nil {
			return err
		}
	}
	return nil
}

// renameImages gives images to the tenants that have them from now on; what everybody
// could use before becomes the own image of those who use it.
func renameImages(ctx context.Context, imgs *image.Store, plan *api.AdoptPlan) error {
	if err := imgs.Rescope(ctx, plan.Tenants); err != nil {
		return err
	}
	for _, n := range plan.Names {
		name, shared := strings.CutPrefix(n.Old, api.SharedTenant+"/")
		if n.Kind != api.KindImage || !shared {
			continue
		}
		for _, info := range imgs.List("") { // everybody's
			if api.ImageName(info.Name()) != name {
				continue
			}
			if _, err := imgs.Tag(ctx, filepath.Dir(n.New), info.Digest, info.Reference); err != nil && !errors.Is(err, errs.NotFound) {
				return err
			}
		}
	}
	return nil
}

// reattach has the network know the instances that run by their tenants' new names: who
// may reach whom follows from these.
func reattach(ctx context.Context, net driver.Network, rt driver.Runtime, own *ownPool, plan *api.AdoptPlan) error {
	seen, err := rt.Observe(ctx)
	if err != nil {
		return fmt.Errorf("look at what runs: %w", err)
	}
	instances, assigned := map[string]*api.Instance{}, map[string]*api.Assignment{}
	for _, o := range own.objects {
		switch o := o.(type) {
		case *api.Instance:
			instances[o.UID] = o
		case *api.Assignment:
			assigned[o.Spec.InstanceUID] = o
		}
	}
	for _, o := range seen {
		in, as := instances[o.UID], assigned[o.UID]
		if o.Phase != driver.PhaseRunning || o.NetNS == "" || in == nil || as == nil || as.Spec.Address == "" || net == nil {
			continue
		}
		if n := in.Spec.Network(); n == api.NetworkNone || n == api.NetworkHost {
			continue
		}
		in = api.Clone(in)
		in.Tenant = cmp.Or(plan.Tenants[in.Tenant], in.Tenant)
		spec := driver.Spec{ID: o.ID, Instance: in, Network: driver.NetworkSpec{Mode: "bridge", Address: as.Spec.Address}}
		err := net.Attach(ctx, o.NetNS, spec)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // it has just ended
			return fmt.Errorf("network of %s/%s: %w", in.Tenant, in.Name, err)
		}
	}
	return nil
}

// showPlan prints what is called how, and what does not come along.
func showPlan(w io.Writer, o Options, p *api.AdoptPlan) error {
	if o.Output == "json" {
		b, err := json.MarshalIndent(p, "", "  ")
		if err != nil {
			return errs.New(errs.Internal, "write the plan: %w", err)
		}
		_, err = fmt.Fprintf(w, "%s\n", b)
		return err
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintf(t, "COMES ALONG\tOLD NAME\tNEW NAME\n")
	more := map[api.Kind]int{}
	for _, n := range p.Names {
		switch n.Kind {
		case api.KindAssignment, api.KindRevision, api.KindEvent: // they follow what they are about
			more[n.Kind]++
		default:
			fmt.Fprintf(t, "%s\t%s\t%s\n", strings.ToLower(string(n.Kind)), n.Old, n.New)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(more)) {
		fmt.Fprintf(t, "%s\t%d\t\n", strings.ToLower(string(k)), more[k])
	}
	if len(p.Left) > 0 {
		if err := t.Flush(); err != nil {
			return err
		}
		fmt.Fprintf(t, "\nSTAYS BEHIND\tNAME\tWHY\n")
	}
	for _, l := range p.Left {
		fmt.Fprintf(t, "%s\t%s\t%s\n", strings.ToLower(string(l.Kind)), l.Name, l.Why)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(p.Clashes) > 0 {
		fmt.Fprintln(w, "\nIN THE WAY")
	}
	for _, f := range p.Clashes {
		fmt.Fprintf(w, "  %s\n", f)
	}
	return nil
}
