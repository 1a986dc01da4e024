package parse

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/errs"
)

// Doc is one object of a file, and where it was.
type Doc struct {
	Object api.Object
	Source string // file, and number of the document when there are several
}

const (
	MaxFile = 4 << 20
	maxDocs = 5000
)

// Docs reads every object of files, directories and "-", which is in. Objects
// without a tenant get the one meant, which is asked for only then. What creates comes before what uses it: tenants first.
func Docs(in io.Reader, tenant func() (string, error), paths []string, recursive bool) ([]Doc, error) {
	var docs []Doc
	for _, p := range paths {
		files := []string{p}
		if st, err := os.Stat(p); p != "-" && err == nil && st.IsDir() {
			if files, err = filesIn(p, recursive); err != nil {
				return nil, err
			}
		}
		for _, f := range files {
			more, err := docsIn(in, f)
			if err != nil {
				return nil, err
			}
			docs = append(docs, more...)
		}
	}
	if len(docs) == 0 {
		return nil, errs.New(errs.Invalid, "%s holds no objects", strings.Join(paths, ", ")).WithHint("objects are written in .yaml, .yml or .json files; -R looks into directories inside")
	}
	if len(docs) > maxDocs {
		return nil, errs.New(errs.Invalid, "%d objects are more than %d at once", len(docs), maxDocs)
	}
	seen := map[api.Ref]string{}
	for _, d := range docs {
		def, _ := api.Lookup(string(d.Object.ObjectKind()))
		m := d.Object.Metadata()
		if def.Tenanted && m.Tenant == "" {
			t, err := tenant()
			if err != nil {
				return nil, err
			}
			m.Tenant = t
		}
		r := api.RefOf(d.Object)
		if other, twice := seen[r]; twice {
			return nil, errs.New(errs.Invalid, "%s is in %s and in %s", r, other, d.Source)
		}
		seen[r] = d.Source
	}
	slices.SortStableFunc(docs, func(a, b Doc) int { return Rank(a.Object) - Rank(b.Object) })
	return docs, nil
}

// Rank orders kinds by who needs whom; nested tenants come after their parents.
func Rank(o api.Object) int {
	order := []api.Kind{api.KindTenant, api.KindUser, api.KindRole, api.KindRoleBinding, api.KindToken, api.KindPriorityClass, api.KindNode, api.KindImage}
	i := slices.Index(order, o.ObjectKind())
	if i < 0 {
		i = len(order)
	}
	return i*10 + strings.Count(o.Metadata().Name, "/")
}

func filesIn(dir string, recursive bool) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && p != dir && (!recursive || strings.HasPrefix(e.Name(), ".")):
			return filepath.SkipDir
		case e.IsDir():
			return nil
		}
		if ext := strings.ToLower(filepath.Ext(p)); ext == ".yaml" || ext == ".yml" || ext == ".json" {
			out = append(out, p)
		}
		return nil
	})
	if err != nil {
		return nil, errs.New(errs.Invalid, "read %s: %w", dir, err)
	}
	return out, nil // WalkDir goes in the order of names
}

func docsIn(in io.Reader, path string) ([]Doc, error) {
	var b []byte
	var err error
	if path == "-" {
		path = "standard input"
		b, err = ReadAll(in, path, MaxFile)
	} else {
		b, err = ReadFile(path, MaxFile)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "%s is not there", path)
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "read %s: %w", path, err)
	}
	return parseDocs(path, b)
}

// parseDocs reads YAML documents or JSON, lists among them.
func parseDocs(path string, b []byte) ([]Doc, error) {
	parts := splitYAML(b)
	var docs []Doc
	var problems []error
	for i, part := range parts {
		source := path
		if len(parts) > 1 {
			source = fmt.Sprintf("%s, document %d", path, i+1)
		}
		raw, err := yaml.YAMLToJSONStrict(part.text)
		if err != nil {
			problems = append(problems, errs.New(errs.Invalid, "%s: %s", source, yamlError(err, part.line)))
			continue
		}
		if string(raw) == "null" {
			continue // an empty document
		}
		more, err := decodeDoc(source, raw)
		if err != nil {
			problems = append(problems, err)
		}
		docs = append(docs, more...)
	}
	return docs, JoinInvalid(problems)
}

// decodeDoc reads one object, or the items of a List.
func decodeDoc(source string, raw []byte) ([]Doc, error) {
	var l struct {
		Kind  string            `json:"kind"`
		Items []json.RawMessage `json:"items"`
	}
	if json.Unmarshal(raw, &l) == nil && strings.HasSuffix(l.Kind, "List") {
		var docs []Doc
		for i, item := range l.Items {
			more, err := decodeDoc(fmt.Sprintf("%s, item %d", source, i+1), item)
			if err != nil {
				return nil, err
			}
			docs = append(docs, more...)
		}
		return docs, nil
	}
	o, err := api.DecodeStrict(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", source, err)
	}
	return []Doc{{Object: o, Source: source}}, nil
}

// JoinInvalid makes several problems one error, each on a line.
func JoinInvalid(list []error) error {
	switch len(list) {
	case 0:
		return nil
	case 1:
		return list[0]
	}
	t := &render.Error{Err: errs.New(errs.Invalid, "%s; nothing was changed", render.Plural(len(list), "problem"))}
	for _, e := range list {
		t.Details = append(t.Details, e.Error())
	}
	return t
}

// yamlError counts lines from the beginning of the file, not of the document.
func yamlError(err error, before int) string {
	text := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "error converting YAML to JSON: "), "yaml: ")
	return shiftLine(text, func(n int) int { return n + before })
}

// shiftLine changes the number of the first "line N".
func shiftLine(text string, fn func(int) int) string {
	head, rest, ok := strings.Cut(text, "line ")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if !ok || end < 1 {
		return text
	}
	n, err := strconv.Atoi(rest[:end])
	if err != nil {
		return text
	}
	return head + "line " + strconv.Itoa(fn(n)) + rest[end:]
}

// part is one document of a file, and how many lines come before it.
type part struct {
	text []byte
	line int
}

// splitYAML cuts at lines that are "---", which ends a document wherever it stands.
func splitYAML(b []byte) []part {
	var out []part
	start := 0
	flush := func(end int) {
		if len(bytes.TrimSpace(b[start:end])) > 0 {
			out = append(out, part{b[start:end], bytes.Count(b[:start], []byte("\n"))})
		}
	}
	for i := 0; i < len(b); {
		end := bytes.IndexByte(b[i:], '\n')
		next := len(b)
		if end >= 0 {
			next = i + end + 1
		}
		line := bytes.TrimRight(b[i:next], " \t\r\n")
		if bytes.Equal(line, []byte("---")) || bytes.HasPrefix(line, []byte("--- ")) {
			flush(i)
			start = i + 3 // what follows on the line belongs to the next document
		}
		i = next
	}
	flush(len(b))
	return out
}
