package api

import (
	"fmt"

	"atoll/internal/errs"
)

// Shaping is how much of the network an instance may use, finer than its limits say. Ingress is what
// comes to the instance, egress what it sends. It may be changed while the instance runs.
type Shaping struct {
	Ingress              *Rate `json:"ingress,omitempty" doc:"of what comes to the instance; what it does not say is as in limits" example:"{limit: 100M}"`
	Egress               *Rate `json:"egress,omitempty" doc:"of what the instance sends; what it does not say is as in limits" example:"{limit: 20M, burst: 256Ki}"`
	ConnectionsPerSecond int64 `json:"connectionsPerSecond,omitempty" doc:"most new connections a second in each direction; only on networks of the tenant" example:"500"`
	PacketsPerSecond     int64 `json:"packetsPerSecond,omitempty" doc:"most packets a second in each direction; only on networks of the tenant" example:"50000"`
}

// Rate is of one direction.
type Rate struct {
	Limit string `json:"limit,omitempty" doc:"most bits per second; default: limits.netBandwidth" example:"100M"`
	Burst string `json:"burst,omitempty" doc:"bytes that may pass at once after a pause; default: what the limit lets pass in 10ms, at least 32Ki" example:"256Ki"`
}

// Band is what one direction of an instance gets of the network.
type Band struct {
	Guarantee int64 // bits per second; 0: none
	Limit     int64 // bits per second; 0: none
	Burst     int64 // bytes; 0: the default
}

// The bounds of limits of the network.
const (
	LeastBandwidth = 64_000  // bits per second: below, a single packet takes longer than a connection waits
	LeastBurst     = 2 << 10 // bytes: a packet, with what goes around it
	MostBurst      = 1 << 30
	MostPerSecond  = 1_000_000_000
)

// Bands are the network's of the instance, to it and from it. They are right where Validate finds nothing.
func (s *InstanceSpec) Bands() (ingress, egress Band) {
	both := Band{Guarantee: s.Requests[NetBandwidth], Limit: s.Limits[NetBandwidth]}
	if s.Shaping == nil {
		return both, both
	}
	return s.Shaping.Ingress.over(both), s.Shaping.Egress.over(both)
}

func (r *Rate) over(b Band) Band {
	if r == nil {
		return b
	}
	if v, err := ParseQuantity(NetBandwidth, r.Limit); err == nil && r.Limit != "" {
		b.Limit = v
	}
	if v, err := ParseQuantity(Disk, r.Burst); err == nil && r.Burst != "" {
		b.Burst = v
	}
	return b
}

// PerSecond is how many new connections and packets a second are let through; 0: any number.
func (s *InstanceSpec) PerSecond() (connections, packets uint32) {
	if s.Shaping == nil {
		return 0, 0
	}
	return uint32(s.Shaping.ConnectionsPerSecond), uint32(s.Shaping.PacketsPerSecond) //nolint:gosec // MostPerSecond
}

// validateShaping checks the network's part of limits, and shaping.
func (s *InstanceSpec) validateShaping() []errs.Field {
	var f []errs.Field
	for field, v := range map[string]Resources{"spec.limits.": s.Limits, "spec.requests.": s.Requests} {
		if b, ok := v[NetBandwidth]; ok && (b < LeastBandwidth && (b != 0 || field == "spec.limits.")) {
			f = append(f, errs.Field{Field: field + string(NetBandwidth), Value: FormatQuantity(NetBandwidth, b), Rule: "must be at least 64k bits per second", Example: "100M"})
		}
	}
	at := s.Network()
	if at == NetworkHost || at == NetworkNone {
		_, limit := s.Limits[NetBandwidth]
		if limit || s.Requests[NetBandwidth] != 0 || s.Shaping != nil {
			f = append(f, errs.Field{Field: "spec.limits.netBandwidth, spec.requests.netBandwidth, spec.shaping", Rule: "need a network of the instance's own, which it does not have on network " + at})
		}
	}
	h := s.Shaping
	if h == nil {
		return f
	}
	for _, d := range []struct {
		field string
		rate  *Rate
	}{{"spec.shaping.ingress", h.Ingress}, {"spec.shaping.egress", h.Egress}} {
		f = append(f, s.validateRate(d.field, d.rate)...)
	}
	for _, c := range []struct {
		field string
		n     int64
	}{{"spec.shaping.connectionsPerSecond", h.ConnectionsPerSecond}, {"spec.shaping.packetsPerSecond", h.PacketsPerSecond}} {
		switch {
		case c.n < 0 || c.n > MostPerSecond:
			f = append(f, errs.Field{Field: c.field, Value: fmt.Sprint(c.n), Rule: fmt.Sprintf("must be 1 to %d", MostPerSecond), Example: "500"})
		case c.n != 0 && !s.OnNetworks() && at == NetworkDefault:
			f = append(f, errs.Field{Field: c.field, Value: fmt.Sprint(c.n), Rule: "needs a network of the tenant: on the host's own bridge packets and connections are not counted", Example: "networks: [{name: main}]"})
		}
	}
	return f
}

func (s *InstanceSpec) validateRate(field string, r *Rate) []errs.Field {
	if r == nil {
		return nil
	}
	var f []errs.Field
	limit, isLimited := s.Limits[NetBandwidth]
	if r.Limit != "" {
		v, err := ParseQuantity(NetBandwidth, r.Limit)
		switch {
		case err != nil || v < LeastBandwidth || v > largestAmount:
			f = append(f, errs.Field{Field: field + ".limit", Value: clip(r.Limit), Rule: "must be bits per second, at least 64k", Example: "100M"})
		case isLimited && v > limit:
			f = append(f, errs.Field{Field: field + ".limit", Value: clip(r.Limit), Rule: "must not be more than spec.limits.netBandwidth, " + FormatQuantity(NetBandwidth, limit), Example: FormatQuantity(NetBandwidth, limit)})
		case v < s.Requests[NetBandwidth]:
			f = append(f, errs.Field{Field: field + ".limit", Value: clip(r.Limit), Rule: "must not be less than spec.requests.netBandwidth, " + FormatQuantity(NetBandwidth, s.Requests[NetBandwidth]), Example: FormatQuantity(NetBandwidth, s.Requests[NetBandwidth])})
		}
	}
	if r.Burst != "" {
		switch v, err := ParseQuantity(Disk, r.Burst); {
		case err != nil || v < LeastBurst || v > MostBurst:
			f = append(f, errs.Field{Field: field + ".burst", Value: clip(r.Burst), Rule: "must be bytes, 2Ki to 1Gi", Example: "256Ki"})
		case r.Limit == "" && !isLimited:
			f = append(f, errs.Field{Field: field + ".burst", Value: clip(r.Burst), Rule: "needs a limit beside it", Example: "{limit: 100M, burst: 256Ki}"})
		}
	}
	return f
}
