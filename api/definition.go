package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"sort"
	"strings"
	"time"

	"atoll/internal/errs"
)

// Definition is everything the rest of the product needs to know of a kind.
type Definition struct {
	Kind     Kind
	Plural   string   // route: /v1/<plural>
	Aliases  []string // what people type beside singular and plural
	Tenanted bool     // belongs to a tenant; otherwise to the pool
	ReadOnly bool     // users read it; only Atoll's own parts write it
	Doc      string   // one sentence for help, explain and OpenAPI
	// Finalizers are put on a new object by the server: who must clean up before it goes.
	Finalizers []string
	New        func() Object
	Columns    []Column
	// Formats are the steps in how it is stored, oldest first; none: there is one format.
	Formats []Format
	// Fields lists what a field selector may ask for.
	Fields map[string]func(Object) string
}

// Column is one column of a table.
type Column struct {
	Name  string
	Wide  bool // only with -o wide
	Value func(o Object, now time.Time) string
}

// Definitions lists every kind. To add a kind: write api/<kind>.go and add its line.
func Definitions() []*Definition { return definitions }

var definitions = []*Definition{
	tenantDefinition(),
	userDefinition(),
	roleDefinition(),
	roleBindingDefinition(),
	tokenDefinition(),
	nodeDefinition(),
	joinTokenDefinition(),
	nodeIdentityDefinition(),
	memberDefinition(),
	poolDefinition(),
	upgradeDefinition(),
	encryptionDefinition(),
	hostKeyDefinition(),
	leaseDefinition(),
	imageDefinition(),
	instanceDefinition(),
	assignmentDefinition(),
	networkDefinition(),
	endpointDefinition(),
	peeringDefinition(),
	routeDefinition(),
	addressPoolDefinition(),
	addressDefinition(),
	moveDefinition(),
	drainDefinition(),
	deploymentDefinition(),
	revisionDefinition(),
	jobDefinition(),
	cronJobDefinition(),
	ledgerDefinition(),
	priorityClassDefinition(),
	budgetDefinition(),
	securityGroupDefinition(),
	dropRuleDefinition(),
	bgpPeerDefinition(),
	eventDefinition(),
}

// Singular is the kind in lower case.
func (d *Definition) Singular() string { return strings.ToLower(string(d.Kind)) }

// Lookup finds a kind by kind, singular, plural or alias, in any case.
func Lookup(name string) (*Definition, bool) {
	for _, d := range definitions {
		if name == string(d.Kind) { // as every stored object says it
			return d, true
		}
	}
	n := strings.ToLower(name)
	for _, d := range definitions {
		if n == d.Singular() || n == d.Plural {
			return d, true
		}
		for _, a := range d.Aliases {
			if n == a {
				return d, true
			}
		}
	}
	return nil, false
}

// KindNames lists the kinds for messages, sorted.
func KindNames() []string {
	var out []string
	for _, d := range definitions {
		out = append(out, d.Singular())
	}
	sort.Strings(out)
	return out
}

// New makes an empty object of a kind, its kind set.
func New(k Kind) (Object, error) {
	d, ok := Lookup(string(k))
	if !ok {
		return nil, errs.New(errs.Invalid, "unknown kind %q", clip(string(k))).WithHint("known kinds: %s", strings.Join(KindNames(), ", "))
	}
	return d.New(), nil
}

// Encode writes an object as JSON.
func Encode(o Object) ([]byte, error) { return json.Marshal(o) }

// Decode reads JSON written by Encode, of this or an older version: unknown fields are passed over.
func Decode(data []byte) (Object, error) {
	var head struct {
		K Kind `json:"kind"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, errs.New(errs.Invalid, "decode object: %w", err)
	}
	return DecodeAs(head.K, data)
}

// DecodeAs is Decode where the kind is known already.
func DecodeAs(k Kind, data []byte) (Object, error) {
	o, err := New(k)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, o); err != nil {
		return nil, errs.New(errs.Invalid, "decode %s: %w", k, err)
	}
	if o.ObjectKind() != k {
		return nil, errs.New(errs.Invalid, "decode: kind is %q, expected %q", clip(string(o.ObjectKind())), k)
	}
	return o, nil
}

// DecodeStrict reads what a person or program wrote: an unknown field is an
// errs.Invalid that names its path and the field that was probably meant.
func DecodeStrict(data []byte) (Object, error) {
	var head struct {
		K Kind `json:"kind"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, errs.New(errs.Invalid, "not valid JSON: %w", err)
	}
	if head.K == "" {
		return nil, errs.InvalidFields("object", []errs.Field{{Field: "kind", Rule: "must be given; known: " + strings.Join(KindNames(), ", "), Example: "Instance"}})
	}
	d, ok := Lookup(string(head.K))
	if !ok {
		return nil, errs.InvalidFields("object", []errs.Field{{Field: "kind", Value: clip(string(head.K)), Rule: "must be one of " + strings.Join(KindNames(), ", "), Example: "Instance"}})
	}
	o := d.New()
	var raw any
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := dec.Decode(&raw); err != nil {
		return nil, errs.New(errs.Invalid, "not valid JSON: %w", err)
	}
	if fields := unknownFields(reflect.TypeOf(o).Elem(), raw, "", nil); len(fields) > 0 {
		return nil, errs.InvalidFields(d.Singular(), fields)
	}
	if err := json.Unmarshal(data, o); err != nil {
		return nil, errs.New(errs.Invalid, "%s: %s", d.Singular(), describeJSONError(err))
	}
	*kindOf(o) = d.Kind // "instance" is accepted and becomes "Instance"
	return o, nil
}

func kindOf(o Object) *Kind {
	return &reflect.ValueOf(o).Elem().FieldByName("Head").Addr().Interface().(*Head).K
}

func describeJSONError(err error) string {
	if t, ok := err.(*json.UnmarshalTypeError); ok {
		return fmt.Sprintf("%s: must be %s, not %s", t.Field, typeWord(t.Type), t.Value)
	}
	return err.Error()
}

func typeWord(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a text"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "an object"
	default:
		return "a number"
	}
}

// Clone copies an object in depth.
func Clone[T Object](o T) T {
	return deepCopy(reflect.ValueOf(o)).Interface().(T)
}

func deepCopy(v reflect.Value) reflect.Value {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return v
		}
		n := reflect.New(v.Type().Elem())
		n.Elem().Set(deepCopy(v.Elem()))
		return n
	case reflect.Struct:
		n := reflect.New(v.Type()).Elem()
		n.Set(v) // also copies unexported fields, such as time.Time's
		if v.Type() == timeType {
			return n
		}
		for i := range v.NumField() {
			if f := n.Field(i); f.CanSet() && !flat(f.Kind()) {
				f.Set(deepCopy(v.Field(i)))
			}
		}
		return n
	case reflect.Slice:
		if v.IsNil() {
			return v
		}
		n := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			n.Index(i).Set(deepCopy(v.Index(i)))
		}
		return n
	case reflect.Map:
		if v.IsNil() {
			return v
		}
		n := reflect.MakeMapWithSize(v.Type(), v.Len())
		for it := v.MapRange(); it.Next(); {
			n.SetMapIndex(it.Key(), deepCopy(it.Value()))
		}
		return n
	default:
		return v
	}
}

var timeType = reflect.TypeFor[time.Time]()

func flat(k reflect.Kind) bool {
	return k <= reflect.Complex128 || k == reflect.String
}

// Selector chooses objects of one kind.
type Selector struct {
	Kind   Kind
	Tenant string            // "" chooses all tenants
	Nested bool              // with Tenant: also the tenants inside it
	Name   string            // "" chooses all names
	Labels []LabelTerm       // all must hold
	Fields map[string]string // Definition.Fields; all must be equal
	Limit  int               // List only: at most so many; 0 is all
	After  string            // List only: continue after this ref's SortKey
	MinRev int64             // List and Get: wait until the reader has seen this revision
}

// LabelTerm is one condition on labels: key=value, key!=value, key, !key, key in (a,b).
type LabelTerm struct {
	Key    string
	Values []string // nil: only presence is asked
	Not    bool
}

// Matches reports whether o is chosen, not looking at Limit, After and MinRev.
func (s Selector) Matches(o Object) bool {
	m := o.Metadata()
	if o.ObjectKind() != s.Kind || s.Name != "" && m.Name != s.Name {
		return false
	}
	if s.Tenant != "" && m.Tenant != s.Tenant && !(s.Nested && WithinTenant(m.Tenant, s.Tenant)) {
		return false
	}
	for _, t := range s.Labels {
		if !t.matches(m.Labels) {
			return false
		}
	}
	if len(s.Fields) == 0 {
		return true
	}
	d, ok := Lookup(string(s.Kind))
	if !ok {
		return false
	}
	for k, want := range s.Fields {
		f, ok := d.Fields[k]
		if !ok || f(o) != want {
			return false
		}
	}
	return true
}

func (t LabelTerm) matches(labels map[string]string) bool {
	v, has := labels[t.Key]
	hit := has
	if has && t.Values != nil {
		hit = false
		for _, w := range t.Values {
			hit = hit || v == w
		}
	}
	return hit != t.Not
}

// FormatLabels writes labels in the order of their keys: "app=web,tier=front".
func FormatLabels(m map[string]string) string {
	out := make([]string, 0, len(m))
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return strings.Join(out, ",")
}

// ParseLabels reads "app=db,tier!=web,gpu,!old,zone in (a b)".
func ParseLabels(s string) ([]LabelTerm, error) {
	var out []LabelTerm
	for _, part := range strings.Split(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		var t LabelTerm
		switch k, v, ok := strings.Cut(part, "="); {
		case strings.HasSuffix(part, ")") && strings.Contains(part, " in ("):
			key, list, _ := strings.Cut(strings.TrimSuffix(part, ")"), " in (")
			t = LabelTerm{Key: strings.TrimSpace(key), Values: strings.Fields(list)}
		case ok && strings.HasSuffix(k, "!"):
			t = LabelTerm{Key: strings.TrimSuffix(k, "!"), Values: []string{v}, Not: true}
		case ok:
			t = LabelTerm{Key: k, Values: []string{strings.TrimPrefix(v, "=")}}
		case strings.HasPrefix(part, "!"):
			t = LabelTerm{Key: part[1:], Not: true}
		default:
			t = LabelTerm{Key: part}
		}
		if !validLabelKey(t.Key) {
			return nil, errs.InvalidFields("selector", []errs.Field{{Field: "labels", Value: clip(part), Rule: "must be key=value, key!=value, key, !key or key in (a b)", Example: "app=db,tier!=web"}})
		}
		out = append(out, t)
	}
	return out, nil
}

// ParseFields reads "status.node=isle1,status.state=running" for a kind.
func ParseFields(d *Definition, s string) (map[string]string, error) {
	out := map[string]string{}
	for _, part := range strings.Split(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		k, v, ok := strings.Cut(part, "=")
		if _, known := d.Fields[k]; !ok || !known {
			var names []string
			for n := range d.Fields {
				names = append(names, n)
			}
			sort.Strings(names)
			return nil, errs.InvalidFields("selector", []errs.Field{{Field: "fields", Value: clip(part), Rule: "must be field=value with one of: " + strings.Join(names, ", ")}})
		}
		out[k] = v
	}
	return out, nil
}

// SortKey orders objects of a kind: by tenant, then name.
func SortKey(r Ref) string { return r.Tenant + "\x00" + r.Name }

// Age writes a duration the way tables show it: 5s, 3m, 2h, 4d.
func Age(since *time.Time, now time.Time) string {
	if since == nil || since.IsZero() {
		return "-"
	}
	d := max(now.Sub(*since), 0)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
