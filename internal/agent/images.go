package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// images is the controller of names: those in the node's image store follow the
// Images of the pool, and every Image tells which nodes have it.
type images struct{ *Agent }

func (*images) Name() string { return "images" }

func (*images) Watches() []api.Selector { return []api.Selector{{Kind: api.KindImage}} }

func (*images) Owns() []api.Kind { return []api.Kind{api.KindImage} }

// Reconcile gives an Image's name to its content, when that is here, or forgets the name.
func (c *images) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	if c.Images == nil {
		return reconcile.Result{}, nil
	}
	img, err := read[*api.Image](ctx, s, ref)
	if err != nil {
		return reconcile.Result{}, err
	}
	if img == nil || img.DeletedAt != nil {
		return reconcile.Result{}, c.Images.Forget(ctx, ref)
	}
	here, err := c.Images.Adopt(ctx, img)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("name %s: %w", ref, err)
	}
	st := img.Status
	switch {
	case here == nil:
		st.Nodes = without(st.Nodes, c.Node)
	case st.Digest == here.Digest:
		st.Nodes = with(st.Nodes, c.Node)
	case st.Digest == "" || img.Spec.Digest == "" && len(without(st.Nodes, c.Node)) == 0:
		st = *here // nothing pins it, and nobody else has what was here before
	default: // another node has something newer under this name
		st.Nodes = without(st.Nodes, c.Node)
	}
	if slices.Equal(st.Nodes, img.Status.Nodes) && st.Digest == img.Status.Digest {
		return reconcile.Result{}, nil
	}
	next := api.Clone(img)
	next.Status = st
	_, err = s.Commit(ctx, store.Update(next))
	return reconcile.Result{}, err
}

func with(nodes []string, node string) []string {
	if slices.Contains(nodes, node) {
		return nodes
	}
	nodes = append(slices.Clone(nodes), node)
	slices.Sort(nodes)
	return nodes
}

func without(nodes []string, node string) []string {
	return slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return n == node })
}

// syncImages makes the images the node brings along known in the pool, and forgets
// names whose Image went while no agent was here. What both know is Reconcile's.
func (a *Agent) syncImages(ctx context.Context) error {
	if a.Images == nil {
		return nil
	}
	for _, img := range a.Images.Known() {
		in, err := read[*api.Image](ctx, a.Store, api.RefOf(img))
		if err != nil {
			return err
		}
		switch {
		case in != nil:
		case img.Spec.Shared && img.Spec.Digest == "":
			err = a.commitImage(ctx, img)
		default:
			err = a.Images.Forget(ctx, api.RefOf(img))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// commitImage makes an image that is on this node known in the pool. What it
// brings under the name is newer than what was there.
func (a *Agent) commitImage(ctx context.Context, img *api.Image) error {
	for {
		old, err := read[*api.Image](ctx, a.Store, api.RefOf(img))
		if err != nil {
			return err
		}
		op := store.Create(img)
		if old != nil {
			next := api.Clone(old)
			next.Spec, next.Status = img.Spec, img.Status
			if old.Status.Digest == img.Status.Digest {
				next.Status.Nodes = with(old.Status.Nodes, a.Node)
			}
			if next.Spec == old.Spec && slices.Equal(next.Status.Nodes, old.Status.Nodes) && next.Status.Digest == old.Status.Digest {
				return nil
			}
			op = store.Update(next)
		}
		_, err = a.Store.Commit(ctx, op)
		if errors.Is(err, errs.Conflict) || errors.Is(err, errs.Exists) {
			continue // somebody was faster; look again
		}
		return err
	}
}
