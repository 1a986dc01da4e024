package fake

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	"atoll/internal/errs"
)

// play is what a run does, known before it starts: lines at offsets, and
// perhaps an end. The words understood, alone or as `sh -c 'a; b'`:
//
//	echo TEXT [>&2] · sleep SECONDS · exit N · true · false · cat · trap 'exit N' SIG · trap ” SIG
//
// cat copies standard input and ends with it. Any other program runs until it is stopped.
type play struct {
	steps   []step
	lasts   time.Duration // of all steps
	forever bool          // does not end by itself
	stdin   bool          // ends when standard input does
	code    int
	traps   map[string]int // signal -> exit code; -1: ignored
	crash   *crash
}

type crash struct {
	after time.Duration
	code  int
}

type step struct {
	at     time.Duration
	stderr bool
	text   string
}

type line struct {
	at     time.Time
	stderr bool
	text   string
}

var trapRE = regexp.MustCompile(`^trap\s+(?:'([^']*)'|"([^"]*)")\s+([A-Z]+)$`)

func parse(argv []string) (play, error) {
	if len(argv) == 0 {
		return play{}, errs.New(errs.Invalid, "no command: neither the instance nor the image names one").WithHint("give one after the image's name")
	}
	p := play{traps: map[string]int{}}
	script := []string{strings.Join(argv, " ")}
	if len(argv) == 3 && (argv[0] == "sh" || argv[0] == "/bin/sh") && argv[1] == "-c" {
		script = splitScript(argv[2])
	}
	if strings.Contains(argv[0], "no-such") {
		return play{}, errs.New(errs.Invalid, "cannot start %q: no such program in the image", argv[0]).WithHint("check the command; an exit code of 127 means the same")
	}
	for _, s := range script {
		if p.add(strings.TrimSpace(s)) {
			break
		}
	}
	return p, nil
}

// splitScript cuts at ";" outside of quotes.
func splitScript(s string) []string {
	var out []string
	var quote byte
	from := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case c == ';':
			out = append(out, s[from:i])
			from = i + 1
		}
	}
	return append(out, s[from:])
}

// add takes one command and reports whether the play ends with it.
func (p *play) add(cmd string) bool {
	word, rest, _ := strings.Cut(strings.TrimPrefix(cmd, "exec "), " ")
	rest = strings.TrimSpace(rest)
	switch word {
	case "", ":", "true", "wait":
	case "echo":
		text, toErr := strings.CutSuffix(rest, ">&2")
		p.steps = append(p.steps, step{at: p.lasts, stderr: toErr, text: strings.Trim(strings.TrimSpace(text), `'"`) + "\n"})
	case "sleep":
		if n, err := strconv.ParseFloat(rest, 64); err == nil && n >= 0 && n < 1e9 {
			p.lasts += time.Duration(n * float64(time.Second))
			return false
		}
		p.forever = true
	case "exit":
		p.code, _ = strconv.Atoi(rest)
		return true
	case "false":
		p.code = 1
	case "cat":
		p.stdin = true
		return true
	case "trap":
		if m := trapRE.FindStringSubmatch(cmd); m != nil {
			p.traps[m[3]] = -1
			if n, found := strings.CutPrefix(m[1]+m[2], "exit "); found {
				p.traps[m[3]], _ = strconv.Atoi(n)
			}
		}
	default:
		p.forever = true
		return true
	}
	return p.forever
}

func (p *play) endsAt(after time.Duration, code int) { p.crash = &crash{after, code} }

// end tells when and how the run ends; stdin is -1 once standard input was closed.
func (p *play) end(stdin int64) (after time.Duration, code int, ok bool) {
	if p.crash != nil && (p.forever || p.stdin || p.crash.after <= p.lasts) {
		return p.crash.after, p.crash.code, true
	}
	if p.stdin {
		return p.lasts, p.code, stdin < 0
	}
	return p.lasts, p.code, !p.forever
}

// onSignal: a first process without a handler is not ended by a signal, as in a real PID namespace.
func (p *play) onSignal(sig string) (code int, ends bool) {
	sig = strings.TrimPrefix(strings.ToUpper(sig), "SIG")
	if sig == "KILL" || sig == "9" {
		return 137, true
	}
	code, ok := p.traps[sig]
	return code, ok && code >= 0
}

// output is what the current run has written by t.
func (in *instance) output(t time.Time) []line {
	var out []line
	if in.started.IsZero() {
		return nil
	}
	for _, s := range in.play.steps {
		if at := in.started.Add(s.at); !at.After(t) {
			out = append(out, line{at: at, stderr: s.stderr, text: s.text})
		}
	}
	return out
}
