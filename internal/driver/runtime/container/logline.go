package container

import (
	"bytes"
	"time"
)

// A log line as conmon writes it: "2026-01-02T03:04:05.000000006+00:00 stdout F text\n". With
// F the text ended with that newline; with P the newline is the log's own and the
// text goes on in the next line of the same stream.

// logLine is one parsed line; Text has its own newline when it ended with one.
type logLine struct {
	at     time.Time
	stderr bool
	text   []byte
}

// parseLine reads one line including its newline; false when it is not one of conmon's.
func parseLine(l []byte) (logLine, bool) {
	stamp, rest, ok := bytes.Cut(l, []byte(" "))
	if !ok || len(stamp) > 40 {
		return logLine{}, false
	}
	stream, rest, ok := bytes.Cut(rest, []byte(" "))
	if !ok || len(rest) < 2 || rest[1] != ' ' || rest[len(rest)-1] != '\n' {
		return logLine{}, false
	}
	var out logLine
	switch string(stream) {
	case "stdout":
	case "stderr":
		out.stderr = true
	default:
		return logLine{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return logLine{}, false
	}
	out.at, out.text = at, rest[2:]
	switch rest[0] {
	case 'F':
	case 'P':
		out.text = out.text[:len(out.text)-1]
	default:
		return logLine{}, false
	}
	return out, true
}
