package api

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"

	"atoll/internal/errs"
	"atoll/internal/release"
)

// How objects are stored is told apart from how they are: a kind has formats, numbered
// from 1. What is stored begins with the number of its format, and with the release
// that is needed to read it; format 1 carries neither. A build reads every format up to
// its newest, and writes the one that the pool's level allows (Pool): a release that all
// hosts have. So what an older host must not see is not there before it cannot come back.

// Format is one step in how objects of a kind are stored: the n-th of a Definition leads
// from format n to n+1. A stored field that is added, renamed or removed is a step.
type Format struct {
	// Release is the level of the pool from which on this format is written.
	Release int
	// Up makes the format before into this one, Down the other way round. Both are pure
	// and change the object in place, as it is in JSON; numbers are json.Numbers. Down
	// after Up must give what there was; what only this format can tell, Down drops.
	Up, Down func(o map[string]any) error
}

// Newest is the newest format this build knows of a kind.
func (d *Definition) Newest() int { return 1 + len(d.Formats) }

// FormatAt is the format that a pool of a level writes.
func (d *Definition) FormatAt(level int) int {
	n := 1
	for i, f := range d.Formats {
		if f.Release <= level {
			n = i + 2
		}
	}
	return n
}

// formatMark begins what is stored in a format above 1. Encoders write it first, so that
// reading the usual format 1 costs nothing.
const formatMark = `{"format":`

const maxFormat = 1 << 20 // also of releases

// EncodeStored writes an object the way a pool of that level stores it.
func EncodeStored(o Object, level int) ([]byte, error) {
	d, ok := Lookup(string(o.ObjectKind()))
	if !ok || len(d.Formats) == 0 {
		return Encode(o)
	}
	return d.encode(o, level)
}

func (d *Definition) encode(o Object, level int) ([]byte, error) {
	b, err := Encode(o)
	if err != nil {
		return nil, err
	}
	want := d.FormatAt(level)
	if want < d.Newest() {
		m, err := object(b)
		if err != nil {
			return nil, err
		}
		for n := d.Newest(); n > want; n-- {
			if err := d.Formats[n-2].Down(m); err != nil {
				return nil, errs.New(errs.Internal, "write %s in format %d: %w", RefOf(o), n-1, err)
			}
		}
		if b, err = json.Marshal(m); err != nil {
			return nil, err
		}
	}
	if want == 1 {
		return b, nil
	}
	head := formatMark + strconv.Itoa(want) + `,"release":` + strconv.Itoa(d.Formats[want-2].Release) + ","
	return append([]byte(head), b[1:]...), nil
}

// DecodeStored reads what a build of this release or an older one stored, and what a
// newer one stored in a format known here.
func DecodeStored(k Kind, data []byte) (Object, error) {
	if !bytes.HasPrefix(data, []byte(formatMark)) {
		if d, ok := Lookup(string(k)); !ok || len(d.Formats) == 0 {
			return DecodeAs(k, data)
		}
	}
	d, ok := Lookup(string(k))
	if !ok {
		return DecodeAs(k, data) // which says so
	}
	return d.decode(data)
}

func (d *Definition) decode(data []byte) (Object, error) {
	n, err := d.formatOf(data)
	if err != nil {
		return nil, err
	}
	if n < d.Newest() {
		m, err := object(data)
		if err != nil {
			return nil, err
		}
		for ; n < d.Newest(); n++ {
			if err := d.Formats[n-1].Up(m); err != nil {
				return nil, errs.New(errs.Invalid, "read %s of format %d: %w", d.Singular(), n, err)
			}
		}
		if data, err = json.Marshal(m); err != nil {
			return nil, errs.New(errs.Invalid, "read %s: %w", d.Singular(), err)
		}
	}
	o := d.New()
	if err := json.Unmarshal(data, o); err != nil {
		return nil, errs.New(errs.Invalid, "decode %s: %w", d.Kind, err)
	}
	if o.ObjectKind() != d.Kind {
		return nil, errs.New(errs.Invalid, "decode: kind is %q, expected %q", clip(string(o.ObjectKind())), d.Kind)
	}
	return o, nil
}

// formatOf reads the number of the format, and refuses one that is not known here.
func (d *Definition) formatOf(data []byte) (int, error) {
	if !bytes.HasPrefix(data, []byte(formatMark)) {
		return 1, nil
	}
	var head struct {
		Format, Release int
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return 0, errs.New(errs.Invalid, "%s: the number of its format cannot be read: %w", d.Singular(), err)
	}
	if head.Format < 1 || head.Format > maxFormat || head.Release < 0 || head.Release > maxFormat {
		return 0, errs.New(errs.Invalid, "%s: %d is no number of a format", d.Singular(), head.Format)
	}
	if head.Format > d.Newest() {
		return 0, errs.New(errs.Unsupported, "%s is stored in format %d; this build (release %d) reads up to %d", d.Singular(), head.Format, release.Number(), d.Newest()).
			WithHint("it needs release %d or newer: %s", head.Release, installNewer)
	}
	return head.Format, nil
}

const installNewer = "install that, or run the version the other hosts run (atoll upgrade tells which)"

// object reads JSON into a map, less the marks of its format.
func object(data []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var m map[string]any
	if err := dec.Decode(&m); err != nil || m == nil {
		return nil, errs.New(errs.Invalid, "what is stored is no object")
	}
	delete(m, "format")
	delete(m, "release")
	return m, nil
}

// ReadableAt says what is wrong with a build of release n working on a pool of a level;
// nil: nothing.
func ReadableAt(n, level int) error {
	n, level = release.Or(n), release.Or(level)
	switch {
	case n < level:
		return errs.New(errs.Unsupported, "the pool is at release %d; this build is release %d, which is too old: it cannot read what is stored", level, n).
			WithHint("it needs release %d or newer: %s", level, installNewer)
	case release.Oldest(n) > level:
		return errs.New(errs.Unsupported, "the pool is at release %d; this build is release %d, which is too new: it works with pools from release %d on", level, n, release.Oldest(n)).
			WithHint("upgrade the pool to release %d first, and finish that: atoll upgrade finalise", level+release.Reach)
	}
	return nil
}

// ValidVersion reports whether s can be the name of a version: it becomes one of a directory.
func ValidVersion(s string) bool {
	if s == "" || len(s) > 64 || s == "current" || s == "record.json" || strings.Contains(s, "..") {
		return false
	}
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("._+-", r)) {
			return false
		}
	}
	return true
}

// versionRule is what ValidVersion wants.
const versionRule = "must be 1 to 64 of letters, digits, . _ + -, starting with a letter or digit"
