package fence

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"atoll/internal/errs"
	"atoll/internal/sys/cgroup"
)

// The words between a daemon and its watchdog. A frame is "AW", the version, the kind, the
// length of what follows (32 bits, little endian) and that. Every question gets one answer,
// in order. A later version must keep the head, set and end, because the watchdog may
// be older or newer than the daemon that finds it.
const (
	version  = 1
	headSize = 8
	// maxBody bounds a frame: some thousand guarded instances.
	maxBody = 1 << 20
)

type kind byte

const (
	askSet     kind = 1 // the new deadline: 8 bytes, nanoseconds since boot
	askReplace kind = 2 // all that is guarded from now on: a list
	askStatus  kind = 3
	askEnd     kind = 4 // end, when nothing is guarded

	sayState   kind = 64 // done; how things stand
	sayRefused kind = 65 // not done, and why, as text
)

// Bounds of the list.
const (
	maxItems  = 4096
	maxID     = 64
	maxGroups = 8
	maxPath   = 511
	maxText   = 512
)

// Item is one thing that must not run past the deadline: all processes in its resource groups.
type Item struct {
	ID     string   `json:"id"`
	Groups []string `json:"groups"`
}

// State is how a watchdog stands.
type State struct {
	Pid      uint32
	Deadline time.Duration // since boot; 0: none was set
	Guarded  uint32        // how many items
	Fenced   uint64        // how many it has stopped in its life
}

// check says what is wrong with an item; the watchdog looks, too, as it must not kill
// what is not below its root.
func (i Item) check(root string) error {
	var f []errs.Field
	if i.ID == "" || len(i.ID) > maxID {
		f = append(f, errs.Field{Field: "id", Value: clip(i.ID), Rule: fmt.Sprintf("must have 1 to %d characters", maxID), Example: "x1f3"})
	}
	if len(i.Groups) == 0 || len(i.Groups) > maxGroups {
		f = append(f, errs.Field{Field: "groups", Value: fmt.Sprint(len(i.Groups)), Rule: fmt.Sprintf("must be 1 to %d resource groups", maxGroups), Example: root + "/acme.t/x1f3"})
	}
	for _, g := range i.Groups {
		if !cgroup.Valid(g) || len(g) > maxPath || len(g) <= len(root)+1 || g[:len(root)+1] != root+"/" {
			f = append(f, errs.Field{Field: "groups", Value: clip(g), Rule: "must be a clean path below " + root, Example: root + "/acme.t/x1f3"})
		}
	}
	return errs.InvalidFields("guard", f)
}

func clip(s string) string { return s[:min(len(s), 80)] }

// writeFrame sends a frame in one write.
func writeFrame(w io.Writer, k kind, body []byte) error {
	b := make([]byte, headSize, headSize+len(body))
	b[0], b[1], b[2], b[3] = 'A', 'W', version, byte(k)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(body)))
	_, err := w.Write(append(b, body...))
	return err
}

// readFrame reads one frame; io.EOF when the other side ended between two.
func readFrame(r io.Reader) (kind, []byte, error) {
	var h [headSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	if h[0] != 'A' || h[1] != 'W' {
		return 0, nil, errs.New(errs.Invalid, "this is no watchdog's frame")
	}
	if h[2] != version {
		return 0, nil, errs.New(errs.Unsupported, "the other side speaks version %d of the watchdog's words, this side version %d", h[2], version)
	}
	n := binary.LittleEndian.Uint32(h[4:])
	if n > maxBody {
		return 0, nil, errs.New(errs.Invalid, "a frame of %d bytes is longer than %d", n, maxBody)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, fmt.Errorf("read a frame: %w", err)
	}
	return kind(h[3]), body, nil
}

func encodeTime(d time.Duration) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(d)) }

func decodeTime(b []byte) (time.Duration, error) {
	if len(b) != 8 {
		return 0, errs.New(errs.Invalid, "a deadline has 8 bytes, not %d", len(b))
	}
	d := time.Duration(binary.LittleEndian.Uint64(b))
	if d <= 0 {
		return 0, errs.New(errs.Invalid, "a deadline is after the host's start")
	}
	return d, nil
}

func encodeItems(items []Item) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(items)))
	for _, i := range items {
		b = append(append(b, byte(len(i.ID))), i.ID...)
		b = append(b, byte(len(i.Groups)))
		for _, g := range i.Groups {
			b = binary.LittleEndian.AppendUint16(b, uint16(len(g)))
			b = append(b, g...)
		}
	}
	return b
}

// decodeItems reads a list and checks every item.
func decodeItems(b []byte, root string) ([]Item, error) {
	d := decoder{b: b}
	n := d.number(4)
	if n > maxItems {
		return nil, errs.New(errs.Invalid, "%d guarded instances are more than %d", n, maxItems)
	}
	var out []Item // not made for n: what a list claims costs nothing
	for range n {
		i := Item{ID: d.text(1)}
		for range d.number(1) {
			if d.short {
				break
			}
			i.Groups = append(i.Groups, d.text(2))
		}
		if d.short {
			break
		}
		if err := i.check(root); err != nil {
			return nil, err
		}
		out = append(out, i)
	}
	if d.short || len(d.b) > 0 {
		return nil, errs.New(errs.Invalid, "the list of guarded instances is cut off or too long")
	}
	return out, nil
}

func (s State) encode() []byte {
	b := binary.LittleEndian.AppendUint32(nil, s.Pid)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.Deadline))
	b = binary.LittleEndian.AppendUint32(b, s.Guarded)
	return binary.LittleEndian.AppendUint64(b, s.Fenced)
}

func decodeState(b []byte) (State, error) {
	d := decoder{b: b}
	s := State{Pid: uint32(d.number(4)), Deadline: time.Duration(d.number(8)), Guarded: uint32(d.number(4)), Fenced: d.number(8)}
	if d.short || len(d.b) > 0 {
		return State{}, errs.New(errs.Invalid, "the watchdog's state is not %d bytes long", 24)
	}
	return s, nil
}

// decoder takes numbers and texts off the front; short stays set when there was too little.
type decoder struct {
	b     []byte
	short bool
}

func (d *decoder) take(n uint64) []byte {
	if d.short || uint64(len(d.b)) < n {
		d.short = true
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

// number reads size bytes, little endian.
func (d *decoder) number(size uint64) uint64 {
	var full [8]byte
	copy(full[:], d.take(size))
	return binary.LittleEndian.Uint64(full[:])
}

// text reads a text behind its length of size bytes.
func (d *decoder) text(size uint64) string { return string(d.take(d.number(size))) }
