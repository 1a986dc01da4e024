package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"atoll/api"
)

type explainOptions struct{ recursive bool }

func explainVerb() Verb {
	o := &explainOptions{}
	return Verb{
		Use: "explain KIND[.FIELD…]", Group: groupTell, Min: 1, Max: 1,
		Short:   "Document the fields of a kind",
		Example: "  atoll explain instance\n  atoll explain instance.spec.limits\n  atoll explain tenant.spec --recursive",
		Flags:   func(fs *pflag.FlagSet) { fs.BoolVarP(&o.recursive, "recursive", "R", false, "also the fields inside") },
		Run:     o.run, Complete: completeFields,
	}
}

func (o *explainOptions) run(_ context.Context, c *call) error {
	d, err := api.Explain(c.args[0])
	if err != nil {
		return err
	}
	c.say("%s  <%s>", d.Path, d.Type)
	if d.Doc != "" {
		c.say("  %s", sentence(d.Doc))
	}
	for _, l := range fieldFacts(*d) {
		c.say("  %s", l)
	}
	if len(d.Children) == 0 {
		return nil
	}
	c.say("\nFields")
	t := &table{}
	o.rows(t, d.Children, "  ")
	fmt.Fprint(c.Out, t.render(false))
	return nil
}

func (o *explainOptions) rows(t *table, list []api.FieldDoc, indent string) {
	for _, f := range list {
		doc := f.Doc
		if facts := fieldFacts(f); len(facts) > 0 {
			doc = strings.TrimPrefix(doc+"; "+strings.Join(facts, "; "), "; ")
		}
		t.row(indent+f.Name, "<"+f.Type+">", doc)
		if o.recursive {
			o.rows(t, f.Children, indent+"  ")
		}
	}
}

func fieldFacts(f api.FieldDoc) []string {
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

func apiResourcesVerb() Verb {
	o := &output{}
	return Verb{
		Use: "api-resources", Group: groupTell, Aliases: []string{"kinds"},
		Short:   "List the kinds and what they are for",
		Example: "  atoll api-resources\n  atoll api-resources -o name",
		Flags:   o.flags,
		Run: func(_ context.Context, c *call) error {
			if err := o.check(); err != nil {
				return err
			}
			return o.printRows(c.Out, []string{"PLURAL", "KIND", "SHORT", "TENANTED", "WRITABLE", "WHAT IT IS"}, kindRows())
		},
	}
}

func kindRows() [][]string {
	var rows [][]string
	for _, d := range api.Definitions() {
		rows = append(rows, []string{d.Plural, string(d.Kind), dash(strings.Join(d.Aliases, ",")), fmt.Sprint(d.Tenanted), fmt.Sprint(!d.ReadOnly), d.Doc})
	}
	return rows
}

// completeFields completes the paths of explain.
func completeFields(_ context.Context, _ *call, typed string) []string {
	i := strings.LastIndexByte(typed, '.')
	if i < 0 {
		return api.KindNames()
	}
	d, err := api.Explain(typed[:i])
	if err != nil {
		return nil
	}
	var out []string
	for _, f := range d.Children {
		out = append(out, typed[:i]+"."+f.Name)
	}
	return out
}
