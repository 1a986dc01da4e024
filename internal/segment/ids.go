package segment

import "atoll/internal/driver"

// IDs gives out the numbers of sets, lists, rules and prefixes. All compilers of a host
// share one, so that a number means one thing on the host. A number comes again only
// after all others have, some thousand million, and never while it is in use: what
// is still under way in the kernel with an old number is then long gone.
type IDs struct {
	last uint32
	live map[uint32]struct{}
}

// lastID leaves room for what is numbered by an ID and something added: prefixes, by
// driver.FirstPrefix, and those on peered networks, by driver.FirstPeer.
const lastID = 1<<30 - 1 - driver.FirstPrefix

// NewIDs begins at start. A new life of the daemon begins after the numbers that
// the one before may have left in the kernel: at what its Next said, or later.
func NewIDs(start uint32) *IDs {
	return &IDs{last: max(start, 1) - 1, live: map[uint32]struct{}{}}
}

// Next is where a new life may begin.
func (s *IDs) Next() uint32 {
	if s.last >= lastID {
		return 1
	}
	return s.last + 1
}

func (s *IDs) take() uint32 {
	for {
		s.last = s.Next()
		if _, used := s.live[s.last]; !used {
			s.live[s.last] = struct{}{}
			return s.last
		}
	}
}

// Peer gives a number to a set of labels on a peered network. foreign: of another tenant.
func (s *IDs) Peer(foreign bool) uint32 {
	if foreign {
		return driver.FirstForeign + s.take()
	}
	return driver.FirstPeer + s.take()
}

// FreePeer gives back what Peer gave.
func (s *IDs) FreePeer(n uint32) { s.free(n &^ (driver.FirstPeer | driver.FirstForeign)) }

func (s *IDs) free(id uint32) { delete(s.live, id) }
