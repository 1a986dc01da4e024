package oci

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"atoll/internal/errs"
)

// Media types beside OCI's own.
const (
	DockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// Accepted is what a registry is asked for.
const Accepted = v1.MediaTypeImageManifest + ", " + v1.MediaTypeImageIndex + ", " + DockerManifest + ", " + dockerIndex

// Descriptor names a blob.
type Descriptor struct {
	MediaType string
	Digest    string
	Size      int64
	URLs      []string
}

// Foreign tells whether a layer may not be given on to others.
func (d Descriptor) Foreign() bool {
	return strings.Contains(d.MediaType, "nondistributable") || strings.Contains(d.MediaType, ".foreign.")
}

// Document is a decoded manifest or index.
type Document struct {
	MediaType string
	IsIndex   bool
	Manifests []Entry      // index
	Config    Descriptor   // manifest
	Layers    []Descriptor // manifest
}

// Entry is one image, or index, of an index.
type Entry struct {
	Descriptor
	Platform Platform
	RefName  string // annotation of an image layout
}

// DecodeManifest reads a manifest or index. mediaType is what came with it, "" when nothing did.
func DecodeManifest(raw []byte, mediaType string, lim Limits) (Document, error) {
	var w struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Config        *v1.Descriptor  `json:"config"`
		Layers        []v1.Descriptor `json:"layers"`
		Manifests     []v1.Descriptor `json:"manifests"`
		FSLayers      json.RawMessage `json:"fsLayers"`
		History       json.RawMessage `json:"history"`
	}
	bad := func(format string, args ...any) (Document, error) {
		return Document{}, errs.New(errs.Invalid, "image manifest: "+format, args...)
	}
	if len(raw) > MaxManifest {
		return bad("%d bytes are more than %d", len(raw), MaxManifest)
	}
	if err := json.Unmarshal(raw, &w); err != nil {
		return bad("not valid JSON: %w", err)
	}
	mediaType, _, _ = strings.Cut(mediaType, ";")
	mediaType = strings.TrimSpace(mediaType)
	if w.SchemaVersion == 1 || strings.HasPrefix(mediaType, "application/vnd.docker.distribution.manifest.v1+") || w.FSLayers != nil {
		return Document{}, errs.New(errs.Unsupported, "image manifest: schema version 1, which is obsolete and not verifiable").
			WithHint("push the image again with a current tool, for example: skopeo copy --format oci")
	}
	if w.SchemaVersion != 2 {
		return bad("schemaVersion is %d, must be 2", w.SchemaVersion)
	}
	if w.MediaType == "" || mediaType != "" && known(mediaType) && mediaType != w.MediaType {
		if w.MediaType != "" {
			return bad("it says it is %q, but came as %q", Clip(w.MediaType), Clip(mediaType))
		}
		w.MediaType = mediaType
	}
	if w.Manifests != nil && (w.Layers != nil || w.Config != nil) {
		return bad("it is both an index and a manifest")
	}
	doc := Document{MediaType: w.MediaType, IsIndex: w.Manifests != nil}
	if wantsIndex := w.MediaType == v1.MediaTypeImageIndex || w.MediaType == dockerIndex; known(w.MediaType) && wantsIndex != doc.IsIndex {
		return bad("its content does not fit %q", w.MediaType)
	}
	if doc.MediaType == "" || !known(doc.MediaType) {
		doc.MediaType = v1.MediaTypeImageManifest
		if doc.IsIndex {
			doc.MediaType = v1.MediaTypeImageIndex
		}
	}
	if doc.IsIndex {
		return doc, doc.fillIndex(w.Manifests)
	}
	if w.Config == nil {
		return bad("no config: it is not an image")
	}
	return doc, doc.fillManifest(*w.Config, w.Layers, lim)
}

func known(mediaType string) bool {
	return mediaType == v1.MediaTypeImageManifest || mediaType == v1.MediaTypeImageIndex || mediaType == DockerManifest || mediaType == dockerIndex
}

func (doc *Document) fillIndex(list []v1.Descriptor) error {
	if len(list) > 1000 {
		return errs.New(errs.Invalid, "image index: %d manifests are more than 1000", len(list))
	}
	for i, m := range list {
		d, err := describe(m, fmt.Sprintf("manifests[%d]", i))
		if err != nil {
			return err
		}
		if d.Size > MaxManifest {
			return errs.New(errs.Invalid, "image index: manifests[%d] has %d bytes, more than %d", i, d.Size, MaxManifest)
		}
		p := Entry{Descriptor: d, RefName: m.Annotations[v1.AnnotationRefName]}
		if m.Platform != nil {
			p.Platform = Platform{m.Platform.OS, m.Platform.Architecture, m.Platform.Variant}
		}
		doc.Manifests = append(doc.Manifests, p)
	}
	return nil
}

func (doc *Document) fillManifest(config v1.Descriptor, layers []v1.Descriptor, lim Limits) (err error) {
	if doc.Config, err = describe(config, "config"); err != nil {
		return err
	}
	if mt := doc.Config.MediaType; mt != v1.MediaTypeImageConfig && mt != DockerConfig {
		return errs.New(errs.Unsupported, "image manifest: its config is %q: an artifact, not an image that can run", Clip(mt))
	}
	if doc.Config.Size > MaxConfig {
		return errs.New(errs.Invalid, "image manifest: config of %d bytes is more than %d", doc.Config.Size, MaxConfig)
	}
	if len(layers) > lim.Layers {
		return errs.New(errs.Invalid, "image manifest: %d layers are more than %d", len(layers), lim.Layers)
	}
	total := doc.Config.Size
	for i, l := range layers {
		d, err := describe(l, fmt.Sprintf("layers[%d]", i))
		if err != nil {
			return err
		}
		if total += d.Size; total > lim.Image || total < 0 {
			return errs.New(errs.Invalid, "image manifest: its blobs are larger than the limit of %d bytes", lim.Image)
		}
		doc.Layers = append(doc.Layers, d)
	}
	return nil
}

func describe(d v1.Descriptor, where string) (Descriptor, error) {
	if !IsDigest(string(d.Digest)) {
		return Descriptor{}, errs.New(errs.Invalid, "image manifest: %s.digest %q is not sha256: and 64 hex digits", where, Clip(string(d.Digest)))
	}
	if d.Size < 0 || d.Size > math.MaxInt64/4 {
		return Descriptor{}, errs.New(errs.Invalid, "image manifest: %s.size %d is impossible", where, d.Size)
	}
	if len(d.URLs) > 10 {
		return Descriptor{}, errs.New(errs.Invalid, "image manifest: %s has more than 10 urls", where)
	}
	return Descriptor{d.MediaType, string(d.Digest), d.Size, d.URLs}, nil
}

// Config is how an image says it wants to be run.
type Config struct {
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	Env          []string          `json:"env,omitempty"` // NAME=value
	WorkingDir   string            `json:"workingDir,omitempty"`
	User         string            `json:"user,omitempty"`
	StopSignal   string            `json:"stopSignal,omitempty"`
	Volumes      []string          `json:"volumes,omitempty"`      // sorted
	ExposedPorts []string          `json:"exposedPorts,omitempty"` // sorted, such as 80/tcp
	Labels       map[string]string `json:"labels,omitempty"`
}

// ImageConfig is a decoded config blob.
type ImageConfig struct {
	Config
	Platform Platform
	DiffIDs  []string
	Created  string // RFC 3339, or ""
}

// DecodeConfig reads a config.
func DecodeConfig(raw []byte) (ImageConfig, error) {
	var c v1.Image
	if len(raw) > MaxConfig {
		return ImageConfig{}, errs.New(errs.Invalid, "image config: %d bytes are more than %d", len(raw), MaxConfig)
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return ImageConfig{}, errs.New(errs.Invalid, "image config: not valid: %w", err)
	}
	out := ImageConfig{Platform: Platform{c.OS, c.Architecture, c.Variant}, Config: Config{
		Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, Env: c.Config.Env, WorkingDir: c.Config.WorkingDir, User: c.Config.User,
		StopSignal: c.Config.StopSignal, Labels: c.Config.Labels, Volumes: keys(c.Config.Volumes), ExposedPorts: keys(c.Config.ExposedPorts)}}
	if c.Created != nil {
		out.Created = c.Created.UTC().Format("2006-01-02T15:04:05Z")
	}
	for i, d := range c.RootFS.DiffIDs {
		if !IsDigest(string(d)) {
			return ImageConfig{}, errs.New(errs.Invalid, "image config: rootfs.diff_ids[%d] %q is not sha256: and 64 hex digits", i, Clip(string(d)))
		}
		out.DiffIDs = append(out.DiffIDs, string(d))
	}
	for _, list := range [][]string{c.Config.Env, c.Config.Cmd, c.Config.Entrypoint, {c.Config.WorkingDir, c.Config.User, c.Config.StopSignal}, out.Volumes} {
		if slices.ContainsFunc(list, func(s string) bool { return strings.ContainsRune(s, 0) }) {
			return ImageConfig{}, errs.New(errs.Invalid, "image config: a value holds a zero byte")
		}
	}
	return out, nil
}

func keys(m map[string]struct{}) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

// Image is what this package needs to know of an image that is here.
type Image struct {
	Manifest Document
	Config   ImageConfig
	Chains   []string // by layer, hex
}

// Join puts manifest and config together.
func Join(doc Document, cfg ImageConfig) (Image, error) {
	if len(cfg.DiffIDs) != len(doc.Layers) {
		return Image{}, errs.New(errs.Invalid, "image: config names %d layers, manifest %d", len(cfg.DiffIDs), len(doc.Layers))
	}
	return Image{Manifest: doc, Config: cfg, Chains: chainIDs(cfg.DiffIDs)}, nil
}

// chainIDs names each layer by itself and all below it, as the OCI image
// specification defines it: the same layer over something else is something else,
// because directories it only implies take their owner and mode from below.
func chainIDs(diffIDs []string) []string {
	out := make([]string, len(diffIDs))
	var chain digest.Digest
	for i, d := range diffIDs {
		if i == 0 {
			chain = digest.Digest(d)
		} else {
			chain = digest.FromString(string(chain) + " " + d)
		}
		out[i] = chain.Encoded()
	}
	return out
}

// Platform is os/arch/variant.
type Platform struct{ OS, Arch, Variant string }

// ParsePlatform reads os/arch[/variant].
func ParsePlatform(s string) (Platform, error) {
	p := strings.Split(s, "/")
	if len(p) < 2 || len(p) > 3 || slices.Contains(p, "") {
		return Platform{}, errs.InvalidFields("image", []errs.Field{{Field: "platform", Value: Clip(s), Rule: "must be os/arch or os/arch/variant", Example: "linux/amd64"}})
	}
	out := Platform{OS: p[0], Arch: p[1]}
	if len(p) == 3 {
		out.Variant = p[2]
	}
	return out.normal(), nil
}

func (p Platform) normal() Platform {
	p.OS, p.Arch, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Arch), strings.ToLower(p.Variant)
	switch p.Arch {
	case "x86_64", "x86-64":
		p.Arch = "amd64"
	case "aarch64":
		p.Arch = "arm64"
	}
	if p.Arch == "arm64" && p.Variant == "v8" || p.Arch == "amd64" && p.Variant == "v1" {
		p.Variant = ""
	}
	return p
}

// String is os/arch[/variant].
func (p Platform) String() string {
	s := p.OS + "/" + p.Arch
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// Rank tells how well an image for have runs where want is asked for; 0: not at all.
func Rank(have, want Platform) int {
	have, want = have.normal(), want.normal()
	switch {
	case have.OS != want.OS || have.Arch != want.Arch:
		return 0
	case have.Variant == want.Variant:
		return 100
	case want.Arch == "arm" && want.Variant == "" && have.Variant >= "v5" && have.Variant <= "v7":
		return 10 + int(have.Variant[1]-'0') // the newest of what any of today's machines runs
	case want.Variant == "":
		return 0
	case have.Variant == "":
		return 50
	case have.Variant < want.Variant && len(have.Variant) == len(want.Variant):
		return 10 + int(have.Variant[1]-'0') // an older variant runs on a newer machine
	}
	return 0
}

// Choose finds the manifest for a platform.
func (doc Document) Choose(want Platform) (Entry, error) {
	best, bestRank := -1, 0
	var offers []string
	for i, m := range doc.Manifests {
		if m.Platform.OS == "" && m.Platform.Arch == "" && len(doc.Manifests) == 1 {
			return m, nil // its config will tell
		}
		if m.Platform.OS != "" && m.Platform.OS != "unknown" {
			offers = append(offers, m.Platform.String())
		}
		if r := Rank(m.Platform, want); r > bestRank {
			best, bestRank = i, r
		}
	}
	if best < 0 {
		return Entry{}, errs.New(errs.Unsupported, "image is not made for %s; it is there for: %s", want, strings.Join(offers[:min(len(offers), 12)], ", ")).
			WithHint("choose one of those with --platform if this machine can run it")
	}
	return doc.Manifests[best], nil
}

// Unique drops repeated blobs: the same layer may be in an image twice.
func Unique(list []Descriptor) []Descriptor {
	seen := map[string]bool{}
	var out []Descriptor
	for _, d := range list {
		if !seen[d.Digest] {
			seen[d.Digest] = true
			out = append(out, d)
		}
	}
	return out
}
