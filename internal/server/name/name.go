// Package name invents names for objects that were given none.
//
// It starts no goroutine. It must never be relied on for a name to be free: who uses it
// tries again.
package name

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
	"strconv"
)

// Seed makes invented names repeatable: the same Idempotency-Key invents the
// same name, so that a repeated create meets what the first one made.
type Seed struct {
	Key string
	Try int
}

// Invent is an adjective and a noun; with growing tries also a number.
func Invent(rand io.Reader, seed Seed, tenant string) string {
	var b [16]byte
	if seed.Key != "" {
		h := sha256.Sum256([]byte(seed.Key + "\x00" + tenant + "\x00" + strconv.Itoa(seed.Try)))
		copy(b[:], h[:])
	} else if _, err := io.ReadFull(rand, b[:]); err != nil {
		return "instance"
	}
	n := binary.LittleEndian.Uint64(b[:8])
	adj, noun := adjectives(), nouns()
	name := adj[n%uint64(len(adj))] + "-" + noun[(n>>20)%uint64(len(noun))]
	if seed.Try > 2 {
		name += "-" + strconv.FormatUint(binary.LittleEndian.Uint64(b[8:])%10000, 10)
	}
	return name
}

func adjectives() []string {
	return []string{"able", "airy", "amber", "azure", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "coral", "cosy",
		"crisp", "eager", "early", "fair", "fast", "fine", "firm", "fond", "fresh", "gentle", "glad", "golden", "grand", "green", "happy",
		"hardy", "keen", "kind", "light", "lively", "lucid", "lucky", "lunar", "mellow", "merry", "mild", "neat", "nimble", "noble",
		"pale", "plain", "polar", "proud", "quick", "quiet", "rapid", "ready", "royal", "sandy", "sharp", "shiny", "silent", "smart",
		"snowy", "solar", "solid", "sunny", "swift", "tidal", "tidy", "vivid", "warm", "wise", "witty", "young"}
}

func nouns() []string {
	return []string{"anchor", "bass", "bay", "beach", "boat", "bream", "breeze", "buoy", "cape", "carp", "cliff", "clam", "cod", "conch",
		"coral", "cove", "crab", "crane", "current", "delta", "dolphin", "dune", "eel", "fjord", "foam", "gull", "harbor", "heron",
		"herring", "inlet", "island", "kelp", "lagoon", "lobster", "marlin", "mast", "mussel", "oar", "ocean", "orca", "otter", "oyster",
		"palm", "pearl", "pelican", "perch", "pier", "pike", "plankton", "prawn", "puffin", "ray", "reef", "sail", "salmon", "sand",
		"seal", "shark", "shell", "shore", "shrimp", "squid", "starfish", "tern", "tide", "trout", "tuna", "turtle", "walrus", "wave", "whale"}
}
