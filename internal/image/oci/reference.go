// Package oci is the words of images: references, digests, descriptors, manifests,
// configs, platforms, and the limits on all of these.
//
// It starts no goroutine and does no I/O. What it decodes is hostile: it must never
// accept a digest, a size or a count it has not checked.
package oci

import (
	"regexp"
	"strings"

	"atoll/internal/errs"
)

// Reference is a parsed image reference.
type Reference struct {
	Host   string // registry, such as docker.io or 127.0.0.1:5000
	Repo   string // library/busybox
	Tag    string // "" when only a digest was given
	Digest string // sha256:…, or ""
}

const (
	DefaultHost = "docker.io"
	defaultTag  = "latest"
	maxRef      = 512
)

var (
	// grammar of the OCI distribution specification
	hostRE   = regexp.MustCompile(`^(?:\[[0-9a-fA-F:]+\]|[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*)(?::[0-9]{1,5})?$`)
	repoRE   = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagRE    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
	digestRE = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// Parse reads what people type: busybox, debian:12, team/app,
// registry.lan:5000/team/app:1@sha256:…; the first part is a registry when it has
// a dot or a port or is localhost, otherwise docker.io is meant.
func Parse(ref string) (Reference, error) {
	bad := func(field, value, rule, example string) (Reference, error) {
		return Reference{}, errs.InvalidFields("image reference", []errs.Field{{Field: field, Value: Clip(value), Rule: rule, Example: example}})
	}
	if ref == "" || len(ref) > maxRef || strings.ContainsAny(ref, " \t\r\n\x00") {
		return bad("reference", ref, "must be 1 to 512 characters without spaces", "debian:12")
	}
	if strings.Contains(ref, "://") {
		return bad("reference", ref, "must not start with a scheme", ref[strings.Index(ref, "://")+3:])
	}
	var r Reference
	rest, digest, pinned := strings.Cut(ref, "@")
	if pinned {
		if !IsDigest(digest) {
			return bad("digest", digest, "must be sha256: and 64 hex digits in lower case", "sha256:"+strings.Repeat("0123456789abcdef", 4))
		}
		r.Digest = digest
	}
	r.Host = DefaultHost
	if first, more, ok := strings.Cut(rest, "/"); ok && looksLikeHost(first) {
		if !hostRE.MatchString(first) {
			return bad("registry", first, "must be a host name or address, with an optional port", "registry.example.com:5000")
		}
		r.Host, rest = strings.ToLower(first), more
	}
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		r.Tag, rest = rest[i+1:], rest[:i]
		if !tagRE.MatchString(r.Tag) {
			return bad("tag", r.Tag, "must be 1 to 128 letters, digits, '.', '_' or '-', not starting with '.' or '-'", "1.4")
		}
	} else if !pinned {
		r.Tag = defaultTag
	}
	if r.Host == "index.docker.io" || r.Host == "registry-1.docker.io" {
		r.Host = DefaultHost
	}
	if !repoRE.MatchString(rest) || len(rest) > 255 {
		return bad("repository", rest, "must be lower-case letters and digits, separated by '.', '_', '-' or '/'", "team/app")
	}
	if r.Host == DefaultHost && !strings.Contains(rest, "/") {
		rest = "library/" + rest
	}
	r.Repo = rest
	return r, nil
}

// String is the full form; parsing it gives the same reference.
func (r Reference) String() string { return r.Name() + r.suffix() }

// Name is host and repository.
func (r Reference) Name() string { return r.Host + "/" + r.Repo }

// Short is the form people type.
func (r Reference) Short() string {
	n := r.Name()
	if first, _, _ := strings.Cut(r.Repo, "/"); r.Host == DefaultHost && !looksLikeHost(first) {
		n = r.Repo
		if rest, ok := strings.CutPrefix(n, "library/"); ok && !strings.Contains(rest, "/") {
			n = rest
		}
	}
	return n + r.suffix()
}

func (r Reference) suffix() string {
	s := ""
	if r.Tag != "" {
		s = ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

func looksLikeHost(first string) bool {
	return strings.ContainsAny(first, ".:") || first == "localhost"
}

// Clip keeps messages short.
func Clip(s string) string {
	if len(s) > 80 {
		return s[:77] + "…"
	}
	return s
}

// Short is the first twelve digits of a digest.
func Short(d string) string {
	d = strings.TrimPrefix(d, "sha256:")
	return d[:min(len(d), 12)]
}
