package pool

import (
	"cmp"
	"context"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/object"
	"atoll/internal/cli/render"
	"atoll/internal/cli/stream"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/tunnel"
)

type imageOptions struct {
	node, platform, authFile, format string
	exportFormat                     string // its default differs, so it is not format
	shared, quiet, force             bool
	env                              []string
	cmd                              string
	yes                              bool
}

func (o *imageOptions) place(fs *pflag.FlagSet) {
	fs.StringVar(&o.node, "node", "", "on this node (default: one that can)")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "no progress")
}

func (o *imageOptions) registry(fs *pflag.FlagSet) {
	fs.StringVar(&o.authFile, "auth-file", "", "file that holds user:password or a token for the registry (or ATOLL_REGISTRY_AUTH)")
}

// Image is the group of verbs about images.
func Image() verb.Def {
	o, list := &imageOptions{}, &render.Output{}
	return verb.Def{
		Use: "image", Group: verb.GroupPool, Aliases: []string{"images", "img"}, Short: "Images: pull, import, export, push, list, tag, remove",
		Example: "  atoll image pull debian:12\n  atoll image import rootfs.tar --name base\n  atoll image list -o wide",
		Sub: []verb.Def{
			{Use: "pull REFERENCE", Min: 1, Max: 1, Short: "Fetch an image from a registry", Example: "  atoll image pull debian:12\n  atoll image pull registry.example.com/team/app:1.4 --auth-file reg.auth --platform linux/arm64",
				Flags: func(fs *pflag.FlagSet) {
					o.place(fs)
					o.registry(fs)
					fs.StringVar(&o.platform, "platform", "", "os/arch (default: the node's own)")
					fs.BoolVar(&o.shared, "shared", false, "for every tenant; administrators only")
				}, Run: o.pull},
			{Use: "import FILE|- REFERENCE", Min: 2, Max: 2, Short: "Make an image of a tar: a root file system, an OCI layout or a docker archive",
				Example: "  atoll image import rootfs.tar base:1\n  docker save app:1 | atoll image import - app:1\n  tar c -C rootfs . | atoll image import - base --cmd /bin/sh",
				Flags: func(fs *pflag.FlagSet) {
					o.place(fs)
					fs.StringVar(&o.format, "format", "auto", "auto, rootfs, oci or docker")
					fs.StringVar(&o.platform, "platform", "", "os/arch of a root file system (default: the node's own)")
					fs.StringVar(&o.cmd, "cmd", "", "what a root file system runs, words parted by spaces")
					fs.StringArrayVarP(&o.env, "env", "e", nil, "NAME=value a root file system runs with")
					fs.BoolVar(&o.shared, "shared", false, "for every tenant; administrators only")
				}, Run: o.importFile},
			{Use: "export REFERENCE FILE|-", Min: 2, Max: 2, Short: "Write an image to a tar", Example: "  atoll image export app:1 app.tar\n  atoll image export app:1 - --format docker | docker load",
				Flags: func(fs *pflag.FlagSet) {
					o.place(fs)
					fs.StringVar(&o.exportFormat, "format", "oci", "oci or docker")
					fs.BoolVar(&o.force, "force", false, "replace a file that is there")
				}, Run: o.export, Complete: verb.CompleteImages},
			{Use: "push REFERENCE", Min: 1, Max: 1, Short: "Send an image to its registry", Example: "  atoll image push registry.example.com/team/app:1.4 --auth-file reg.auth",
				Flags: func(fs *pflag.FlagSet) { o.place(fs); o.registry(fs) }, Run: o.push, Complete: verb.CompleteImages},
			{Use: "list", Aliases: []string{"ls"}, Short: "List the images the tenant may run", Example: "  atoll image list -o wide", Flags: list.Flags,
				Run: func(ctx context.Context, c *verb.Call) error { return object.ListKind(ctx, c, api.KindImage, *list) }},
			{Use: "tag REFERENCE NEW", Min: 2, Max: 2, Short: "Give an image another reference", Example: "  atoll image tag app:1.4 app:latest", Run: o.tag, Complete: verb.CompleteImages},
			{Use: "remove REFERENCE…", Aliases: []string{"rm", "delete"}, Min: 1, Max: -1, Short: "Forget images; their content goes when nothing uses it", Example: "  atoll image remove app:1.3", Run: o.remove, Complete: verb.CompleteImages},
			{Use: "prune", Short: "Forget the images no instance of the tenant uses", Example: "  atoll image prune --yes",
				Flags: func(fs *pflag.FlagSet) { fs.BoolVarP(&o.yes, "yes", "y", false, "do not ask") }, Run: o.prune},
		},
	}
}

// stream does an operation on a node's images: in is sent, what comes back goes to out.
func (o *imageOptions) stream(ctx context.Context, c *verb.Call, req api.ImageRequest, in io.Reader, out io.Writer) error {
	var err error
	if req.Tenant, err = c.Tenant(ctx); err != nil {
		return err
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	s, err := cl.Stream(ctx, conn.StreamRequest{Verb: tunnel.VerbImage, Node: o.node, Params: req})
	if err != nil {
		return err
	}
	p := c.Progress(o.quiet)
	return stream.Transfer(s, in, out, p)
}

func (o *imageOptions) auth(c *verb.Call) (string, error) {
	if o.authFile == "" {
		return c.Getenv("ATOLL_REGISTRY_AUTH"), nil
	}
	return conn.ReadToken(o.authFile)
}

func (o *imageOptions) pull(ctx context.Context, c *verb.Call) error {
	auth, err := o.auth(c)
	if err != nil {
		return err
	}
	req := api.ImageRequest{Verb: "pull", Reference: c.Args[0], Platform: o.platform, Auth: auth, Shared: o.shared}
	if err := o.stream(ctx, c, req, nil, nil); err != nil {
		return err
	}
	return o.told(ctx, c, c.Args[0], "pulled")
}

// told says what an image is now: its digest and size.
func (o *imageOptions) told(ctx context.Context, c *verb.Call, ref, what string) error {
	img, err := image(ctx, c, ref)
	if err != nil {
		c.Say("%s %s", ref, what) // it is there, only its record cannot be read now
		return nil
	}
	c.Say("%s %s  %s  %s", img.Spec.Reference, what, render.Dash(cmp.Or(img.Status.Digest, img.Spec.Digest)), render.Size(img.Status.Size))
	return nil
}

func (o *imageOptions) importFile(ctx context.Context, c *verb.Call) error {
	var in io.Reader = c.In
	if c.Args[0] != "-" {
		f, err := os.Open(c.Args[0])
		if err != nil {
			return errs.New(errs.NotFound, "%w", err)
		}
		defer f.Close()
		in = f
	}
	req := api.ImageRequest{Verb: "import", Reference: c.Args[1], Format: o.format, Platform: o.platform, Cmd: strings.Fields(o.cmd), Env: o.env, Shared: o.shared}
	if err := o.stream(ctx, c, req, in, nil); err != nil {
		return err
	}
	return o.told(ctx, c, c.Args[1], "imported")
}

func (o *imageOptions) export(ctx context.Context, c *verb.Call) error {
	req := api.ImageRequest{Verb: "export", Reference: c.Args[0], Format: o.exportFormat}
	path := c.Args[1]
	if path == "-" {
		if c.Term.OutIs() {
			return errs.New(errs.Invalid, "an image is not for a terminal").WithHint("name a file, or send it on: atoll image export %s - > FILE", c.Args[0])
		}
		return o.stream(ctx, c, req, nil, c.Out)
	}
	n, err := render.File(path, o.force, func(w io.Writer) error { return o.stream(ctx, c, req, nil, w) })
	if err != nil {
		return err
	}
	c.Say("%s  %s", path, render.Size(n))
	return nil
}

func (o *imageOptions) push(ctx context.Context, c *verb.Call) error {
	auth, err := o.auth(c)
	if err != nil {
		return err
	}
	if err := o.stream(ctx, c, api.ImageRequest{Verb: "push", Reference: c.Args[0], Auth: auth}, nil, nil); err != nil {
		return err
	}
	c.Say("%s pushed", c.Args[0])
	return nil
}

// image finds the record of an image by reference or by name; a reference
// without a tag means the one tagged latest, and one without a registry any.
func image(ctx context.Context, c *verb.Call, ref string) (*api.Image, error) {
	tenant, err := c.Tenant(ctx)
	if err != nil {
		return nil, err
	}
	list, err := c.Images(ctx)
	if err != nil {
		return nil, err
	}
	for _, match := range []func(*api.Image) bool{
		func(i *api.Image) bool { return i.Spec.Reference == ref },
		func(i *api.Image) bool { return i.Name == ref },
		func(i *api.Image) bool { return api.PlainReference(i.Spec.Reference) == api.PlainReference(ref) },
	} {
		if n := slices.IndexFunc(list, match); n >= 0 {
			return list[n], nil
		}
	}
	var refs []string
	for _, i := range list {
		refs = append(refs, i.Spec.Reference)
	}
	e := errs.New(errs.NotFound, "tenant %s has no image %s", tenant, ref)
	if near := api.Nearest(ref, refs); near != "" {
		return nil, e.WithHint("did you mean %s?", near)
	}
	return nil, e.WithHint("atoll image list shows what it has; atoll image pull %s", ref)
}

func (o *imageOptions) tag(ctx context.Context, c *verb.Call) error {
	img, err := image(ctx, c, c.Args[0])
	if err != nil {
		return err
	}
	n := &api.Image{Head: api.Head{K: api.KindImage}}
	tenant, err := c.Tenant(ctx)
	if err != nil {
		return err
	}
	n.Tenant, n.Name = tenant, api.ImageName(c.Args[1])
	n.Spec = img.Spec
	n.Spec.Reference, n.Spec.Shared = c.Args[1], false
	n.Spec.Digest = cmp.Or(img.Spec.Digest, img.Status.Digest)
	return createAndSay(ctx, c, n)
}

func (o *imageOptions) remove(ctx context.Context, c *verb.Call) error {
	cl, err := c.Server()
	if err != nil {
		return err
	}
	for _, r := range c.Args {
		img, err := image(ctx, c, r)
		if err != nil {
			return err
		}
		if err := cl.Delete(ctx, api.RefOf(img), store.Any); err != nil {
			return err
		}
		c.Say("%s removed", img.Spec.Reference)
	}
	return nil
}

func (o *imageOptions) prune(ctx context.Context, c *verb.Call) error {
	tenant, err := c.Tenant(ctx)
	if err != nil {
		return err
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	images, _, err := store.List[*api.Image](ctx, cl, api.Selector{Kind: api.KindImage, Tenant: tenant})
	if err != nil {
		return err
	}
	ins, _, err := store.List[*api.Instance](ctx, cl, api.Selector{Kind: api.KindInstance, Tenant: tenant})
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, in := range ins {
		used[api.PlainReference(in.Spec.Image)], used[in.Status.ImageDigest] = true, true
	}
	images = slices.DeleteFunc(images, func(i *api.Image) bool {
		return i.Spec.Shared || used[api.PlainReference(i.Spec.Reference)] || i.Status.Digest != "" && used[i.Status.Digest]
	})
	if len(images) == 0 {
		c.Note("every image is used")
		return nil
	}
	var names []string
	for _, i := range images {
		names = append(names, i.Spec.Reference)
	}
	if err := c.Confirm(o.yes, "forget %s?", strings.Join(names, ", ")); err != nil {
		return err
	}
	for _, i := range images {
		if err := cl.Delete(ctx, api.RefOf(i), i.Revision); err != nil {
			return err
		}
		c.Say("%s removed", i.Spec.Reference)
	}
	return nil
}
