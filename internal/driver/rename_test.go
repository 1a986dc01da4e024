package driver_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"atoll/internal/driver"
)

func TestRenameRecords(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a": `{"id":"a","ref":{"kind":"Instance","tenant":"acme","name":"x"},"later":{"n":12345678901234567890}}`,
		"b": `{"id":"b","ref":{"kind":"Instance","tenant":"demo","name":"x"}}`,
		"c": `{"id":`, "d": `null`, "e": `{"ref":7}`,
	} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "record.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := driver.RenameRecords(filepath.Join(dir, "*", "record.json"), map[string]string{"acme": "east/acme"}); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name, "record.json"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got := read("a"); !strings.Contains(got, `"tenant":"east/acme"`) || !strings.Contains(got, "12345678901234567890") || !json.Valid([]byte(got)) {
		t.Error(got)
	}
	if !strings.Contains(read("b"), `"demo"`) || read("c") != `{"id":` || read("d") != "null" || read("e") != `{"ref":7}` {
		t.Error("what is not about it was changed")
	}
	if files, err := filepath.Glob(filepath.Join(dir, "*", "*.tmp")); err != nil || len(files) > 0 {
		t.Error(files, err)
	}
}
