// Command lab is several hosts on this machine for people: make lab HOSTS=3 makes them one
// pool, which stays until make lab DO=down. In between hosts are killed, stopped, cut off,
// lost and brought back: make lab DO='kill isle2'.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"atoll/internal/errs"
	"atoll/test/lab"
	"atoll/test/rig"
)

// name of the lab that people use; there is one.
const name = "people"

type verb struct {
	use, help string
	min, max  int
	run       func(ctx context.Context, w io.Writer, args []string) error
}

func verbs() []verb {
	return []verb{
		{"up [HOSTS]", "make the hosts one pool; harmless to repeat", 0, 1, up},
		{"status", "how the hosts stand", 0, 0, status},
		{"kill HOST", "end its daemon at once; instances run on", 1, 1, onHost((*lab.Host).Kill)},
		{"stop HOST", "end its daemon in good order; instances run on", 1, 1, onHost((*lab.Host).Stop)},
		{"start HOST", "start its daemon again", 1, 1, start},
		{"pause HOST [all]", "its daemon stands still; all: its watchdog, too", 1, 2, pause},
		{"resume HOST", "it goes on", 1, 1, onHost((*lab.Host).Resume)},
		{"cut HOST [FROM]", "pull its cable, or drop what comes from one other host", 1, 2, cut},
		{"mend HOST", "plug it in, and let everybody through again", 1, 1, onHost((*lab.Host).Mend)},
		{"off HOST", "the host is lost: cable and power at once", 1, 1, onHost((*lab.Host).PowerOff)},
		{"on HOST", "boot it again", 1, 1, onHost((*lab.Host).PowerOn)},
		{"log HOST [LINES]", "the end of its daemon's log", 1, 2, tail},
		{"sh HOST", "a shell on it: its network, its pool", 1, 1, shell},
		{"down", "take everything away", 0, 0, down},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := dispatch(ctx, os.Stdout, os.Args[1:])
	stop()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "error:", err)
	if h := errs.HintOf(err); h != "" {
		fmt.Fprintln(os.Stderr, "  what would help:", h)
	}
	os.Exit(errs.ExitCode(err))
}

func dispatch(ctx context.Context, w io.Writer, args []string) error {
	if len(args) == 0 || args[0] == "help" || args[0] == "--help" || args[0] == "-h" {
		usage(w)
		return nil
	}
	for _, v := range verbs() {
		if verb, _, _ := strings.Cut(v.use, " "); verb != args[0] {
			continue
		}
		if n := len(args) - 1; n < v.min || n > v.max {
			return errs.New(errs.Invalid, "%s: %d arguments", args[0], n).WithHint("make lab DO='%s'", v.use)
		}
		if m := rig.Missing(); m != "" {
			return errs.New(errs.Unsupported, "several hosts on this machine need %s", m).WithHint("make packages, as root")
		}
		return v.run(ctx, w, args[1:])
	}
	usage(os.Stderr)
	return errs.New(errs.Invalid, "unknown verb %q", args[0])
}

func usage(w io.Writer) {
	fmt.Fprint(w, "Several hosts on this machine, as one pool.\n\n  make lab HOSTS=3\n  make lab DO='VERB …'   with the verbs:\n\n")
	for _, v := range verbs() {
		fmt.Fprintf(w, "  %-17s %s\n", v.use, v.help)
	}
}

func up(ctx context.Context, w io.Writer, args []string) error {
	hosts := 3
	if len(args) == 1 {
		n, err := strconv.Atoi(args[0])
		if err != nil || n < 1 || n > lab.MaxHosts {
			return errs.InvalidFields("lab", []errs.Field{{Field: "HOSTS", Value: args[0], Rule: fmt.Sprintf("must be 1 to %d", lab.MaxHosts), Example: "make lab HOSTS=3"}})
		}
		hosts = n
	}
	l, err := lab.Open(name)
	switch {
	case errors.Is(err, errs.NotFound):
		self, err := os.Executable()
		if err != nil {
			return err
		}
		if l, err = lab.New(ctx, filepath.Dir(self), lab.Options{Hosts: hosts, Name: name}); err != nil {
			return err
		}
	case err != nil:
		return err
	case len(args) == 1 && len(l.Hosts) != hosts:
		return errs.New(errs.Conflict, "the lab has %d hosts", len(l.Hosts)).WithHint("make lab DO=down, then make lab HOSTS=%d", hosts)
	}
	began := time.Now()
	fmt.Fprintf(w, "%d hosts begin …\n", len(l.Hosts))
	if err := again(ctx, l); err != nil {
		return err
	}
	fmt.Fprintf(w, "%d hosts are one pool, after %.1f s; %d of them keep its state.\n\n", len(l.Hosts), time.Since(began).Seconds(), lab.Members(len(l.Hosts)))
	h := l.Hosts[0]
	fmt.Fprintf(w, `  export ATOLL_SOCKET=%s ATOLL_TENANT=demo PATH=%s:$PATH
  atoll get nodes
  atoll create deployment web --image busybox --replicas 6 -- sleep 100000
  make lab DO='off isle2'        its instances start elsewhere; DO='on isle2' brings it back
  make lab DO=status             DO=help shows what else can be done to hosts
  make lab DO=down               takes everything away
`, h.Socket, l.Bin)
	return nil
}

// again has every host in the pool and its daemon running, whatever was there before.
func again(ctx context.Context, l *lab.Lab) error {
	var begun []*lab.Host
	var fresh []*lab.Host
	for _, h := range l.Hosts {
		_, err := os.Stat(filepath.Join(h.State, "join.json"))
		if h != l.Hosts[0] && err != nil {
			fresh = append(fresh, h)
			continue
		}
		if h.Pid() == 0 {
			begun = append(begun, h)
		}
	}
	for _, h := range begun { // all of them first: of three that were down, none is there alone
		if err := h.Begin(); err != nil {
			return err
		}
	}
	for _, h := range begun {
		if err := h.Ready(ctx); err != nil {
			return err
		}
	}
	if err := l.Found(ctx); err != nil {
		return err
	}
	for _, h := range fresh {
		if err := l.Join(ctx, h); err != nil {
			return err
		}
	}
	return l.WaitMembers(ctx, lab.Members(len(l.Hosts)))
}

func status(ctx context.Context, w io.Writer, _ []string) error {
	l, err := lab.Open(name)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "HOST\tADDRESS\tDAEMON\tCABLE\tAPI\tPROCESSES\tSOCKET")
	for _, h := range l.Hosts {
		daemon := "-"
		if pid := h.Pid(); pid != 0 {
			daemon = strconv.Itoa(pid)
			if h.Paused() {
				daemon += " (paused)"
			}
		}
		cable, api := "in", "-"
		if h.Unplugged() {
			cable = "cut"
		}
		if !h.Paused() && rig.Ready(h.Socket) {
			api = "answers"
		}
		ps, err := h.Processes(".t/")
		if err != nil {
			return err
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", h.Name, h.Address, daemon, cable, api, len(ps), h.Socket)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if h, err := l.Leader(ctx); err == nil {
		fmt.Fprintf(w, "\n%s leads the pool.\n", h.Name)
	}
	return nil
}

// host finds the lab and a host of it.
func host(args []string) (*lab.Lab, *lab.Host, error) {
	l, err := lab.Open(name)
	if err != nil {
		return nil, nil, err
	}
	h := l.Host(args[0])
	if h == nil {
		return nil, nil, errs.New(errs.NotFound, "no host %q in the lab", args[0]).WithHint("there are isle1 to isle%d", len(l.Hosts))
	}
	return l, h, nil
}

func onHost(fn func(*lab.Host) error) func(context.Context, io.Writer, []string) error {
	return func(_ context.Context, _ io.Writer, args []string) error {
		_, h, err := host(args)
		if err != nil {
			return err
		}
		return fn(h)
	}
}

func start(ctx context.Context, _ io.Writer, args []string) error {
	_, h, err := host(args)
	if err != nil || h.Pid() != 0 {
		return err
	}
	return h.Start(ctx)
}

func pause(_ context.Context, _ io.Writer, args []string) error {
	_, h, err := host(args)
	if err != nil {
		return err
	}
	if len(args) == 2 && args[1] != "all" {
		return errs.New(errs.Invalid, "pause what beside the daemon? %q is not known", args[1]).WithHint("make lab DO='pause %s all'", h.Name)
	}
	return h.Pause(len(args) == 2)
}

func cut(_ context.Context, _ io.Writer, args []string) error {
	l, h, err := host(args)
	if err != nil || len(args) == 1 {
		if err == nil {
			err = h.Cut()
		}
		return err
	}
	other := l.Host(args[1])
	if other == nil || other == h {
		return errs.New(errs.NotFound, "no other host %q in the lab", args[1]).WithHint("there are isle1 to isle%d", len(l.Hosts))
	}
	return h.CutFrom(other, false)
}

func tail(_ context.Context, w io.Writer, args []string) error {
	_, h, err := host(args)
	if err != nil {
		return err
	}
	n := 30
	if len(args) == 2 {
		if n, err = strconv.Atoi(args[1]); err != nil || n < 1 {
			return errs.InvalidFields("lab", []errs.Field{{Field: "LINES", Value: args[1], Rule: "must be a number from 1", Example: "100"}})
		}
	}
	lines := strings.SplitAfter(h.Tail(1<<20), "\n")
	_, err = io.WriteString(w, strings.Join(lines[max(0, len(lines)-1-n):], ""))
	return err
}

func shell(_ context.Context, _ io.Writer, args []string) error {
	l, h, err := host(args)
	if err != nil {
		return err
	}
	cmd := h.Exec("bash", "--norc", "-i")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "ATOLL_SOCKET="+h.Socket, "ATOLL_TENANT=demo", "PATH="+l.Bin+":"+os.Getenv("PATH"), "PS1="+h.Name+"# ")
	signal.Ignore(os.Interrupt) // it is for the shell
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) { // how it ended is its user's business
		return err
	}
	return nil
}

func down(context.Context, io.Writer, []string) error { return lab.Remove(name) }
