package azurellm

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"atoll/internal/errs"
)

const sample = "TIMESTAMP,ContextTokens,GeneratedTokens\n" +
	"2023-11-16 18:15:46.6805900,800,400\n" +
	"2023-11-16 18:15:50.9951690,80,4\n" +
	"2023-11-16 18:16:09.0000000,0,0\n"

func TestRead(t *testing.T) {
	tr, err := Read(strings.NewReader(sample), Speed{Prefill: 800, Decode: 20})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(tr.Arrivals); n != 3 || tr.Arrivals[0].At != 0 || tr.Arrivals[0].Lasts.D() != 21*time.Second || tr.Arrivals[1].Lasts.D() != 300*time.Millisecond {
		t.Fatalf("%+v", tr.Arrivals)
	}
	// The first is in work at 0, 10 and 20 s; the second came and went between.
	if c := tr.Series[0].Values; len(c) != 3 || c[0] != 1 || c[1] != 1 || c[2] != 1 {
		t.Fatalf("concurrency %v", c)
	}
	if a := tr.Series[1].Values; a[0] != 0.2 || a[2] != 0.1 {
		t.Fatalf("arrivals %v", a)
	}
}

func TestRefused(t *testing.T) {
	for _, bad := range []string{"", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "x,1,2\n", "2023-11-16 18:15:46,1\n", "2023-11-16 18:15:46,-1,2\n",
		"2023-11-16 18:15:46,1,99999999999\n", "0001-01-01 00:00:00,1,1\n9999-01-01 00:00:00,1,1\n"} {
		if _, err := Read(strings.NewReader(bad), Speed{1, 1}); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// ATOLL_DATA names the folder with public data sets, where there is one.
func TestThePublishedFile(t *testing.T) {
	f, err := os.Open(os.Getenv("ATOLL_DATA") + "/azure-llm-2023/AzureLLMInferenceTrace_conv.csv.gz")
	if err != nil {
		t.Skip("the data set is not here: ATOLL_DATA names its folder")
	}
	defer f.Close()
	tr, err := Read(f, Speed{Prefill: 8000, Decode: 40})
	if err != nil {
		t.Fatal(err)
	}
	if len(tr.Arrivals) != 19_366 || tr.Length() < 50*time.Minute {
		t.Fatalf("%d requests over %s", len(tr.Arrivals), tr.Length())
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(sample), 800.0, 20.0)
	f.Fuzz(func(t *testing.T, b []byte, pre, dec float64) {
		tr, err := Read(bytes.NewReader(b), Speed{pre, dec})
		if err == nil && tr.Check() != nil {
			t.Fatal("what was read breaks the rules of traces")
		}
	})
}
