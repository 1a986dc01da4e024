package tell

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/explain"
)

type explainOptions struct{ recursive bool }

// Explain documents the fields of a kind.
func Explain() verb.Def {
	o := &explainOptions{}
	return verb.Def{
		Use: "explain KIND[.FIELD…]", Group: verb.GroupTell, Min: 1, Max: 1,
		Short:   "Document the fields of a kind",
		Example: "  atoll explain instance\n  atoll explain instance.spec.limits\n  atoll explain tenant.spec --recursive",
		Flags:   func(fs *pflag.FlagSet) { fs.BoolVarP(&o.recursive, "recursive", "R", false, "also the fields inside") },
		Run:     o.run, Complete: completeFields,
	}
}

func (o *explainOptions) run(_ context.Context, c *verb.Call) error {
	d, err := explain.Of(c.Args[0])
	if err != nil {
		return err
	}
	c.Say("%s  <%s>", d.Path, d.Type)
	if d.Doc != "" {
		c.Say("  %s", sentence(d.Doc))
	}
	for _, l := range fieldFacts(*d) {
		c.Say("  %s", l)
	}
	if len(d.Children) == 0 {
		return nil
	}
	c.Say("\nFields")
	t := &render.Table{}
	o.rows(t, d.Children, "  ")
	fmt.Fprint(c.Out, t.Text(false))
	return nil
}

func (o *explainOptions) rows(t *render.Table, list []explain.Field, indent string) {
	for _, f := range list {
		doc := f.Doc
		if facts := fieldFacts(f); len(facts) > 0 {
			doc = strings.TrimPrefix(doc+"; "+strings.Join(facts, "; "), "; ")
		}
		t.Row(indent+f.Name, "<"+f.Type+">", doc)
		if o.recursive {
			o.rows(t, f.Children, indent+"  ")
		}
	}
}

func fieldFacts(f explain.Field) []string {
	var out []string
	if len(f.Enum) > 0 {
		out = append(out, "one of: "+strings.Join(f.Enum, ", "))
	}
	if f.Default != "" {
		out = append(out, "default: "+f.Default)
	}
	if f.Example != "" {
		out = append(out, "example: "+f.Example)
	}
	return out
}

func sentence(s string) string {
	s = strings.ToUpper(s[:1]) + s[1:]
	if !strings.HasSuffix(s, ".") {
		s += "."
	}
	return s
}

// Resources lists the kinds.
func Resources() verb.Def {
	o := &render.Output{}
	return verb.Def{
		Use: "api-resources", Group: verb.GroupTell, Aliases: []string{"kinds"},
		Short:   "List the kinds and what they are for",
		Example: "  atoll api-resources\n  atoll api-resources -o name",
		Flags:   o.Flags,
		Run: func(_ context.Context, c *verb.Call) error {
			if err := o.Check(); err != nil {
				return err
			}
			return o.Rows(c.Out, []string{"PLURAL", "KIND", "SHORT", "TENANTED", "WRITABLE", "WHAT IT IS"}, kindRows())
		},
	}
}

func kindRows() [][]string {
	var rows [][]string
	for _, d := range api.Definitions() {
		rows = append(rows, []string{d.Plural, string(d.Kind), render.Dash(strings.Join(d.Aliases, ",")), fmt.Sprint(d.Tenanted), fmt.Sprint(!d.ReadOnly), d.Doc})
	}
	return rows
}

// completeFields completes the paths of explain.
func completeFields(_ context.Context, _ *verb.Call, typed string) []string {
	i := strings.LastIndexByte(typed, '.')
	if i < 0 {
		return api.KindNames()
	}
	d, err := explain.Of(typed[:i])
	if err != nil {
		return nil
	}
	var out []string
	for _, f := range d.Children {
		out = append(out, typed[:i]+"."+f.Name)
	}
	return out
}
