package api

import (
	"fmt"
	"strings"
	"time"

	"atoll/internal/errs"
)

// KindImage is an OCI image the pool knows by name.
const KindImage Kind = "Image"

// Image names an OCI image of a tenant and pins it by digest. Its content lives
// on the nodes; a node fetches what an instance placed on it needs.
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
		f = append(f, errs.Field{Field: "spec.reference", Value: clip(i.Spec.Reference), Rule: "must be an image reference", Example: "busybox"})
	}
	return f
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
