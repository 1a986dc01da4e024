package setup

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"atoll/internal/cli/verb"
)

// The daemon's flags and these are two lists of the same; what is given must arrive.
func TestSimFlagsArrive(t *testing.T) {
	for _, d := range Sim().Sub {
		fs := pflag.NewFlagSet(d.Use, pflag.ContinueOnError)
		if d.Flags != nil {
			d.Flags(fs)
		}
		fs.Bool("verbose", false, "of every verb")
		args := []string{"--verbose"}
		fs.VisitAll(func(f *pflag.Flag) {
			if f.Name != "verbose" {
				args = append(args, "--"+f.Name+"="+f.DefValue)
			}
		})
		if err := fs.Parse(append(args, "a.yaml")); err != nil {
			t.Fatal(err)
		}
		c := &verb.Call{Flags: fs, Args: fs.Args()}
		got := strings.Join(simWords(c), " ")
		if strings.Contains(got, "verbose") || !strings.HasSuffix(got, "a.yaml") || strings.Count(got, "--") != len(args)-1 || strings.Contains(got, "--output") {
			t.Errorf("%s: %s", d.Use, got)
		}
	}
}
