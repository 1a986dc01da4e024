package object

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/store"
)

const (
	// LastApplied is the annotation that keeps what was applied, to know later what was taken out of a file.
	LastApplied = "atoll/last-applied"
	// appliedBy is the label that tells which set an object belongs to; --prune looks at nothing else.
	appliedBy = "atoll/applied-by"
	// maxOps is how many changes one transaction may hold.
	maxOps = 256
)

type applyOptions struct {
	render.Output
	verb.Waiting
	files             []string
	recursive         bool
	dryRun, diff      bool
	prune, force, yes bool
	set               string
}

// Apply makes objects as files say.
func Apply() verb.Def {
	o := &applyOptions{}
	return verb.Def{
		Use: "apply -f FILE|DIR|-", Group: verb.GroupObject,
		Short: "Make the pool look like files",
		Long: `Apply creates what is not there, changes what differs, and leaves alone what was
set by others: it remembers what it applied, so that a field taken out of a file
is taken out of the object, and a field that was never in the file stays. All
changes are one transaction as long as there are at most 256 of them.

Files are YAML (several documents, parted by ---) or JSON. --prune removes what an
earlier apply of the same set created and the files no longer name. The set is
named by --set; without it, it follows from where the files are.`,
		Example: `  atoll apply -f web.yaml
  atoll apply -f dir/ -R --diff --dry-run
  atoll apply -f dir/ --prune --wait
  atoll get instance/web -o yaml | sed s/1.4/1.5/ | atoll apply -f -`,
		Flags: o.flags, Run: o.run,
	}
}

func (o *applyOptions) flags(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&o.files, "filename", "f", nil, "file or directory of objects; - reads standard input")
	fs.BoolVarP(&o.recursive, "recursive", "R", false, "also the directories inside")
	fs.BoolVar(&o.dryRun, "dry-run", false, "only say what would be done")
	fs.BoolVar(&o.diff, "diff", false, "show each change")
	fs.BoolVar(&o.prune, "prune", false, "remove what this set created and no longer holds")
	fs.StringVar(&o.set, "set", "", "name of the set the objects belong to")
	fs.BoolVar(&o.force, "force", false, "take over objects of another set")
	fs.BoolVarP(&o.yes, "yes", "y", false, "do not ask before pruning")
	o.Waiting.Flags(fs, "instances run, and what is pruned is gone", false)
	o.Output.Flags(fs)
}

// step is what apply does about one object.
type step struct {
	parse.Doc
	live api.Object // nil: is not there
	want api.Object
	verb string // created, configured, unchanged, pruned
}

func (o *applyOptions) run(ctx context.Context, c *verb.Call) error {
	if err := o.Check(); err != nil {
		return err
	}
	if len(o.files) == 0 {
		return errs.New(errs.Invalid, "apply: no file named").WithHint("atoll apply -f FILE|DIR, or -f - for standard input")
	}
	if err := o.nameSet(); err != nil {
		return err
	}
	docs, err := c.Docs(ctx, o.files, o.recursive)
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		steps, err := o.steps(ctx, c, docs)
		if err != nil {
			return err
		}
		if try == 0 && o.diff {
			for _, s := range steps {
				if err := o.showDiff(c, s); err != nil {
					return err
				}
			}
		}
		if o.dryRun {
			if err := o.tryOut(ctx, c, steps); err != nil {
				return err
			}
			return o.tell(c, steps, " (dry run)")
		}
		if try == 0 {
			if err := o.ask(c, steps); err != nil {
				return err
			}
		}
		// A status that was reported meanwhile is no reason to give up: what is to be
		// written follows from the files, so it is worked out anew.
		err = o.do(ctx, c, steps)
		if err == nil && o.Wait {
			return o.await(ctx, c, steps)
		}
		if errs.KindOf(err) != errs.Conflict || try >= verb.MaxConflicts {
			return err
		}
	}
}

// steps is what is to be done about all objects, those to be pruned last.
func (o *applyOptions) steps(ctx context.Context, c *verb.Call, docs []parse.Doc) ([]step, error) {
	steps, err := o.plan(ctx, c, docs)
	if err != nil || !o.prune {
		return steps, err
	}
	gone, err := o.pruned(ctx, c, steps)
	return append(steps, gone...), err
}

// nameSet derives the set's name from where the files are, so that the same
// command finds the same set again.
func (o *applyOptions) nameSet() error {
	if o.set != "" {
		if !api.ValidName(o.set) {
			return parse.BadFlag("set", o.set, "must be a name", "web")
		}
		return nil
	}
	h := sha256.New()
	for _, f := range o.files {
		if f == "-" {
			if o.prune {
				return errs.New(errs.Invalid, "--prune of standard input needs to know which set it is").WithHint("name it: --set NAME")
			}
			continue
		}
		abs, err := filepath.Abs(f)
		if err != nil {
			return errs.New(errs.Invalid, "%s: %w", f, err)
		}
		fmt.Fprintf(h, "%s\x00", abs)
	}
	o.set = "files-" + hex.EncodeToString(h.Sum(nil))[:12]
	return nil
}

func (o *applyOptions) plan(ctx context.Context, c *verb.Call, docs []parse.Doc) ([]step, error) {
	cl, err := c.Server()
	if err != nil {
		return nil, err
	}
	var steps []step
	var problems []error
	for _, d := range docs {
		s, err := o.planOne(ctx, cl, d)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", d.Source, err))
			continue
		}
		steps = append(steps, s)
	}
	return steps, parse.JoinInvalid(problems)
}

func (o *applyOptions) planOne(ctx context.Context, cl conn.Client, d parse.Doc) (step, error) {
	s := step{Doc: d}
	if def, _ := api.Lookup(string(d.Object.ObjectKind())); def.ReadOnly {
		return s, errs.New(errs.Invalid, "%s is written by Atoll itself", api.RefOf(d.Object)).WithHint("leave it out")
	}
	mine, err := userPart(d.Object)
	if err != nil {
		return s, err
	}
	note, err := json.Marshal(mine)
	if err != nil {
		return s, err
	}
	live, err := cl.Get(ctx, api.RefOf(d.Object))
	switch errs.KindOf(err) {
	case errs.NotFound:
		s.verb, s.want = "created", nil
		if s.want, err = fromMap(mine, d.Object.ObjectKind()); err != nil {
			return s, err
		}
	default:
		if err != nil {
			return s, err
		}
		if live.Metadata().DeletedAt != nil {
			return s, errs.New(errs.Conflict, "%s is being removed", api.RefOf(live)).WithHint("wait until it is gone: atoll wait %s --for deleted", render.ShortRef(live))
		}
		if owner := live.Metadata().Labels[appliedBy]; owner != "" && owner != o.set && !o.force {
			return s, errs.New(errs.Conflict, "%s belongs to the set %s, not to %s", api.RefOf(live), owner, o.set).
				WithHint("apply it with that set's files (--set %s), or take it over: --force", owner)
		}
		s.live = live
		if s.want, err = mergeObject(live, mine); err != nil {
			return s, err
		}
	}
	m := s.want.Metadata()
	m.Labels = verb.With(m.Labels, appliedBy, o.set)
	m.Annotations = verb.With(m.Annotations, LastApplied, string(note))
	if err := api.Check(s.want); err != nil {
		return s, err
	}
	if s.live != nil {
		s.verb = "configured"
		if sameButNotes(s.live, s.want) {
			s.verb = "unchanged"
		}
	}
	return s, nil
}

// sameButNotes compares without our own bookkeeping, unless that is all new.
func sameButNotes(a, b api.Object) bool {
	x, y := api.Clone(a), api.Clone(b)
	if x.Metadata().Labels[appliedBy] != y.Metadata().Labels[appliedBy] {
		return false
	}
	if x.Metadata().Annotations[LastApplied] == "" {
		return false
	}
	return verb.Same(x, y)
}

// userPart is what a file says of an object: no status, and of the metadata only
// what is a user's to say.
func userPart(o api.Object) (map[string]any, error) {
	m, err := render.Map(o)
	if err != nil {
		return nil, err
	}
	delete(m, "status")
	meta, _ := m["metadata"].(map[string]any)
	for k := range meta {
		switch k {
		case "name", "tenant", "labels", "annotations":
		default:
			delete(meta, k)
		}
	}
	if notes, _ := meta["annotations"].(map[string]any); notes != nil {
		if delete(notes, LastApplied); len(notes) == 0 {
			delete(meta, "annotations")
		}
	}
	if labels, _ := meta["labels"].(map[string]any); labels != nil {
		if delete(labels, appliedBy); len(labels) == 0 {
			delete(meta, "labels")
		}
	}
	return m, nil
}

func fromMap(m map[string]any, k api.Kind) (api.Object, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return api.DecodeAs(k, b)
}

// mergeObject puts mine over live: what was applied before and is no longer said
// goes, what others set stays.
func mergeObject(live api.Object, mine map[string]any) (api.Object, error) {
	now, err := render.Map(live)
	if err != nil {
		return nil, err
	}
	var before map[string]any
	if note := live.Metadata().Annotations[LastApplied]; note != "" {
		if err := json.Unmarshal([]byte(note), &before); err != nil {
			before = nil // somebody edited the note: then nothing is taken out
		}
	}
	return fromMap(threeWay(before, mine, now), live.ObjectKind())
}

// threeWay merges maps key by key; lists and values are replaced as a whole.
func threeWay(before, mine, live map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range live {
		_, said := mine[k]
		if _, was := before[k]; was && !said {
			if inner, ok := v.(map[string]any); ok {
				if old, ok := before[k].(map[string]any); ok { // others may have set keys inside
					if rest := threeWay(old, nil, inner); len(rest) > 0 {
						out[k] = rest
					}
				}
			}
			continue
		}
		out[k] = v
	}
	for k, v := range mine {
		m, isMap := v.(map[string]any)
		l, liveMap := live[k].(map[string]any)
		if isMap && liveMap {
			b, _ := before[k].(map[string]any)
			out[k] = threeWay(b, m, l)
			continue
		}
		out[k] = v
	}
	return out
}

// pruned finds what the set created and no longer holds.
func (o *applyOptions) pruned(ctx context.Context, c *verb.Call, steps []step) ([]step, error) {
	cl, err := c.Server()
	if err != nil {
		return nil, err
	}
	keep := map[api.Ref]bool{}
	for _, s := range steps {
		keep[api.RefOf(s.Object)] = true
	}
	var out []step
	for _, d := range api.Definitions() {
		if d.ReadOnly {
			continue
		}
		objs, _, err := cl.List(ctx, api.Selector{Kind: d.Kind, Labels: []api.LabelTerm{{Key: appliedBy, Values: []string{o.set}}}})
		if errs.KindOf(err) == errs.Denied {
			continue // who may not see a kind has applied none of it
		}
		if err != nil {
			return nil, err
		}
		for _, obj := range objs {
			if !keep[api.RefOf(obj)] && obj.Metadata().DeletedAt == nil {
				out = append(out, step{Doc: parse.Doc{Object: obj}, live: obj, verb: "pruned"})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b step) int { return parse.Rank(b.Object) - parse.Rank(a.Object) })
	return out, nil
}

// cleanYAML is an object as a reader of a diff wants it: without what changes by itself.
func cleanYAML(o api.Object) ([]byte, error) {
	if o == nil {
		return nil, nil
	}
	m, err := userPart(o)
	if err != nil {
		return nil, err
	}
	return yaml.Marshal(m)
}

func (o *applyOptions) showDiff(c *verb.Call, s step) error {
	a, err := cleanYAML(s.live)
	if err != nil {
		return err
	}
	b, err := cleanYAML(s.want)
	if err != nil {
		return err
	}
	name := render.ShortRef(s.Object)
	d := string(diff.Diff("now/"+name, a, "new/"+name, b))
	if _, rest, ok := strings.Cut(d, "\n"); ok {
		d = rest // the first line only repeats the names
	}
	if c.Colour(c.Term.OutIs()) {
		d = paintDiff(d)
	}
	_, err = fmt.Fprint(c.Out, d)
	return err
}

func paintDiff(d string) string {
	lines := strings.SplitAfter(d, "\n")
	for i, l := range lines {
		body := strings.TrimSuffix(l, "\n")
		switch {
		case strings.HasPrefix(l, "+"):
			lines[i] = "\x1b[32m" + body + "\x1b[0m\n"
		case strings.HasPrefix(l, "-"):
			lines[i] = "\x1b[31m" + body + "\x1b[0m\n"
		case strings.HasPrefix(l, "@@"):
			lines[i] = "\x1b[36m" + body + "\x1b[0m\n"
		}
	}
	return strings.Join(lines, "")
}

// ops is the transaction the steps are; removals are asked for one by one afterwards.
func ops(steps []step) []store.Op {
	var out []store.Op
	for _, s := range steps {
		switch s.verb {
		case "created":
			out = append(out, store.Create(s.want))
		case "configured":
			out = append(out, store.Update(s.want))
		}
	}
	return out
}

func (o *applyOptions) tryOut(ctx context.Context, c *verb.Call, steps []step) error {
	cl, err := c.Server()
	if err != nil {
		return err
	}
	d, ok := cl.(conn.DryRunner)
	if list := ops(steps); ok && len(list) > 0 && len(list) <= maxOps {
		return d.DryRun(ctx, list...)
	}
	return nil
}

// ask asks before anything is pruned.
func (o *applyOptions) ask(c *verb.Call, steps []step) error {
	var names []string
	for _, s := range steps {
		if s.verb == "pruned" {
			names = append(names, render.ShortRef(s.Object))
		}
	}
	if len(names) == 0 {
		return nil
	}
	if more := len(names) - 10; more > 0 {
		names = append(names[:10], fmt.Sprintf("and %d more", more))
	}
	return c.Confirm(o.yes, "prune %s?", strings.Join(names, ", "))
}

func (o *applyOptions) do(ctx context.Context, c *verb.Call, steps []step) error {
	cl, err := c.Server()
	if err != nil {
		return err
	}
	list := ops(steps)
	for len(list) > 0 {
		part := list[:min(len(list), maxOps)]
		list = list[len(part):]
		if _, err := cl.Commit(ctx, part...); err != nil {
			return err
		}
	}
	for _, s := range steps {
		if s.verb != "pruned" {
			continue
		}
		if err := deleteOne(ctx, c, cl, s.live, false, o.Waiting); err != nil {
			return err
		}
	}
	return o.tell(c, steps, "")
}

func (o *applyOptions) tell(c *verb.Call, steps []step, note string) error {
	if !o.Tabular() && o.Format != "name" {
		var objs []api.Object
		for _, s := range steps {
			if s.want != nil {
				objs = append(objs, s.want)
			}
		}
		return o.Output.Objects(c.Out, c.Clock.Now(), objs, true)
	}
	for _, s := range steps {
		if o.Format == "name" {
			c.Say("%s", api.RefOf(s.Object))
			continue
		}
		c.Say("%s %s%s", render.ShortRef(s.Object), s.verb, note)
	}
	return nil
}

func (o *applyOptions) await(ctx context.Context, c *verb.Call, steps []step) error {
	for _, s := range steps {
		in, ok := s.want.(*api.Instance)
		if !ok || in.Spec.Stopped {
			continue
		}
		cl, err := c.Server()
		if err != nil {
			return err
		}
		now, err := store.Get[*api.Instance](ctx, cl, api.RefOf(in))
		if err != nil {
			return err
		}
		p := &verb.Placing{Call: c, Instance: now, Patience: o.Timeout}
		if err := p.Started(ctx); err != nil {
			return err
		}
	}
	return nil
}
