package parse

import (
	"github.com/spf13/pflag"

	"atoll/api"
)

// shaping are the flags that say how much of the network an instance may use.
type shaping struct {
	limit, guarantee     string
	limitIn, limitOut    string
	burstIn, burstOut    string
	connections, packets int64
}

func (o *shaping) flags(fs *pflag.FlagSet) {
	fs.StringVar(&o.limit, "net-limit", "", "most bits per second it may send, and as many receive, such as 100M")
	fs.StringVar(&o.guarantee, "net-guarantee", "", "bits per second it is guaranteed in each direction, such as 10M")
	fs.StringVar(&o.limitIn, "net-limit-in", "", "most bits per second to it (default: --net-limit)")
	fs.StringVar(&o.limitOut, "net-limit-out", "", "most bits per second from it (default: --net-limit)")
	fs.StringVar(&o.burstIn, "net-burst-in", "", "bytes to it that may come at once after a pause, such as 256Ki")
	fs.StringVar(&o.burstOut, "net-burst-out", "", "bytes from it that may go at once after a pause")
	fs.Int64Var(&o.connections, "net-connections", 0, "most new connections per second, on networks of the tenant")
	fs.Int64Var(&o.packets, "net-packets", 0, "most packets per second, on networks of the tenant")
}

// spec is what they say beside requests and limits; nil: nothing.
func (o *shaping) spec() *api.Shaping {
	s := api.Shaping{ConnectionsPerSecond: o.connections, PacketsPerSecond: o.packets}
	if r := (api.Rate{Limit: o.limitIn, Burst: o.burstIn}); r != (api.Rate{}) {
		s.Ingress = &r
	}
	if r := (api.Rate{Limit: o.limitOut, Burst: o.burstOut}); r != (api.Rate{}) {
		s.Egress = &r
	}
	if s == (api.Shaping{}) {
		return nil
	}
	return &s
}
