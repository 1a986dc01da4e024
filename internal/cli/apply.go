package cli

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
	"atoll/internal/errs"
	"atoll/internal/store"
)

const (
	// lastApplied is the annotation that keeps what was applied, to know later what was taken out of a file.
	lastApplied = "atoll/last-applied"
	// appliedBy is the label that tells which set an object belongs to; --prune looks at nothing else.
	appliedBy = "atoll/applied-by"
	// maxOps is how many changes one transaction may hold.
	maxOps = 256
)

type applyOptions struct {
	output
	waiting
	files             []string
	recursive         bool
	dryRun, diff      bool
	prune, force, yes bool
	set               string
}

func applyVerb() Verb {
	o := &applyOptions{}
	return Verb{
		Use: "apply -f FILE|DIR|-", Group: groupObject,
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
	o.waiting.flags(fs, "instances run, and what is pruned is gone", false)
	o.output.flags(fs)
}

// step is what apply does about one object.
type step struct {
	doc
	live api.Object // nil: is not there
	want api.Object
	verb string // created, configured, unchanged, pruned
}

func (o *applyOptions) run(ctx context.Context, c *call) error {
	if err := o.check(); err != nil {
		return err
	}
	if len(o.files) == 0 {
		return errs.New(errs.Invalid, "apply: no file named").WithHint("atoll apply -f FILE|DIR, or -f - for standard input")
	}
	if err := o.nameSet(); err != nil {
		return err
	}
	docs, err := c.docs(ctx, o.files, o.recursive)
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
		if err == nil && o.wait {
			return o.await(ctx, c, steps)
		}
		if errs.KindOf(err) != errs.Conflict || try >= maxConflicts {
			return err
		}
	}
}

// steps is what is to be done about all objects, those to be pruned last.
func (o *applyOptions) steps(ctx context.Context, c *call, docs []doc) ([]step, error) {
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
			return badFlag("set", o.set, "must be a name", "web")
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

func (o *applyOptions) plan(ctx context.Context, c *call, docs []doc) ([]step, error) {
	cl, err := c.server()
	if err != nil {
		return nil, err
	}
	var steps []step
	var problems []error
	for _, d := range docs {
		s, err := o.planOne(ctx, cl, d)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", d.source, err))
			continue
		}
		steps = append(steps, s)
	}
	return steps, joinInvalid(problems)
}

func (o *applyOptions) planOne(ctx context.Context, cl Client, d doc) (step, error) {
	s := step{doc: d}
	if def, _ := api.Lookup(string(d.obj.ObjectKind())); def.ReadOnly {
		return s, errs.New(errs.Invalid, "%s is written by Atoll itself", api.RefOf(d.obj)).WithHint("leave it out")
	}
	mine, err := userPart(d.obj)
	if err != nil {
		return s, err
	}
	note, err := json.Marshal(mine)
	if err != nil {
		return s, err
	}
	live, err := cl.Get(ctx, api.RefOf(d.obj))
	switch errs.KindOf(err) {
	case errs.NotFound:
		s.verb, s.want = "created", nil
		if s.want, err = fromMap(mine, d.obj.ObjectKind()); err != nil {
			return s, err
		}
	default:
		if err != nil {
			return s, err
		}
		if live.Metadata().DeletedAt != nil {
			return s, errs.New(errs.Conflict, "%s is being removed", api.RefOf(live)).WithHint("wait until it is gone: atoll wait %s --for deleted", shortRef(live))
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
	m.Labels = with(m.Labels, appliedBy, o.set)
	m.Annotations = with(m.Annotations, lastApplied, string(note))
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
	if x.Metadata().Annotations[lastApplied] == "" {
		return false
	}
	return same(x, y)
}

// userPart is what a file says of an object: no status, and of the metadata only
// what is a user's to say.
func userPart(o api.Object) (map[string]any, error) {
	m, err := asMap(o)
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
		if delete(notes, lastApplied); len(notes) == 0 {
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
	now, err := asMap(live)
	if err != nil {
		return nil, err
	}
	var before map[string]any
	if note := live.Metadata().Annotations[lastApplied]; note != "" {
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
func (o *applyOptions) pruned(ctx context.Context, c *call, steps []step) ([]step, error) {
	cl, err := c.server()
	if err != nil {
		return nil, err
	}
	keep := map[api.Ref]bool{}
	for _, s := range steps {
		keep[api.RefOf(s.obj)] = true
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
				out = append(out, step{doc: doc{obj: obj}, live: obj, verb: "pruned"})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b step) int { return applyRank(b.obj) - applyRank(a.obj) })
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

func (o *applyOptions) showDiff(c *call, s step) error {
	a, err := cleanYAML(s.live)
	if err != nil {
		return err
	}
	b, err := cleanYAML(s.want)
	if err != nil {
		return err
	}
	name := shortRef(s.obj)
	d := string(diff.Diff("now/"+name, a, "new/"+name, b))
	if _, rest, ok := strings.Cut(d, "\n"); ok {
		d = rest // the first line only repeats the names
	}
	if c.colour(c.Term.OutIs()) {
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

// dryRunner is a Client whose server can judge a commit without doing it.
type dryRunner interface {
	DryRun(ctx context.Context, ops ...store.Op) error
}

func (o *applyOptions) tryOut(ctx context.Context, c *call, steps []step) error {
	cl, err := c.server()
	if err != nil {
		return err
	}
	d, ok := cl.(dryRunner)
	if list := ops(steps); ok && len(list) > 0 && len(list) <= maxOps {
		return d.DryRun(ctx, list...)
	}
	return nil
}

// ask asks before anything is pruned.
func (o *applyOptions) ask(c *call, steps []step) error {
	var names []string
	for _, s := range steps {
		if s.verb == "pruned" {
			names = append(names, shortRef(s.obj))
		}
	}
	if len(names) == 0 {
		return nil
	}
	if more := len(names) - 10; more > 0 {
		names = append(names[:10], fmt.Sprintf("and %d more", more))
	}
	return c.confirm(o.yes, "prune %s?", strings.Join(names, ", "))
}

func (o *applyOptions) do(ctx context.Context, c *call, steps []step) error {
	cl, err := c.server()
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
		if err := c.deleteOne(ctx, cl, s.live, false, o.waiting); err != nil {
			return err
		}
	}
	return o.tell(c, steps, "")
}

func (o *applyOptions) tell(c *call, steps []step, note string) error {
	if !o.table() && o.format != "name" {
		var objs []api.Object
		for _, s := range steps {
			if s.want != nil {
				objs = append(objs, s.want)
			}
		}
		return o.output.printObjects(c.Out, c.Clock.Now(), objs, true)
	}
	for _, s := range steps {
		if o.format == "name" {
			c.say("%s", api.RefOf(s.obj))
			continue
		}
		c.say("%s %s%s", shortRef(s.obj), s.verb, note)
	}
	return nil
}

func (o *applyOptions) await(ctx context.Context, c *call, steps []step) error {
	for _, s := range steps {
		in, ok := s.want.(*api.Instance)
		if !ok || in.Spec.Stopped {
			continue
		}
		cl, err := c.server()
		if err != nil {
			return err
		}
		now, err := store.Get[*api.Instance](ctx, cl, api.RefOf(in))
		if err != nil {
			return err
		}
		p := &placing{c: c, in: now, patience: o.timeout}
		if err := p.started(ctx); err != nil {
			return err
		}
	}
	return nil
}
