package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

type deleteOptions struct {
	waiting
	files         []string
	recursive     bool
	labels        string
	all, now, yes bool
	missing       bool
}

func deleteVerb() Verb {
	o := &deleteOptions{}
	return Verb{
		Use: "delete KIND/NAME… | KIND NAME… | KIND -l … | -f FILE", Group: groupObject, Aliases: []string{"rm"}, Max: -1,
		Short: "Remove objects",
		Long: `Delete asks for removal and waits until all is cleaned up. An instance is asked to
end first (--now kills it at once). What is not there is an error, unless
--ignore-not-found is given.`,
		Example: `  atoll delete instance/web instance/db
  atoll delete instances -l app=web --now
  atoll delete instances --all --tenant demo
  atoll delete -f web.yaml`,
		Flags: o.flags, Run: o.run, Complete: completeObjects,
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
	o.waiting.flags(fs, "it is gone", true)
}

func (o *deleteOptions) run(ctx context.Context, c *call) error {
	objs, err := o.read(ctx, c)
	if err != nil {
		return err
	}
	if len(objs) == 0 {
		c.note("nothing to delete")
		return nil
	}
	if err := o.ask(c, objs); err != nil {
		return err
	}
	return c.deleteAll(ctx, objs, o.now, o.waiting)
}

// read finds what is to go.
func (o *deleteOptions) read(ctx context.Context, c *call) ([]api.Object, error) {
	var refs []api.Ref
	switch {
	case len(o.files) > 0 && len(c.args) > 0:
		return nil, errs.New(errs.Invalid, "files and names exclude each other")
	case len(o.files) > 0:
		docs, err := c.docs(ctx, o.files, o.recursive)
		if err != nil {
			return nil, err
		}
		for i := len(docs) - 1; i >= 0; i-- { // what was made last goes first
			refs = append(refs, api.RefOf(docs[i].obj))
		}
	default:
		t, err := c.targets(ctx, c.args)
		if err != nil {
			return nil, err
		}
		if len(t.kinds) > 0 {
			return o.chosen(ctx, c, t.kinds)
		}
		refs = t.refs
	}
	var objs []api.Object
	for _, r := range refs {
		obj, err := c.get(ctx, r)
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
func (o *deleteOptions) chosen(ctx context.Context, c *call, kinds []*api.Definition) ([]api.Object, error) {
	if o.labels == "" && !o.all {
		return nil, errs.New(errs.Invalid, "delete: which %s?", kinds[0].Plural).WithHint("name them, choose them by -l, or give --all")
	}
	cl, err := c.server()
	if err != nil {
		return nil, err
	}
	var objs []api.Object
	for _, d := range kinds {
		sel, err := c.selector(d, selection{labels: o.labels})
		if err != nil {
			return nil, err
		}
		if d.Tenanted && sel.Tenant == "" { // removal never reaches into tenants nobody named
			if sel.Tenant, err = c.tenant(ctx); err != nil {
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
func (o *deleteOptions) ask(c *call, objs []api.Object) error {
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
		names = append(names, shortRef(obj))
	}
	if more := len(objs) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return c.confirm(o.yes, "remove %s?", strings.Join(names, ", "))
}

// atOnce is how many removals are under way at a time.
const atOnce = 16

// deleteAll asks for the removal of all and, if wanted, waits for all.
func (c *call) deleteAll(ctx context.Context, objs []api.Object, now bool, w waiting) error {
	cl, err := c.server()
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
			err := c.deleteOne(ctx, cl, obj, now, w)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, err)
				return
			}
			c.say("%s deleted", shortRef(obj))
		})
		if obj.ObjectKind() != api.KindInstance {
			wg.Wait() // other kinds may depend on each other: one after the other
		}
	}
	wg.Wait()
	return errors.Join(failed...)
}

func (c *call) deleteOne(ctx context.Context, cl Client, obj api.Object, now bool, w waiting) error {
	ref := api.RefOf(obj)
	if in, ok := obj.(*api.Instance); ok && now && in.Spec.StopGrace() > 0 && in.DeletedAt == nil {
		_, err := update(ctx, c, in, func(in *api.Instance) {
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
	if !w.wait {
		return nil
	}
	return c.within(ctx, w.timeout, shortRef(obj)+" is gone", func(ctx context.Context) error {
		return c.waitGone(ctx, ref, obj.Metadata().UID)
	})
}
