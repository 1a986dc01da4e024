package api

import (
	"fmt"
	"strings"
	"time"

	"atoll/internal/errs"
)

// Kind names a sort of object, in CamelCase as in a file's "kind:".
type Kind string

// Ref names an object: its kind, the tenant it belongs to ("" for what belongs
// to the pool) and its name.
type Ref struct {
	Kind   Kind   `json:"kind" doc:"kind of the object"`
	Tenant string `json:"tenant,omitempty" doc:"tenant it belongs to; empty for what belongs to the pool"`
	Name   string `json:"name" doc:"name of the object"`
}

// String is kind/tenant/name with the kind in lower case; pool-wide objects have no tenant part.
func (r Ref) String() string {
	k := strings.ToLower(string(r.Kind))
	if r.Tenant == "" {
		return k + "/" + r.Name
	}
	return k + "/" + r.Tenant + "/" + r.Name
}

// Meta is what every object has.
type Meta struct {
	Name        string            `json:"name" doc:"unique within tenant and kind; a DNS label" example:"web"`
	Tenant      string            `json:"tenant,omitempty" doc:"tenant the object belongs to; nested tenants are written as a path" example:"acme/research"`
	UID         string            `json:"uid,omitempty" doc:"unique over time and pools; set by the server"`
	Revision    int64             `json:"revision,omitempty" doc:"changes with every write; send it as If-Match to write only what you read"`
	Generation  int64             `json:"generation,omitempty" doc:"counts changes of the spec; set by the server"`
	Labels      map[string]string `json:"labels,omitempty" doc:"for selecting" example:"app: db"`
	Annotations map[string]string `json:"annotations,omitempty" doc:"notes for people and tools; never selected on"`
	Owner       *Ref              `json:"owner,omitempty" doc:"the object this one was made for and goes with"`
	Finalizers  []string          `json:"finalizers,omitempty" doc:"who must clean up before the object may go"`
	CreatedAt   *time.Time        `json:"createdAt,omitempty" doc:"set by the server"`
	DeletedAt   *time.Time        `json:"deletedAt,omitempty" doc:"set when removal was asked for"`
}

// Head is embedded first in every kind.
type Head struct {
	K    Kind `json:"kind" doc:"kind of the object"`
	Meta `json:"metadata"`
}

// Metadata gives access to the common part.
func (h *Head) Metadata() *Meta { return &h.Meta }

// ObjectKind is the kind the object was made with.
func (h *Head) ObjectKind() Kind { return h.K }

// Object is any kind.
type Object interface {
	Metadata() *Meta
	ObjectKind() Kind
	// Validate checks the spec by itself, without looking at other objects.
	Validate() []errs.Field
}

// Fixer is an object with parts of its spec that cannot change once it exists.
type Fixer interface {
	// Fixed names those that differ from what was.
	Fixed(old Object) []errs.Field
}

// RefOf names an object.
func RefOf(o Object) Ref {
	m := o.Metadata()
	return Ref{Kind: o.ObjectKind(), Tenant: m.Tenant, Name: m.Name}
}

// Condition says one thing about an object that is true or not.
type Condition struct {
	Type    string    `json:"type" doc:"what is said" example:"Ready"`
	Status  bool      `json:"status" doc:"whether it holds"`
	Reason  string    `json:"reason,omitempty" doc:"one word, for programs"`
	Message string    `json:"message,omitempty" doc:"a sentence, for people; says what to do"`
	Since   time.Time `json:"since,omitzero" doc:"when it last changed"`
}

// SetCondition replaces the condition of c's type, keeping Since while Status stays.
func SetCondition(list []Condition, c Condition) []Condition {
	out := make([]Condition, 0, len(list)+1)
	for _, old := range list {
		if old.Type != c.Type {
			out = append(out, old)
		} else if old.Status == c.Status {
			c.Since = old.Since
		}
	}
	return append(out, c)
}

const (
	nameRule    = "must be 1 to 63 of a-z, 0-9 and -, starting and ending with a letter or digit"
	maxTenants  = 4 // depth of nesting; each level is a level of cgroups on every node
	maxMapBytes = 64 << 10
)

// ValidName reports whether s is a DNS label.
func ValidName(s string) bool { return word(s, 63, false, "-") }

// word reports whether s is 1 to most letters and digits, with the bytes of inner allowed
// between the first and the last. Written out instead of as regular expressions: compiling
// those took a third of the time in which the command line starts.
func word(s string, most int, upper bool, inner string) bool {
	if len(s) == 0 || len(s) > most {
		return false
	}
	for i := range len(s) {
		c := s[i]
		plain := c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || upper && c >= 'A' && c <= 'Z'
		if !plain && (i == 0 || i == len(s)-1 || strings.IndexByte(inner, c) < 0) {
			return false
		}
	}
	return true
}

// validLabelKey is an optional DNS prefix and / and a name.
func validLabelKey(s string) bool {
	if i := strings.IndexByte(s, '/'); i >= 0 {
		if !word(s[:i], 253, false, ".-") {
			return false
		}
		s = s[i+1:]
	}
	return word(s, 63, true, "-_.")
}

func validLabelValue(s string) bool { return s == "" || word(s, 63, true, "-_.") }

// ValidTenantPath reports whether s is one to four DNS labels joined by "/".
func ValidTenantPath(s string) bool {
	parts := strings.Split(s, "/")
	if len(parts) > maxTenants {
		return false
	}
	for _, p := range parts {
		if !ValidName(p) {
			return false
		}
	}
	return true
}

// TenantChain lists a tenant and its ancestors, nearest first: a/b/c, a/b, a.
func TenantChain(path string) []string {
	var out []string
	for path != "" {
		out = append(out, path)
		i := strings.LastIndexByte(path, '/')
		if i < 0 {
			break
		}
		path = path[:i]
	}
	return out
}

// ParentTenant is the tenant one level up, "" for a top tenant.
func ParentTenant(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return ""
}

// WithinTenant reports whether path is root itself or nested in it. Everything is within "".
func WithinTenant(path, root string) bool {
	return root == "" || path == root || strings.HasPrefix(path, root+"/")
}

// Check validates everything that can be judged from the object alone.
// The error is errs.Invalid and names each field, value, rule and an example.
func Check(o Object) error {
	def, ok := Lookup(string(o.ObjectKind()))
	if !ok {
		return errs.New(errs.Invalid, "unknown kind %q", o.ObjectKind()).WithHint("known kinds: %s", strings.Join(KindNames(), ", "))
	}
	fields := checkMeta(def, o.Metadata())
	fields = append(fields, o.Validate()...)
	name := strings.ToLower(string(def.Kind)) + " " + o.Metadata().Name
	return errs.InvalidFields(name, fields)
}

func checkMeta(def *Definition, m *Meta) []errs.Field {
	var f []errs.Field
	switch {
	case def.Kind == KindTenant:
		if !ValidTenantPath(m.Name) {
			f = append(f, errs.Field{Field: "metadata.name", Value: clip(m.Name), Rule: "must be one to four names joined by /; each " + nameRule, Example: "acme/research"})
		}
	case !ValidName(m.Name):
		f = append(f, errs.Field{Field: "metadata.name", Value: clip(m.Name), Rule: nameRule, Example: "web-1"})
	}
	if def.Tenanted && !ValidTenantPath(m.Tenant) {
		f = append(f, errs.Field{Field: "metadata.tenant", Value: clip(m.Tenant), Rule: "must name the tenant it belongs to", Example: "acme"})
	}
	if !def.Tenanted && m.Tenant != "" {
		f = append(f, errs.Field{Field: "metadata.tenant", Value: clip(m.Tenant), Rule: "must be empty: a " + string(def.Kind) + " belongs to the pool, not to a tenant"})
	}
	f = append(f, labelFields("metadata.labels", m.Labels)...)

	size := 0
	for k, v := range m.Annotations {
		size += len(k) + len(v)
	}
	if size > maxMapBytes {
		f = append(f, errs.Field{Field: "metadata.annotations", Rule: fmt.Sprintf("must be at most %d bytes together", maxMapBytes)})
	}
	return f
}

// clip keeps hostile input from filling an error message.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// labelFields checks labels, or what labels are compared with.
func labelFields(field string, labels map[string]string) []errs.Field {
	var f []errs.Field
	if len(labels) > maxLabels {
		return []errs.Field{{Field: field, Value: fmt.Sprint(len(labels)), Rule: fmt.Sprintf("must be at most %d labels", maxLabels)}}
	}
	for k, v := range labels {
		if !validLabelKey(k) {
			f = append(f, errs.Field{Field: field, Value: clip(k), Rule: "a key is an optional DNS prefix and / and then 1 to 63 of letters, digits, - _ .", Example: "app"})
		}
		if !validLabelValue(v) {
			f = append(f, errs.Field{Field: field + "." + clip(k), Value: clip(v), Rule: "a value is at most 63 of letters, digits, - _ .", Example: "db"})
		}
	}
	return f
}

// maxLabels bounds the labels of one object.
const maxLabels = 64
