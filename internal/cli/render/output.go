// Package render is how the command line shows things: tables, objects in every
// form, amounts, errors. It writes where it is told to and asks nobody.
//
// It starts no goroutine. It must never know what is shown on: colours are a
// parameter.
package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"atoll/api"
	"atoll/internal/errs"
)

// Output chooses the form of a result.
type Output struct {
	Format    string
	NoHeaders bool
}

// Flags adds those that choose the form.
func (o *Output) Flags(fs *pflag.FlagSet) {
	fs.StringVarP(&o.Format, "output", "o", "table", "form: table, wide, json, yaml or name")
	fs.BoolVar(&o.NoHeaders, "no-headers", false, "tables without their first line")
}

// Check refuses a form that is none.
func (o *Output) Check() error {
	switch o.Format {
	case "table", "wide", "json", "yaml", "name":
		return nil
	}
	return errs.InvalidFields("flags", []errs.Field{{Field: "--output", Value: o.Format, Rule: "must be table, wide, json, yaml or name", Example: "wide"}})
}

// Wide reports whether all columns are wanted.
func (o *Output) Wide() bool { return o.Format == "wide" }

// Tabular reports whether columns are wanted at all.
func (o *Output) Tabular() bool { return o.Format == "table" || o.Format == "wide" }

// Table is text in columns.
type Table struct {
	Head  []string
	Rows  [][]string
	Width []int // kept between prints, so that rows printed later line up
}

// Row adds a row.
func (t *Table) Row(cells ...string) { t.Rows = append(t.Rows, cells) }

// String renders the rows that were added and forgets them.
func (t *Table) Text(head bool) string {
	lines := t.Rows
	if head && len(t.Head) > 0 {
		lines = append([][]string{t.Head}, lines...)
	}
	for _, l := range append(lines, t.Head) {
		for i, cell := range l {
			if i >= len(t.Width) {
				t.Width = append(t.Width, 0)
			}
			t.Width[i] = max(t.Width[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, l := range lines {
		line := ""
		for i, cell := range l {
			line += cell
			if i < len(l)-1 {
				line += strings.Repeat(" ", t.Width[i]-utf8.RuneCountInString(cell)+2)
			}
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	t.Rows = nil
	return b.String()
}

// Table writes the rows of a table that are new.
func (o Output) Table(w io.Writer, t *Table) {
	fmt.Fprint(w, t.Text(!o.NoHeaders))
}

// Value writes any value as JSON or YAML.
func Value(w io.Writer, v any, format string) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if format == "yaml" {
		if b, err = yaml.JSONToYAML(b); err != nil {
			return err
		}
	}
	_, err = w.Write(append(bytes.TrimRight(b, "\n"), '\n'))
	return err
}

// list is how several objects are written as JSON; 'atoll apply' reads it back.
type list struct {
	Kind  string       `json:"kind"`
	Items []api.Object `json:"items"`
}

// Objects writes objects in any form. single: one was asked for by name.
func (o Output) Objects(w io.Writer, now time.Time, objs []api.Object, single bool) error {
	switch o.Format {
	case "name":
		for _, obj := range objs {
			fmt.Fprintln(w, api.RefOf(obj))
		}
	case "json":
		if single && len(objs) == 1 {
			return Value(w, objs[0], "json")
		}
		if objs == nil {
			objs = []api.Object{}
		}
		return Value(w, list{Kind: "List", Items: objs}, "json")
	case "yaml":
		for i, obj := range objs {
			if i > 0 {
				fmt.Fprintln(w, "---")
			}
			if err := Value(w, obj, "yaml"); err != nil {
				return err
			}
		}
	default:
		o.kinds(w, now, objs)
	}
	return nil
}

// kinds writes one table for each kind, in the order they come.
func (o Output) kinds(w io.Writer, now time.Time, objs []api.Object) {
	for i := 0; i < len(objs); {
		k, j := objs[i].ObjectKind(), i
		for j < len(objs) && objs[j].ObjectKind() == k {
			j++
		}
		if i > 0 {
			fmt.Fprintln(w)
		}
		d, _ := api.Lookup(string(k))
		v := NewView(d, o.Wide(), Mixed(objs[i:j]), nil)
		for _, obj := range objs[i:j] {
			v.Add(obj, now)
		}
		o.Table(w, &v.Table)
		i = j
	}
}

// Mixed reports whether objects are of more than one tenant.
func Mixed(objs []api.Object) bool {
	for _, o := range objs {
		if o.Metadata().Tenant != objs[0].Metadata().Tenant {
			return true
		}
	}
	return false
}

// View shows objects of one kind in the columns of its definition.
type View struct {
	Table
	cols   []api.Column
	tenant bool
	usage  map[api.Ref]api.InstanceUsage
}

// NewView with a usage joins what instances use, between ADDRESS and the rest.
func NewView(d *api.Definition, wide, tenant bool, usage map[api.Ref]api.InstanceUsage) *View {
	v := &View{tenant: tenant && d.Tenanted, usage: usage}
	for _, col := range d.Columns {
		if v.tenant && col.Name == "TENANT" {
			v.tenant = false
		}
	}
	if v.tenant {
		v.Head = append(v.Head, "TENANT")
	}
	for _, col := range d.Columns {
		if col.Wide && !wide || usage != nil && col.Name == "IMAGE" {
			continue // with usage the line is long enough
		}
		v.cols = append(v.cols, col)
		v.Head = append(v.Head, col.Name)
		if usage != nil && col.Name == "ADDRESS" {
			v.Head = append(v.Head, "CPU (used/req/limit)", "MEMORY (used/req/limit)")
		}
	}
	return v
}

// Add adds the row of an object.
func (v *View) Add(o api.Object, now time.Time) {
	var cells []string
	if v.tenant {
		cells = append(cells, o.Metadata().Tenant)
	}
	for _, col := range v.cols {
		cells = append(cells, col.Value(o, now))
		if in, ok := o.(*api.Instance); ok && v.usage != nil && col.Name == "ADDRESS" {
			u, has := v.usage[api.RefOf(o)]
			cells = append(cells, share(in, api.CPU, u.CPUMilli, has), share(in, api.Memory, u.Usage.Memory, has))
		}
	}
	v.Row(cells...)
}

// share is used/requested/ceiling.
func share(in *api.Instance, r api.Resource, used int64, has bool) string {
	amount := func(m api.Resources) string {
		if v, ok := m[r]; ok {
			return api.HumanQuantity(r, v)
		}
		return "-"
	}
	now := "-"
	if has {
		now = api.HumanQuantity(r, used)
	}
	return now + "/" + amount(in.Spec.Requests) + "/" + amount(in.Spec.Limits)
}

// Rows writes what is not an object in any form: a table, or a list of
// objects with the lower-case heads as keys.
func (o Output) Rows(w io.Writer, head []string, rows [][]string) error {
	switch o.Format {
	case "name":
		for _, r := range rows {
			fmt.Fprintln(w, r[0])
		}
		return nil
	case "json", "yaml":
		list := make([]map[string]string, len(rows))
		for i, r := range rows {
			list[i] = map[string]string{}
			for j, h := range head {
				list[i][strings.ToLower(strings.ReplaceAll(h, " ", "-"))] = r[j]
			}
		}
		return Value(w, list, o.Format)
	}
	o.Table(w, &Table{Head: head, Rows: rows})
	return nil
}
