package api

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"atoll/internal/errs"
)

// KindImage is an OCI image the pool knows by name.
const KindImage Kind = "Image"

// SharedTenant is where images for every tenant are. It is a name only: no tenant
// is called so, nothing runs there, and everybody may read its images.
const SharedTenant = "shared"

// Image names an OCI image of a tenant and pins it by digest. Its content lives
// on the nodes; a node fetches what an instance placed on it needs, and its own
// names follow the Images of the pool.
type Image struct {
	Head
	Spec   ImageSpec   `json:"spec"`
	Status ImageStatus `json:"status,omitzero"`
}

// ImageSpec says where an image comes from.
type ImageSpec struct {
	Reference string `json:"reference" doc:"name people use" example:"registry.example.com/team/app:1.4"`
	Digest    string `json:"digest,omitempty" doc:"pins the content" example:"sha256:…"`
	Platform  string `json:"platform,omitempty" doc:"OS and architecture; default: the node's own" example:"linux/amd64"`
	Shared    bool   `json:"shared,omitempty" doc:"every tenant may run it; set by administrators"`
}

// ImageStatus is what is known of its content.
type ImageStatus struct {
	Digest string   `json:"digest,omitempty" doc:"digest of the manifest that is here"`
	Size   int64    `json:"size,omitempty" doc:"bytes of its layers, compressed"`
	Layers int      `json:"layers,omitempty" doc:"number of layers"`
	Nodes  []string `json:"nodes,omitempty" doc:"nodes that have it unpacked"`
}

// Validate checks that there is a reference.
func (i *Image) Validate() []errs.Field {
	var f []errs.Field
	if i.Spec.Reference == "" || len(i.Spec.Reference) > 512 || strings.ContainsAny(i.Spec.Reference, " \n\t") {
		return append(f, errs.Field{Field: "spec.reference", Value: clip(i.Spec.Reference), Rule: "must be an image reference", Example: "busybox"})
	}
	if want := ImageName(i.Spec.Reference); i.Name != "" && i.Name != want {
		f = append(f, errs.Field{Field: "name", Value: clip(i.Name), Rule: "must be the reference as a name", Example: want})
	}
	if i.Spec.Shared != (i.Tenant == SharedTenant) {
		f = append(f, errs.Field{Field: "spec.shared", Value: fmt.Sprint(i.Spec.Shared), Rule: "must be true in the tenant " + SharedTenant + ", and only there", Example: fmt.Sprint(!i.Spec.Shared)})
	}
	return f
}

// PlainReference leaves out of a reference what is understood: the default registry and tag.
func PlainReference(ref string) string {
	for _, p := range []string{"docker.io/library/", "docker.io/", "localhost/", "library/"} {
		ref = strings.TrimPrefix(ref, p)
	}
	return strings.TrimSuffix(ref, ":latest")
}

// ImageName makes the name of an Image of its reference, a DNS label: what may not
// be in one becomes a dash; a long one ends in a part of its hash.
func ImageName(ref string) string {
	ref = PlainReference(ref)
	var b strings.Builder
	for _, r := range strings.ToLower(ref) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && b.String()[b.Len()-1] != '-':
			b.WriteByte('-')
		}
	}
	s := strings.Trim(b.String(), "-")
	if len(s) > 0 && len(s) <= 63 {
		return s
	}
	sum := sha256.Sum256([]byte(ref))
	return strings.Trim(strings.Trim(s[:min(len(s), 52)], "-")+"-"+hex.EncodeToString(sum[:5]), "-")
}

func imageDefinition() *Definition {
	return &Definition{
		Kind: KindImage, Plural: "images", Aliases: []string{"img"}, Tenanted: true,
		Doc: "An OCI image a tenant knows by name, pinned by digest.",
		New: func() Object { return &Image{Head: Head{K: KindImage}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "REFERENCE", Value: func(o Object, _ time.Time) string { return o.(*Image).Spec.Reference }},
			{Name: "DIGEST", Value: func(o Object, _ time.Time) string { return dash(shortDigest(o.(*Image).Status.Digest)) }},
			{Name: "SIZE", Value: func(o Object, _ time.Time) string { return HumanQuantity(Memory, o.(*Image).Status.Size) }},
			{Name: "LAYERS", Wide: true, Value: func(o Object, _ time.Time) string { return fmt.Sprint(o.(*Image).Status.Layers) }},
			{Name: "SHARED", Wide: true, Value: func(o Object, _ time.Time) string { return fmt.Sprint(o.(*Image).Spec.Shared) }},
			{Name: "NODES", Wide: true, Value: func(o Object, _ time.Time) string { return dash(strings.Join(o.(*Image).Status.Nodes, ",")) }},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{"spec.reference": func(o Object) string { return o.(*Image).Spec.Reference }},
	}
}

func shortDigest(d string) string {
	d = strings.TrimPrefix(d, "sha256:")
	return d[:min(len(d), 12)]
}
