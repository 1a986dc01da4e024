package explain

import (
	"strings"
	"testing"

	"atoll/api"
)

func TestEveryFieldIsDocumented(t *testing.T) {
	var walk func(d Field)
	walk = func(d Field) {
		if d.Doc == "" && d.Path != "" && strings.Contains(d.Path, ".") && !strings.HasSuffix(d.Path, ".metadata") &&
			!strings.HasSuffix(d.Path, ".spec") && !strings.HasSuffix(d.Path, ".status") {
			t.Errorf("%s has no doc tag", d.Path)
		}
		for _, c := range d.Children {
			walk(c)
		}
	}
	for _, def := range api.Definitions() {
		d, err := Of(def.Singular())
		if err != nil {
			t.Fatal(err)
		}
		walk(*d)
		if def.Doc == "" || len(def.Columns) == 0 || def.New().ObjectKind() != def.Kind {
			t.Errorf("%s: incomplete definition", def.Kind)
		}
	}
}
