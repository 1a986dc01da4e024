// Command shape measures how exactly limits of the network are kept, and that they are shared and guaranteed as they
// should be. Two instances of one host are on a tenant's network; the drivers attach them with their limits as the
// agent has them do it, and the host's own divider moves what is shared. All is in namespaces of its own.
//
//	err_pct   the largest error at 100 Mbit/s and 1 Gbit/s, in percent of the limit, by TCP and UDP, to an
//	          instance and from it; the goal is 2. 10 Mbit/s is told beside it.
//	tenant    two instances share their tenant's limit of 100 Mbit/s: what both have together, and when one is idle
//	guarantee of 300 Mbit/s on an uplink of 500, against two others that take what they can
//
// A limit counts frames with their Ethernet headers, so what iperf3 counts, the payload, is corrected to that: by 66
// bytes for each segment of TCP with timestamps. Of UDP the frames that arrive at the interface are counted: iperf3 itself
// does not take all of them in time on a small machine.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"time"

	"atoll/bench/lib"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/test/rig"
)

const inside = "ATOLL_BENCH_SHAPE"

func main() {
	rounds := flag.Int("rounds", 3, "of each measurement; the middle one counts")
	seconds := flag.Int("seconds", 3, "of each measurement")
	flag.Parse()
	if err := run(*rounds, time.Duration(*seconds)*time.Second); err != nil {
		lib.Fatal(err)
	}
}

// run starts the same once more in a network and with mounts of its own, or is that already.
func run(rounds int, lasts time.Duration) error {
	if _, err := exec.LookPath("iperf3"); err != nil {
		return errs.New(errs.Unsupported, "this machine lacks iperf3").WithHint("apt-get install iperf3")
	}
	if os.Getenv(inside) == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		cmd := exec.Command("unshare", append([]string{"--net", "--mount", "--propagation", "private", self}, os.Args[1:]...)...)
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("in namespaces of its own: %w", err)
		}
		return nil
	}
	dir, err := os.MkdirTemp("", "atoll-bench-shape-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	h, err := newHost(ctx, dir)
	if err != nil {
		return err
	}
	b := &bench{host: h, rounds: rounds, lasts: lasts, told: map[string]any{"bench": "shape", "goal_pct": 2.0, "rounds": rounds}}
	err = errors.Join(b.all(ctx), h.close())
	if err == nil {
		lib.JSON(b.told)
	}
	return err
}

type bench struct {
	host   *host
	rounds int
	lasts  time.Duration
	told   map[string]any
}

func (b *bench) all(ctx context.Context) error {
	if err := b.exact(ctx); err != nil {
		return err
	}
	if err := b.tenant(ctx); err != nil {
		return fmt.Errorf("a tenant's limit: %w", err)
	}
	if err := b.guarantee(ctx); err != nil {
		return fmt.Errorf("a guarantee: %w", err)
	}
	return nil
}

// exact measures the error of limits.
func (b *bench) exact(ctx context.Context) error {
	tcp, err := b.flow(ctx, stream{from: b.host.a, to: b.host.b, port: 5201, proto: "tcp"})
	if err != nil {
		return err
	}
	udp, err := b.flow(ctx, stream{from: b.host.a, to: b.host.b, port: 5201, proto: "udp"})
	if err != nil {
		return err
	}
	free := map[string]float64{"tcp": tcp, "udp": udp}
	b.told["free_tcp_gbit"], b.told["free_udp_gbit"] = lib.Round(tcp/1e9, 2), lib.Round(udp/1e9, 2)
	fmt.Printf("without a limit %.1f Gbit/s by TCP and %.1f by UDP\n\n%-10s %-5s %-6s %14s %9s\n", tcp/1e9, udp/1e9, "limit", "", "", "Mbit/s", "error")
	worst := 0.0
	for _, limit := range []int64{10e6, 100e6, 1e9} {
		if err := b.host.limit(ctx, limit); err != nil {
			return err
		}
		for _, proto := range []string{"tcp", "udp"} {
			if free[proto] < float64(limit)*1.2 { // this machine does not reach the limit: there is nothing to measure
				fmt.Printf("%-10s %-5s not reached without a limit\n", fmt.Sprintf("%dM", limit/1e6), proto)
				b.told[fmt.Sprintf("%s_%dm", proto, limit/1e6)] = "not reached without a limit"
				continue
			}
			for _, way := range []string{"to", "from"} {
				s := stream{from: b.host.b, to: b.host.a, port: 5201, proto: proto}
				if way == "from" {
					s.from, s.to = s.to, s.from
				}
				var all []float64
				for range b.rounds {
					got, err := b.flow(ctx, s)
					if err != nil {
						return err
					}
					all = append(all, got)
				}
				got := lib.Middle(all)
				pct := (got/float64(limit) - 1) * 100
				b.told[fmt.Sprintf("%s_%s_%dm_pct", proto, way, limit/1e6)] = lib.Round(pct, 2)
				if limit >= 100e6 {
					worst = max(worst, math.Abs(pct))
				}
				fmt.Printf("%-10s %-5s %-6s %14.2f %+8.2f%%\n", fmt.Sprintf("%dM", limit/1e6), proto, way, got/1e6, pct)
			}
		}
	}
	b.told["err_pct"] = lib.Round(worst, 2)
	return b.host.limit(ctx, 0)
}

// tenant measures a limit that two instances share.
func (b *bench) tenant(ctx context.Context) error {
	const limit = 100e6
	stop, err := b.host.divide(ctx, limit, 0)
	if err != nil {
		return err
	}
	defer stop()
	both, err := b.flows(ctx, stream{from: b.host.a, to: b.host.out, port: 5201, proto: "tcp"}, stream{from: b.host.b, to: b.host.out, port: 5202, proto: "tcp"})
	if err != nil {
		return err
	}
	alone, err := b.flow(ctx, stream{from: b.host.a, to: b.host.out, port: 5201, proto: "tcp"})
	if err != nil {
		return err
	}
	sum := both[0] + both[1]
	fmt.Printf("\na tenant's limit of 100 Mbit/s: %.1f and %.1f, together %.1f; one alone %.1f\n", both[0]/1e6, both[1]/1e6, sum/1e6, alone/1e6)
	b.told["tenant_sum_pct"], b.told["tenant_alone_pct"] = lib.Round((sum/limit-1)*100, 2), lib.Round((alone/limit-1)*100, 2)
	return nil
}

// guarantee measures one against others on an uplink that is full.
func (b *bench) guarantee(ctx context.Context) error {
	const uplink, promised = 500e6, 300e6
	stop, err := b.host.divide(ctx, 0, promised)
	if err != nil {
		return err
	}
	defer stop()
	got, err := b.flows(ctx, stream{from: b.host.a, to: b.host.out, port: 5201, proto: "tcp"},
		stream{from: b.host.b, to: b.host.out, port: 5202, proto: "tcp"}, stream{from: b.host.c, to: b.host.out, port: 5203, proto: "tcp"})
	if err != nil {
		return err
	}
	fmt.Printf("300 Mbit/s guaranteed on an uplink of 500: %.1f, the others %.1f and %.1f, together %.1f\n", got[0]/1e6, got[1]/1e6, got[2]/1e6, (got[0]+got[1]+got[2])/1e6)
	b.told["guarantee_part"], b.told["uplink_part"] = lib.Round(got[0]/promised, 3), lib.Round((got[0]+got[1]+got[2])/uplink, 3)
	return nil
}

// stream is one measurement.
type stream struct {
	from, to *box
	port     int
	proto    string
}

// flows measures several at once, over the same time: at the buckets, which count what the limits are about.
func (b *bench) flows(ctx context.Context, ss ...stream) ([]float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	long := *b
	long.lasts = b.lasts + 4*time.Second
	failed := make(chan error, len(ss))
	for _, s := range ss {
		go func() {
			_, err := long.flow(ctx, s)
			failed <- err
		}()
	}
	defer func() { // before the next measurement takes the ports
		cancel()
		for range ss {
			<-failed
		}
	}()
	time.Sleep(3 * time.Second)
	first, err := b.sent(ctx, ss)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	time.Sleep(b.lasts)
	last, err := b.sent(ctx, ss)
	if err != nil {
		return nil, err
	}
	took := time.Since(began).Seconds()
	for i := range last {
		last[i] = (last[i] - first[i]) * 8 / took
	}
	return last, nil
}

// sent is how many bytes of frames the senders have sent.
func (b *bench) sent(ctx context.Context, ss []stream) ([]float64, error) {
	t, err := b.host.network.(driver.Shaper).Traffic(ctx)
	if err != nil {
		return nil, err
	}
	var out []float64
	for _, s := range ss {
		out = append(out, float64(t[driver.Cable{ID: s.from.id, Name: "eth0"}].From.Bytes))
	}
	return out, nil
}

const datagram = 1400

// report is what iperf3 says of a measurement.
type report struct {
	Error string `json:"error"`
	Start struct {
		MSS float64 `json:"tcp_mss_default"`
	} `json:"start"`
	End struct {
		Received struct {
			Bits float64 `json:"bits_per_second"`
		} `json:"sum_received"`
	} `json:"end"`
}

// flow is the rate at which a stream arrives, in bits per second of frames. The first second is left out: it has the
// burst, and TCP's beginning.
func (b *bench) flow(ctx context.Context, s stream) (float64, error) {
	server := exec.CommandContext(ctx, "nsenter", "--net="+s.to.ns.Path(), "--", "iperf3", "-s", "-1", "-p", fmt.Sprint(s.port))
	if err := rig.StartTied(server); err != nil {
		return 0, err
	}
	defer func() {
		_ = server.Process.Kill() // it ends after one test
		_ = server.Wait()
	}()
	args := []string{"--net=" + s.from.ns.Path(), "--", "iperf3", "-J", "-O", "1", "-c", s.to.addr.String(), "-p", fmt.Sprint(s.port), "-t", fmt.Sprint(int(b.lasts.Seconds()))}
	if s.proto == "udp" {
		return b.datagrams(ctx, s, args)
	}
	var res report
	for range 50 { // until it listens
		res = report{}
		out, err := exec.CommandContext(ctx, "nsenter", args...).Output()
		if jerr := json.Unmarshal(out, &res); jerr != nil {
			return 0, fmt.Errorf("iperf3: %w: %s", errors.Join(err, jerr), strings.TrimSpace(string(out)))
		}
		if bits := res.End.Received.Bits; bits > 0 {
			return bits * (res.Start.MSS + 66) / res.Start.MSS, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return 0, fmt.Errorf("iperf3: %s", res.Error)
}

// datagrams floods with UDP and counts the frames that arrive at the other end's interface. There are so many sockets
// that what fits into their buffers is not sent before their sender is woken again.
func (b *bench) datagrams(ctx context.Context, s stream, args []string) (float64, error) {
	cmd := exec.CommandContext(ctx, "nsenter", append(args, "-u", "-l", fmt.Sprint(datagram), "-b", "0", "-P", "8", "--connect-timeout", "3000", "-t", fmt.Sprint(int(b.lasts.Seconds())+3))...)
	time.Sleep(300 * time.Millisecond) // until the server listens
	if err := rig.StartTied(cmd); err != nil {
		return 0, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	time.Sleep(time.Second)
	first, err := received(s.to)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	time.Sleep(b.lasts)
	last, err := received(s.to)
	if err != nil {
		return 0, err
	}
	if last == first {
		return 0, errors.New("iperf3 sends nothing by UDP")
	}
	return float64(last-first) * 8 / time.Since(began).Seconds(), nil
}

// received is how many bytes of frames came to a box.
func received(x *box) (n uint64, err error) {
	err = x.ns.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		for _, line := range strings.Split(string(text), "\n") {
			if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "eth0:"); ok {
				_, err = fmt.Sscan(rest, &n)
				return err
			}
		}
		return errors.New("no eth0")
	})
	return n, err
}
