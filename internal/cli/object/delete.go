package object

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/store"
)

type deleteOptions struct {
	verb.Waiting
	files         []string
	recursive     bool
	labels        string
	all, now, yes bool
	missing       bool
	cascade       string
}

// Delete removes objects.
func Delete() verb.Def {
	o := &deleteOptions{}
	return verb.Def{
		Use: "delete KIND/NAME… | KIND NAME… | KIND -l … | -f FILE", Group: verb.GroupObject, Aliases: []string{"rm"}, Max: -1,
		Short: "Remove objects",
		Long: `Delete asks for removal and waits until all is cleaned up. An instance is asked to
end first (--now kills it at once). What a deployment, job or cron job made goes with
it; --cascade orphan leaves it. What is not there is an error, unless
--ignore-not-found is given.`,
		Example: `  atoll delete instance/web instance/db
  atoll delete instances -l app=web --now
  atoll delete instances --all --tenant demo
  atoll delete deployment/web --cascade orphan     its instances run on
  atoll delete -f web.yaml`,
		Flags: o.flags, Run: o.run, Complete: verb.CompleteObjects,
	}
}

func (o *deleteOptions) flags(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&o.files, "filename", "f", nil, "the objects named in this file or directory; - reads standard input")
	fs.BoolVarP(&o.recursive, "recursive", "R", false, "also the directories inside")
	fs.StringVarP(&o.labels, "selector", "l", "", "those with these labels")
	fs.BoolVar(&o.all, "all", false, "all of the kind in the tenant")
	fs.BoolVar(&o.now, "now", false, "kill instances at once instead of asking them to end")
	fs.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	fs.BoolVar(&o.missing, "ignore-not-found", false, "what is not there is fine")
	fs.StringVar(&o.cascade, "cascade", "delete", "what a deployment, job or cron job made: delete, or orphan to leave it")
	o.Waiting.Flags(fs, "it is gone", true)
}

func (o *deleteOptions) run(ctx context.Context, c *verb.Call) error {
	objs, err := o.read(ctx, c)
	if err != nil {
		return err
	}
	if len(objs) == 0 {
		c.Note("nothing to delete")
		return nil
	}
	if err := o.mayOrphan(objs); err != nil {
		return err
	}
	if err := o.ask(c, objs); err != nil {
		return err
	}
	if o.cascade == api.CascadeOrphan {
		for i, obj := range objs {
			objs[i], err = verb.Update(ctx, c, obj, func(obj api.Object) {
				m := obj.Metadata()
				m.Annotations = verb.With(m.Annotations, api.AnnotationCascade, api.CascadeOrphan)
			})
			if err != nil {
				return err
			}
		}
	}
	return deleteAll(ctx, c, objs, o.now, o.Waiting)
}

// mayOrphan: only what makes others can leave them.
func (o *deleteOptions) mayOrphan(objs []api.Object) error {
	switch o.cascade {
	case "", "delete":
		return nil
	case api.CascadeOrphan:
	default:
		return parse.BadFlag("cascade", o.cascade, "must be delete or orphan", "orphan")
	}
	for _, obj := range objs {
		switch obj.(type) {
		case *api.Deployment, *api.Job, *api.CronJob:
		default:
			return errs.New(errs.Invalid, "%s makes nothing that could be left", render.ShortRef(obj)).WithHint("--cascade orphan is for deployments, jobs and cron jobs")
		}
	}
	return nil
}

// read finds what is to go.
func (o *deleteOptions) read(ctx context.Context, c *verb.Call) ([]api.Object, error) {
	var refs []api.Ref
	switch {
	case len(o.files) > 0 && len(c.Args) > 0:
		return nil, errs.New(errs.Invalid, "files and names exclude each other")
	case len(o.files) > 0:
		docs, err := c.Docs(ctx, o.files, o.recursive)
		if err != nil {
			return nil, err
		}
		for i := len(docs) - 1; i >= 0; i-- { // what was made last goes first
			refs = append(refs, api.RefOf(docs[i].Object))
		}
	default:
		t, err := c.Targets(ctx, c.Args)
		if err != nil {
			return nil, err
		}
		if len(t.Kinds) > 0 {
			return o.chosen(ctx, c, t.Kinds)
		}
		refs = t.Refs
	}
	var objs []api.Object
	for _, r := range refs {
		obj, err := c.Get(ctx, r)
		if errs.KindOf(err) == errs.NotFound && (o.missing || len(o.files) > 0) {
			continue
		}
		if err != nil {
			return nil, err
		}
		objs = append(objs, obj)
	}
	return objs, nil
}

// chosen lists the objects of kinds that the flags choose.
func (o *deleteOptions) chosen(ctx context.Context, c *verb.Call, kinds []*api.Definition) ([]api.Object, error) {
	if o.labels == "" && !o.all {
		return nil, errs.New(errs.Invalid, "delete: which %s?", kinds[0].Plural).WithHint("name them, choose them by -l, or give --all")
	}
	cl, err := c.Server()
	if err != nil {
		return nil, err
	}
	var objs []api.Object
	for _, d := range kinds {
		sel, err := c.Selector(d, verb.Selection{Labels: o.labels})
		if err != nil {
			return nil, err
		}
		if d.Tenanted && sel.Tenant == "" { // removal never reaches into tenants nobody named
			if sel.Tenant, err = c.Tenant(ctx); err != nil {
				return nil, err
			}
		}
		list, _, err := cl.List(ctx, sel)
		if err != nil {
			return nil, err
		}
		objs = append(objs, list...)
	}
	return objs, nil
}

// ask asks where much would go: a whole kind, a tenant, several objects by label.
func (o *deleteOptions) ask(c *verb.Call, objs []api.Object) error {
	big := o.all || o.labels != "" && len(objs) > 1
	for _, obj := range objs {
		k := obj.ObjectKind()
		big = big || k == api.KindTenant || k == api.KindNode
	}
	if !big {
		return nil
	}
	var names []string
	for _, obj := range objs[:min(len(objs), 10)] {
		names = append(names, render.ShortRef(obj))
	}
	if more := len(objs) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return c.Confirm(o.yes, "remove %s?", strings.Join(names, ", "))
}

// atOnce is how many removals are under way at a time.
const atOnce = 16

// deleteAll asks for the removal of all and, if wanted, waits for all.
func deleteAll(ctx context.Context, c *verb.Call, objs []api.Object, now bool, w verb.Waiting) error {
	cl, err := c.Server()
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failed []error
	slots := make(chan struct{}, atOnce)
	for _, obj := range objs {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			err := deleteOne(ctx, c, cl, obj, now, w)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, err)
				return
			}
			c.Say("%s deleted", render.ShortRef(obj))
		})
		if obj.ObjectKind() != api.KindInstance {
			wg.Wait() // other kinds may depend on each other: one after the other
		}
	}
	wg.Wait()
	return errors.Join(failed...)
}

func deleteOne(ctx context.Context, c *verb.Call, cl conn.Client, obj api.Object, now bool, w verb.Waiting) error {
	ref := api.RefOf(obj)
	if in, ok := obj.(*api.Instance); ok && now && in.Spec.StopGrace() > 0 && in.DeletedAt == nil {
		_, err := verb.Update(ctx, c, in, func(in *api.Instance) {
			var zero api.Duration
			in.Spec.StopTimeout = &zero
		})
		if err != nil && errs.KindOf(err) != errs.NotFound {
			return err
		}
	}
	if err := cl.Delete(ctx, ref, store.Any); err != nil && errs.KindOf(err) != errs.NotFound {
		return err // somebody else removing it is fine: it is to be gone
	}
	if !w.Wait {
		return nil
	}
	if n, ok := obj.(*api.Network); ok {
		sayWhoIsOn(ctx, c, n)
	}
	return c.Within(ctx, w.Timeout, render.ShortRef(obj)+" is gone", func(ctx context.Context) error {
		return c.WaitGone(ctx, ref, obj.Metadata().UID)
	})
}

// sayWhoIsOn tells what the removal of a network waits for; nothing where that cannot be found out.
func sayWhoIsOn(ctx context.Context, c *verb.Call, n *api.Network) {
	on, err := verb.List[*api.Endpoint](ctx, c, api.Selector{Kind: api.KindEndpoint, Tenant: n.Tenant, Labels: []api.LabelTerm{{Key: api.NetworkLabel(n.Name)}}})
	if err != nil || len(on) == 0 {
		return
	}
	names, more := []string{}, ""
	for _, e := range on[:min(len(on), 5)] {
		names = append(names, e.Name)
	}
	if len(on) > len(names) {
		more = fmt.Sprintf(" and %d more", len(on)-len(names))
	}
	fmt.Fprintf(c.Err, "waiting: %s goes when nothing is on it; now: %s%s\n", render.ShortRef(n), strings.Join(names, ", "), more)
}

// DeleteOf is 'delete' of one kind.
func DeleteOf(k api.Kind, short string) verb.Def {
	o := &deleteOptions{}
	d, _ := api.Lookup(string(k))
	return verb.Def{Use: "delete NAME…", Aliases: []string{"rm", "remove"}, Min: 1, Max: -1, Short: short,
		Example: fmt.Sprintf("  atoll %s delete NAME", d.Singular()),
		Flags: func(fs *pflag.FlagSet) {
			fs.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
			fs.BoolVar(&o.missing, "ignore-not-found", false, "what is not there is fine")
			o.Waiting.Flags(fs, "it is gone", true)
		},
		Run: func(ctx context.Context, c *verb.Call) error {
			c.Args = append([]string{d.Singular()}, c.Args...)
			return o.run(ctx, c)
		},
		Complete: func(ctx context.Context, c *verb.Call, _ string) []string { return c.Names(ctx, d) },
	}
}
