package archive

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"strings"

	"atoll/internal/errs"
	"atoll/internal/image/layer"
	"atoll/internal/image/oci"
)

// Formats of archives.
const (
	Auto   = "auto"
	Rootfs = "rootfs" // a tar of a root directory
	OCI    = "oci"    // a tar of an OCI image layout
	Docker = "docker" // what docker save writes
)

// archived are the names an image archive starts with, by those who write them.
var archived = regexp.MustCompile(`^(oci-layout|index\.json|manifest\.json|repositories|blobs(/sha256(/[0-9a-f]{64})?)?|(sha256:)?[0-9a-f]{64}(\.json|\.tar|\.tar\.gz|/.*)?)$`)

// Detect tells an image archive from a root directory by its first entry, and gives
// the stream from its beginning.
func Detect(r io.Reader) (format string, all io.Reader, err error) {
	var seen bytes.Buffer
	tr := tar.NewReader(io.TeeReader(r, &seen))
	format = Rootfs
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return "", nil, errs.New(errs.Invalid, "the archive is empty")
		}
		if err != nil {
			return "", nil, layer.BadTar(err)
		}
		name := strings.Trim(strings.TrimPrefix(h.Name, "./"), "/")
		if name == "" || name == "." || h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if archived.MatchString(name) {
			format = OCI // or docker; the whole archive tells
		}
		return format, io.MultiReader(&seen, r), nil
	}
}

// Pick chooses one of the images of a layout's index: by name, else the only one, else by platform.
func Pick(doc oci.Document, name string, want oci.Platform) (oci.Entry, error) {
	var names []string
	for _, m := range doc.Manifests {
		if m.RefName != "" && sameName(m.RefName, name) {
			return m, nil
		}
		names = append(names, cmp.Or(m.RefName, m.Digest))
	}
	if len(doc.Manifests) == 1 {
		return doc.Manifests[0], nil
	}
	if m, err := doc.Choose(want); err == nil {
		same := 0
		for _, o := range doc.Manifests {
			if oci.Rank(o.Platform, want) == oci.Rank(m.Platform, want) {
				same++
			}
		}
		if same == 1 {
			return m, nil
		}
	}
	if len(names) == 0 {
		return oci.Entry{}, errs.New(errs.Invalid, "the archive holds no image")
	}
	return oci.Entry{}, errs.New(errs.Invalid, "the archive holds %d images: %s", len(names), strings.Join(names[:min(len(names), 12)], ", ")).
		WithHint("import it under the name of one of them")
}

// sameName compares an archive's name, full or only a tag, with the one that is wanted.
func sameName(in, want string) bool {
	if in == "" || want == "" {
		return false
	}
	w, err := oci.Parse(want)
	if err != nil {
		return false
	}
	if in == w.Tag {
		return true
	}
	r, err := oci.Parse(in)
	return err == nil && r == w
}

// UsableName gives an archive's own name where it is more than a tag.
func UsableName(n string) string {
	if !strings.ContainsAny(n, ":/") {
		return ""
	}
	if r, err := oci.Parse(n); err != nil || r.Digest != "" {
		return ""
	}
	return n
}

// Saved is one entry of docker save's manifest.json.
type Saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// DecodeSaved reads the manifest.json of docker save.
func DecodeSaved(raw []byte, lim oci.Limits) ([]Saved, error) {
	var list []Saved
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, errs.New(errs.Invalid, "manifest.json: not valid: %w", err)
	}
	if len(list) == 0 || len(list) > 1000 {
		return nil, errs.New(errs.Invalid, "manifest.json: %d images, must be 1 to 1000", len(list))
	}
	for i, m := range list {
		if m.Config == "" || len(m.Layers) > lim.Layers || len(m.RepoTags) > 1000 {
			return nil, errs.New(errs.Invalid, "manifest.json: image %d has no config, or more than %d layers or 1000 names", i, lim.Layers)
		}
	}
	return list, nil
}

// PickSaved chooses one of the images: by name, else the only one. It gives the archive's own name of it, too.
func PickSaved(list []Saved, name string) (Saved, string, error) {
	var names []string
	for _, m := range list {
		for _, t := range m.RepoTags {
			if sameName(t, name) {
				return m, t, nil
			}
			names = append(names, oci.Clip(t))
		}
	}
	if len(list) == 1 {
		own := ""
		if len(list[0].RepoTags) > 0 {
			own = UsableName(list[0].RepoTags[0])
		}
		return list[0], own, nil
	}
	return Saved{}, "", errs.New(errs.Invalid, "the archive holds %d images: %s", len(list), strings.Join(names[:min(len(names), 12)], ", ")).
		WithHint("import it under the name of one of them")
}
