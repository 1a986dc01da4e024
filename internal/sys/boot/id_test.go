package boot

import (
	"os"
	"path/filepath"
	"testing"
)

func TestID(t *testing.T) {
	a, err := ID()
	if err != nil || len(a) != 36 {
		t.Fatal(a, err)
	}
	if b, err := ID(); err != nil || a != b {
		t.Error(a, b, err)
	}
}

func TestHardware(t *testing.T) {
	dir := t.TempDir()
	if at := hardware(dir); !at.IsZero() {
		t.Error(at)
	}
	for name, content := range map[string]string{"rtc0": "none\n", "rtc1": "1700000000\n"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "since_epoch"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if at := hardware(dir); at.Unix() != 1700000000 {
		t.Error(at)
	}
}
