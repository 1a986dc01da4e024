package image

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
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

var accepted = strings.Join([]string{v1.MediaTypeImageManifest, v1.MediaTypeImageIndex, dockerManifest, dockerIndex}, ", ")

// descriptor names a blob.
type descriptor struct {
	MediaType string
	Digest    string
	Size      int64
	URLs      []string
}

// foreign tells whether a layer may not be given on to others.
func (d descriptor) foreign() bool {
	return strings.Contains(d.MediaType, "nondistributable") || strings.Contains(d.MediaType, ".foreign.")
}

// document is a decoded manifest or index.
type document struct {
	mediaType string
	index     bool
	manifests []platformed // index
	config    descriptor   // manifest
	layers    []descriptor // manifest
}

type platformed struct {
	descriptor
	platform platform
	refName  string // annotation of an image layout
}

// decodeManifest reads a manifest or index. mediaType is what came with it, "" when nothing did.
func decodeManifest(raw []byte, mediaType string, lim Limits) (document, error) {
	var w struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Config        *v1.Descriptor  `json:"config"`
		Layers        []v1.Descriptor `json:"layers"`
		Manifests     []v1.Descriptor `json:"manifests"`
		FSLayers      json.RawMessage `json:"fsLayers"`
		History       json.RawMessage `json:"history"`
	}
	bad := func(format string, args ...any) (document, error) {
		return document{}, errs.New(errs.Invalid, "image manifest: "+format, args...)
	}
	if len(raw) > maxManifest {
		return bad("%d bytes are more than %d", len(raw), maxManifest)
	}
	if err := json.Unmarshal(raw, &w); err != nil {
		return bad("not valid JSON: %w", err)
	}
	mediaType, _, _ = strings.Cut(mediaType, ";")
	mediaType = strings.TrimSpace(mediaType)
	if w.SchemaVersion == 1 || strings.HasPrefix(mediaType, "application/vnd.docker.distribution.manifest.v1+") || w.FSLayers != nil {
		return document{}, errs.New(errs.Unsupported, "image manifest: schema version 1, which is obsolete and not verifiable").
			WithHint("push the image again with a current tool, for example: skopeo copy --format oci")
	}
	if w.SchemaVersion != 2 {
		return bad("schemaVersion is %d, must be 2", w.SchemaVersion)
	}
	if w.MediaType == "" || mediaType != "" && known(mediaType) && mediaType != w.MediaType {
		if w.MediaType != "" {
			return bad("it says it is %q, but came as %q", clip(w.MediaType), clip(mediaType))
		}
		w.MediaType = mediaType
	}
	if w.Manifests != nil && (w.Layers != nil || w.Config != nil) {
		return bad("it is both an index and a manifest")
	}
	doc := document{mediaType: w.MediaType, index: w.Manifests != nil}
	if wantsIndex := w.MediaType == v1.MediaTypeImageIndex || w.MediaType == dockerIndex; known(w.MediaType) && wantsIndex != doc.index {
		return bad("its content does not fit %q", w.MediaType)
	}
	if doc.mediaType == "" || !known(doc.mediaType) {
		doc.mediaType = v1.MediaTypeImageManifest
		if doc.index {
			doc.mediaType = v1.MediaTypeImageIndex
		}
	}
	if doc.index {
		return doc, doc.fillIndex(w.Manifests)
	}
	if w.Config == nil {
		return bad("no config: it is not an image")
	}
	return doc, doc.fillManifest(*w.Config, w.Layers, lim)
}

func known(mediaType string) bool {
	return mediaType == v1.MediaTypeImageManifest || mediaType == v1.MediaTypeImageIndex || mediaType == dockerManifest || mediaType == dockerIndex
}

func (doc *document) fillIndex(list []v1.Descriptor) error {
	if len(list) > 1000 {
		return errs.New(errs.Invalid, "image index: %d manifests are more than 1000", len(list))
	}
	for i, m := range list {
		d, err := describe(m, fmt.Sprintf("manifests[%d]", i))
		if err != nil {
			return err
		}
		if d.Size > maxManifest {
			return errs.New(errs.Invalid, "image index: manifests[%d] has %d bytes, more than %d", i, d.Size, maxManifest)
		}
		p := platformed{descriptor: d, refName: m.Annotations[v1.AnnotationRefName]}
		if m.Platform != nil {
			p.platform = platform{m.Platform.OS, m.Platform.Architecture, m.Platform.Variant}
		}
		doc.manifests = append(doc.manifests, p)
	}
	return nil
}

func (doc *document) fillManifest(config v1.Descriptor, layers []v1.Descriptor, lim Limits) (err error) {
	if doc.config, err = describe(config, "config"); err != nil {
		return err
	}
	if mt := doc.config.MediaType; mt != v1.MediaTypeImageConfig && mt != dockerConfig {
		return errs.New(errs.Unsupported, "image manifest: its config is %q: an artifact, not an image that can run", clip(mt))
	}
	if doc.config.Size > maxConfig {
		return errs.New(errs.Invalid, "image manifest: config of %d bytes is more than %d", doc.config.Size, maxConfig)
	}
	if len(layers) > lim.Layers {
		return errs.New(errs.Invalid, "image manifest: %d layers are more than %d", len(layers), lim.Layers)
	}
	total := doc.config.Size
	for i, l := range layers {
		d, err := describe(l, fmt.Sprintf("layers[%d]", i))
		if err != nil {
			return err
		}
		if total += d.Size; total > lim.Image || total < 0 {
			return errs.New(errs.Invalid, "image manifest: its blobs are larger than the limit of %d bytes", lim.Image)
		}
		doc.layers = append(doc.layers, d)
	}
	return nil
}

func describe(d v1.Descriptor, where string) (descriptor, error) {
	if !digestRE.MatchString(string(d.Digest)) {
		return descriptor{}, errs.New(errs.Invalid, "image manifest: %s.digest %q is not sha256: and 64 hex digits", where, clip(string(d.Digest)))
	}
	if d.Size < 0 || d.Size > math.MaxInt64/4 {
		return descriptor{}, errs.New(errs.Invalid, "image manifest: %s.size %d is impossible", where, d.Size)
	}
	if len(d.URLs) > 10 {
		return descriptor{}, errs.New(errs.Invalid, "image manifest: %s has more than 10 urls", where)
	}
	return descriptor{d.MediaType, string(d.Digest), d.Size, d.URLs}, nil
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

// imageConfig is a decoded config blob.
type imageConfig struct {
	Config
	platform platform
	diffIDs  []string
	created  string // RFC 3339, or ""
}

func decodeConfig(raw []byte) (imageConfig, error) {
	var c v1.Image
	if len(raw) > maxConfig {
		return imageConfig{}, errs.New(errs.Invalid, "image config: %d bytes are more than %d", len(raw), maxConfig)
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return imageConfig{}, errs.New(errs.Invalid, "image config: not valid: %w", err)
	}
	out := imageConfig{platform: platform{c.OS, c.Architecture, c.Variant}, Config: Config{
		Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, Env: c.Config.Env, WorkingDir: c.Config.WorkingDir, User: c.Config.User,
		StopSignal: c.Config.StopSignal, Labels: c.Config.Labels, Volumes: keys(c.Config.Volumes), ExposedPorts: keys(c.Config.ExposedPorts)}}
	if c.Created != nil {
		out.created = c.Created.UTC().Format("2006-01-02T15:04:05Z")
	}
	for i, d := range c.RootFS.DiffIDs {
		if !digestRE.MatchString(string(d)) {
			return imageConfig{}, errs.New(errs.Invalid, "image config: rootfs.diff_ids[%d] %q is not sha256: and 64 hex digits", i, clip(string(d)))
		}
		out.diffIDs = append(out.diffIDs, string(d))
	}
	for _, list := range [][]string{c.Config.Env, c.Config.Cmd, c.Config.Entrypoint, {c.Config.WorkingDir, c.Config.User, c.Config.StopSignal}, out.Volumes} {
		if slices.ContainsFunc(list, func(s string) bool { return strings.ContainsRune(s, 0) }) {
			return imageConfig{}, errs.New(errs.Invalid, "image config: a value holds a zero byte")
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

// parsedImage is what this package needs to know of an image that is here.
type parsedImage struct {
	doc    document
	config imageConfig
	chains []string // by layer, hex
}

// parseImage puts manifest and config together.
func parseImage(doc document, cfg imageConfig) (parsedImage, error) {
	if len(cfg.diffIDs) != len(doc.layers) {
		return parsedImage{}, errs.New(errs.Invalid, "image: config names %d layers, manifest %d", len(cfg.diffIDs), len(doc.layers))
	}
	return parsedImage{doc: doc, config: cfg, chains: chainIDs(cfg.diffIDs)}, nil
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

// platform is os/arch/variant.
type platform struct{ os, arch, variant string }

func parsePlatform(s string) (platform, error) {
	p := strings.Split(s, "/")
	if len(p) < 2 || len(p) > 3 || slices.Contains(p, "") {
		return platform{}, errs.InvalidFields("image", []errs.Field{{Field: "platform", Value: clip(s), Rule: "must be os/arch or os/arch/variant", Example: "linux/amd64"}})
	}
	out := platform{os: p[0], arch: p[1]}
	if len(p) == 3 {
		out.variant = p[2]
	}
	return out.normal(), nil
}

func (p platform) normal() platform {
	p.os, p.arch, p.variant = strings.ToLower(p.os), strings.ToLower(p.arch), strings.ToLower(p.variant)
	switch p.arch {
	case "x86_64", "x86-64":
		p.arch = "amd64"
	case "aarch64":
		p.arch = "arm64"
	}
	if p.arch == "arm64" && p.variant == "v8" || p.arch == "amd64" && p.variant == "v1" {
		p.variant = ""
	}
	return p
}

func (p platform) String() string {
	s := p.os + "/" + p.arch
	if p.variant != "" {
		s += "/" + p.variant
	}
	return s
}

// rank tells how well an image for have runs where want is asked for; 0: not at all.
func rank(have, want platform) int {
	have, want = have.normal(), want.normal()
	switch {
	case have.os != want.os || have.arch != want.arch:
		return 0
	case have.variant == want.variant:
		return 100
	case want.arch == "arm" && want.variant == "" && have.variant >= "v5" && have.variant <= "v7":
		return 10 + int(have.variant[1]-'0') // the newest of what any of today's machines runs
	case want.variant == "":
		return 0
	case have.variant == "":
		return 50
	case have.variant < want.variant && len(have.variant) == len(want.variant):
		return 10 + int(have.variant[1]-'0') // an older variant runs on a newer machine
	}
	return 0
}

// choose finds the manifest for a platform.
func (doc document) choose(want platform) (platformed, error) {
	best, bestRank := -1, 0
	var offers []string
	for i, m := range doc.manifests {
		if m.platform.os == "" && m.platform.arch == "" && len(doc.manifests) == 1 {
			return m, nil // its config will tell
		}
		if m.platform.os != "" && m.platform.os != "unknown" {
			offers = append(offers, m.platform.String())
		}
		if r := rank(m.platform, want); r > bestRank {
			best, bestRank = i, r
		}
	}
	if best < 0 {
		return platformed{}, errs.New(errs.Unsupported, "image is not made for %s; it is there for: %s", want, strings.Join(offers[:min(len(offers), 12)], ", ")).
			WithHint("choose one of those with --platform if this machine can run it")
	}
	return doc.manifests[best], nil
}
