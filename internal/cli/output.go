package cli

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

// output chooses the form of a result.
type output struct {
	format    string
	noHeaders bool
}

func (o *output) flags(fs *pflag.FlagSet) {
	fs.StringVarP(&o.format, "output", "o", "table", "form: table, wide, json, yaml or name")
	fs.BoolVar(&o.noHeaders, "no-headers", false, "tables without their first line")
}

func (o *output) check() error {
	switch o.format {
	case "table", "wide", "json", "yaml", "name":
		return nil
	}
	return errs.InvalidFields("flags", []errs.Field{{Field: "--output", Value: o.format, Rule: "must be table, wide, json, yaml or name", Example: "wide"}})
}

func (o *output) wide() bool  { return o.format == "wide" }
func (o *output) table() bool { return o.format == "table" || o.format == "wide" }

// table is text in columns.
type table struct {
	head  []string
	rows  [][]string
	width []int // kept between prints, so that rows printed later line up
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// String renders the rows that were added and forgets them.
func (t *table) render(head bool) string {
	lines := t.rows
	if head && len(t.head) > 0 {
		lines = append([][]string{t.head}, lines...)
	}
	for _, l := range append(lines, t.head) {
		for i, cell := range l {
			if i >= len(t.width) {
				t.width = append(t.width, 0)
			}
			t.width[i] = max(t.width[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, l := range lines {
		line := ""
		for i, cell := range l {
			line += cell
			if i < len(l)-1 {
				line += strings.Repeat(" ", t.width[i]-utf8.RuneCountInString(cell)+2)
			}
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	t.rows = nil
	return b.String()
}

// printTable writes the rows of a table that are new.
func (o output) printTable(w io.Writer, t *table) {
	fmt.Fprint(w, t.render(!o.noHeaders))
}

// printValue writes any value as JSON or YAML.
func printValue(w io.Writer, v any, format string) error {
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

// printObjects writes objects in any form. single: one was asked for by name.
func (o output) printObjects(w io.Writer, now time.Time, objs []api.Object, single bool) error {
	switch o.format {
	case "name":
		for _, obj := range objs {
			fmt.Fprintln(w, api.RefOf(obj))
		}
	case "json":
		if single && len(objs) == 1 {
			return printValue(w, objs[0], "json")
		}
		if objs == nil {
			objs = []api.Object{}
		}
		return printValue(w, list{Kind: "List", Items: objs}, "json")
	case "yaml":
		for i, obj := range objs {
			if i > 0 {
				fmt.Fprintln(w, "---")
			}
			if err := printValue(w, obj, "yaml"); err != nil {
				return err
			}
		}
	default:
		o.printKinds(w, now, objs)
	}
	return nil
}

// printKinds writes one table for each kind, in the order they come.
func (o output) printKinds(w io.Writer, now time.Time, objs []api.Object) {
	for i := 0; i < len(objs); {
		k, j := objs[i].ObjectKind(), i
		for j < len(objs) && objs[j].ObjectKind() == k {
			j++
		}
		if i > 0 {
			fmt.Fprintln(w)
		}
		d, _ := api.Lookup(string(k))
		v := newView(d, o.wide(), mixed(objs[i:j]), nil)
		for _, obj := range objs[i:j] {
			v.add(obj, now)
		}
		o.printTable(w, &v.table)
		i = j
	}
}

// mixed reports whether objects are of more than one tenant.
func mixed(objs []api.Object) bool {
	for _, o := range objs {
		if o.Metadata().Tenant != objs[0].Metadata().Tenant {
			return true
		}
	}
	return false
}

// view shows objects of one kind in the columns of its definition.
type view struct {
	table
	cols   []api.Column
	tenant bool
	usage  map[api.Ref]api.InstanceUsage
}

// newView with a usage joins what instances use, between ADDRESS and the rest.
func newView(d *api.Definition, wide, tenant bool, usage map[api.Ref]api.InstanceUsage) *view {
	v := &view{tenant: tenant && d.Tenanted, usage: usage}
	for _, col := range d.Columns {
		if v.tenant && col.Name == "TENANT" {
			v.tenant = false
		}
	}
	if v.tenant {
		v.head = append(v.head, "TENANT")
	}
	for _, col := range d.Columns {
		if col.Wide && !wide || usage != nil && col.Name == "IMAGE" {
			continue // with usage the line is long enough
		}
		v.cols = append(v.cols, col)
		v.head = append(v.head, col.Name)
		if usage != nil && col.Name == "ADDRESS" {
			v.head = append(v.head, "CPU (used/req/limit)", "MEMORY (used/req/limit)")
		}
	}
	return v
}

func (v *view) add(o api.Object, now time.Time) {
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
	v.row(cells...)
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

// printRows writes what is not an object in any form: a table, or a list of
// objects with the lower-case heads as keys.
func (o output) printRows(w io.Writer, head []string, rows [][]string) error {
	switch o.format {
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
		return printValue(w, list, o.format)
	}
	o.printTable(w, &table{head: head, rows: rows})
	return nil
}
