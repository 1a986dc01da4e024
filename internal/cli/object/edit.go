package object

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"sigs.k8s.io/yaml"

	"atoll/api"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Edit changes an object in an editor.
func Edit() verb.Def {
	return verb.Def{
		Use: "edit KIND/NAME | KIND NAME", Group: verb.GroupObject, Min: 1, Max: 2,
		Short: "Change an object in your editor",
		Long: `Edit opens the object in $VISUAL, $EDITOR or vi. When what you wrote is refused, or
somebody was faster, the editor opens again with your text and the reason at its
top. Leave the text as it is to change nothing.`,
		Example: "  atoll edit instance/web\n  EDITOR=nano atoll edit tenant/acme",
		Run:     runEdit, Complete: verb.CompleteObjects,
	}
}

func runEdit(ctx context.Context, c *verb.Call) error {
	t, err := c.Targets(ctx, c.Args)
	if err != nil {
		return err
	}
	if len(t.Refs) != 1 {
		return errs.New(errs.Invalid, "edit takes one object")
	}
	live, err := c.Get(ctx, t.Refs[0])
	if err != nil {
		return err
	}
	text, err := editable(live)
	if err != nil {
		return err
	}
	original, last := text, []byte(nil)
	for {
		edited, err := editText(c, text, t.Refs[0])
		if err != nil {
			return err
		}
		body := withoutNotes(edited)
		if bytes.Equal(body, withoutNotes(original)) {
			c.Note("nothing was changed")
			return nil
		}
		if last != nil && bytes.Equal(body, last) {
			path, serr := saveText(c, body)
			if serr != nil {
				return serr
			}
			return errs.New(errs.Invalid, "given up: the text was not changed after it was refused").WithHint("it is kept in %s", path)
		}
		var now api.Object
		err = commitEdit(ctx, c, live, body, &now)
		if err == nil {
			c.Say("%s edited", render.ShortRef(live))
			return nil
		}
		switch errs.KindOf(err) {
		case errs.Invalid, errs.Conflict, errs.Denied, errs.Quota:
		default:
			path, serr := saveText(c, body)
			if serr != nil {
				return serr
			}
			return fmt.Errorf("your text is kept in %s: %w", path, err)
		}
		if now != nil {
			live = now // the next try is based on what is there now
		}
		last, text = body, append(notes(err), body...)
		if errs.KindOf(err) == errs.Conflict {
			last = nil // the same text may well pass the next time
		}
	}
}

// commitEdit writes the text as the object; after a conflict *now is what is there.
func commitEdit(ctx context.Context, c *verb.Call, live api.Object, body []byte, now *api.Object) error {
	raw, err := yaml.YAMLToJSONStrict(body)
	if err != nil {
		return errs.New(errs.Invalid, "%s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	o, err := api.DecodeStrict(raw)
	if err != nil {
		return err
	}
	if api.RefOf(o) != api.RefOf(live) {
		return errs.New(errs.Invalid, "kind, name and tenant cannot be changed: this was %s", api.RefOf(live))
	}
	n, err := takeUserPart(live, o)
	if err != nil {
		return err
	}
	if err := api.Check(n); err != nil {
		return err
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		_, err = cl.Commit(ctx, store.Update(n))
		if errs.KindOf(err) != errs.Conflict || try >= verb.MaxConflicts {
			return err
		}
		fresh, gerr := cl.Get(ctx, api.RefOf(live))
		if gerr != nil {
			return gerr
		}
		if !sameUserPart(live, fresh) {
			*now = fresh // somebody else changed what the user changes: the user decides
			return err
		}
		// Only a status was reported meanwhile: the text stands.
		live = fresh
		if n, err = takeUserPart(fresh, o); err != nil {
			return err
		}
	}
}

func sameUserPart(a, b api.Object) bool {
	x, err1 := cleanYAML(a)
	y, err2 := cleanYAML(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// takeUserPart gives live with the user's part replaced by o's.
func takeUserPart(live, o api.Object) (api.Object, error) {
	mine, err := userPart(o)
	if err != nil {
		return nil, err
	}
	all, err := render.Map(live)
	if err != nil {
		return nil, err
	}
	meta, _ := all["metadata"].(map[string]any)
	theirs, _ := mine["metadata"].(map[string]any)
	m := live.Metadata()
	for _, k := range []string{"labels", "annotations"} {
		if delete(meta, k); theirs[k] != nil {
			meta[k] = theirs[k]
		}
	}
	all["spec"] = mine["spec"]
	out, err := fromMap(all, live.ObjectKind())
	if err != nil {
		return nil, err
	}
	if v := m.Labels[appliedBy]; v != "" {
		out.Metadata().Labels = verb.With(out.Metadata().Labels, appliedBy, v)
	}
	if v := m.Annotations[LastApplied]; v != "" {
		out.Metadata().Annotations = verb.With(out.Metadata().Annotations, LastApplied, v)
	}
	return out, nil
}

func editable(o api.Object) ([]byte, error) {
	b, err := cleanYAML(o)
	if err != nil {
		return nil, err
	}
	return append([]byte(noteMark+" Save and leave to change "+render.ShortRef(o)+"; leave it as it is to change nothing.\n"), b...), nil
}

const noteMark = "#:" // lines of ours, taken out again; other comments are the user's

func notes(err error) []byte {
	var b bytes.Buffer
	lines := []string{"Not accepted: " + err.Error()}
	if h := errs.HintOf(err); h != "" {
		lines = append(lines, "What would help: "+h)
	}
	for _, l := range lines {
		fmt.Fprintf(&b, "%s %s\n", noteMark, strings.ReplaceAll(l, "\n", "\n"+noteMark+" "))
	}
	return b.Bytes()
}

func withoutNotes(b []byte) []byte {
	var out []byte
	for _, l := range bytes.SplitAfter(b, []byte("\n")) {
		if !bytes.HasPrefix(l, []byte(noteMark)) {
			out = append(out, l...)
		}
	}
	return out
}

func saveText(c *verb.Call, b []byte) (string, error) {
	f, err := os.CreateTemp(c.Getenv("TMPDIR"), "atoll-edit-*.yaml")
	if err != nil {
		return "", err
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return f.Name(), err
}

// editText lets the user's editor work on a private file.
func editText(c *verb.Call, text []byte, r api.Ref) ([]byte, error) {
	path, err := saveText(c, text)
	if err != nil {
		return nil, errs.New(errs.Internal, "write %s to a file: %w", r, err)
	}
	defer os.Remove(path)
	editor := cmp.Or(c.Getenv("VISUAL"), c.Getenv("EDITOR"), "vi")
	// By the shell, because EDITOR may hold arguments; the file comes as an argument of its own.
	cmd := exec.Command("/bin/sh", "-c", editor+` "$1"`, "sh", path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.In, c.Out, c.Err
	if err := cmd.Run(); err != nil {
		return nil, errs.New(errs.Invalid, "editor %s: %w", editor, err).WithHint("choose another one: EDITOR=nano atoll edit …")
	}
	return parse.ReadFile(path, parse.MaxFile)
}
