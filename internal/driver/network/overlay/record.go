package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/driver/network/overlay/bpf"
	"atoll/internal/errs"
	"atoll/internal/sys/nft"
)

// record is what this driver has made of one network. It is written before the kernel is
// changed, and is in the directory that is gone at boot, as all that is: whatever a kill
// leaves half made, its record names.
type record struct {
	Net    driver.Net `json:"net"`
	Index  int        `json:"index"`           // of the switch
	Uplink netip.Addr `json:"uplink,omitzero"` // of the cable to the host
	Door   *nft.Door  `json:"door,omitempty"`  // the way beside that cable
	Wires  []*wire    `json:"wires,omitempty"` //
	// Floating addresses that arrive here; To is the instance.
	Floating []nft.Floating `json:"floating,omitempty"`
}

// wire is an instance's cable.
type wire struct {
	ID     string         `json:"id"`   // of the instance
	Name   string         `json:"name"` // inside
	Ref    api.Ref        `json:"ref"`
	Index  int            `json:"index"`
	MAC    [6]byte        `json:"mac"`
	Addrs  []netip.Prefix `json:"addrs"`
	Ports  []api.Port     `json:"ports,omitempty"`  // those that are published
	NetNS  string         `json:"netns,omitempty"`  // of the instance
	Up     bool           `json:"up,omitempty"`     // was attached
	To     api.Band       `json:"to,omitzero"`      // what comes
	From   api.Band       `json:"from,omitzero"`    // what is sent
	Most   bpf.Limits     `json:"most,omitzero"`    // connections and packets
	Behind []netip.Prefix `json:"behind,omitempty"` // what it is the next hop to, as the wall was told
}

func (w *wire) key() string { return w.ID + " " + w.Name }

// entrances are the published ports of all wires, for the gate.
func (r *record) entrances() []nft.Entrance {
	var out []nft.Entrance
	for _, w := range r.Wires {
		for _, p := range w.Ports {
			proto := uint8(6)
			if p.EffectiveProtocol() == "udp" {
				proto = 17
			}
			for _, a := range w.Addrs {
				out = append(out, nft.Entrance{Proto: proto, Port: p.Publish, To: netip.AddrPortFrom(a.Addr(), p.Port)})
			}
		}
	}
	return out
}

// ways are those ports as the host's bridge is told: to the same port of the cable.
func (r *record) ways() []api.Port {
	var out []api.Port
	for _, w := range r.Wires {
		for _, p := range w.Ports {
			p.Port = p.Publish
			out = append(out, p)
		}
	}
	return out
}

func (d *Driver) dir() string { return filepath.Join(d.run, "net") }
func (d *Driver) nsFile(vni uint32) string {
	return filepath.Join(d.dir(), strconv.FormatUint(uint64(vni), 10))
}
func (d *Driver) recordFile(vni uint32) string { return d.nsFile(vni) + ".json" }

func (d *Driver) save(r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return errs.New(errs.Internal, "record of network %d: %w", r.Net.VNI, err)
	}
	tmp := d.recordFile(r.Net.VNI) + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return errs.New(errs.Unavailable, "record of network %d: %w", r.Net.VNI, err)
	}
	if err := os.Rename(tmp, d.recordFile(r.Net.VNI)); err != nil {
		return errs.New(errs.Unavailable, "record of network %d: %w", r.Net.VNI, err)
	}
	return nil
}

// records reads what earlier lives wrote. A file that cannot be read stands in the way: what
// it names would be lost.
func (d *Driver) records() ([]*record, error) {
	files, err := filepath.Glob(filepath.Join(d.dir(), "*.json"))
	if err != nil {
		return nil, errs.New(errs.Internal, "records of networks: %w", err)
	}
	var out []*record
	for _, f := range files {
		b, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		r := &record{}
		if err == nil {
			err = json.Unmarshal(b, r)
		}
		if err != nil {
			return nil, fmt.Errorf("record %s of a network: %w", f, err)
		}
		if strconv.FormatUint(uint64(r.Net.VNI), 10) != strings.TrimSuffix(filepath.Base(f), ".json") {
			return nil, errs.New(errs.Internal, "record %s is that of network %d", f, r.Net.VNI)
		}
		out = append(out, r)
	}
	return out, nil
}
