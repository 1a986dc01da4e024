package term

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Bar shows how much of a known number of things is done: a line that is drawn again on
// a terminal, nothing elsewhere. Use it from one goroutine.
type Bar struct {
	io    Streams
	quiet bool
	drawn bool
}

// Bar shows nothing when quiet.
func (s Streams) Bar(quiet bool) *Bar { return &Bar{io: s, quiet: quiet} }

const barCells = 24

// Show draws the bar with a few words about what is happening.
func (b *Bar) Show(done, total int, text string) {
	if b.quiet || !b.io.Term.ErrIs() {
		return
	}
	full := barCells
	if total > 0 {
		full = barCells * min(max(done, 0), total) / total
	}
	line := fmt.Sprintf(" %s%s  %d/%d  %s", strings.Repeat("█", full), strings.Repeat("░", barCells-full), done, total, text)
	if w := int(b.io.Term.Size().Cols); w > 1 && utf8.RuneCountInString(line) >= w { // a second line could not be drawn over
		line = string([]rune(line)[:w-1])
	}
	fmt.Fprintf(b.io.Err, "\r\x1b[K%s", line)
	b.drawn = true
}

// Line writes a line that stays, above the bar.
func (b *Bar) Line(format string, args ...any) {
	if b.quiet {
		return
	}
	if b.drawn {
		fmt.Fprint(b.io.Err, "\r\x1b[K")
		b.drawn = false
	}
	b.io.Note(format, args...)
}

// Moving reports whether the bar is seen, so that what it says need not be said in lines.
func (b *Bar) Moving() bool { return !b.quiet && b.io.Term.ErrIs() }

// End leaves the bar as it is and begins a new line. It may be called again.
func (b *Bar) End() {
	if b.drawn {
		fmt.Fprintln(b.io.Err)
		b.drawn = false
	}
}
