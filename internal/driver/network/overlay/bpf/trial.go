package bpf

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"

	"atoll/internal/errs"
)

// Trial is a packet for a program, without an interface that it comes by: the kernel runs the program
// as if. What the program writes down stays written, flows and counts too. Tests and benches use it.
type Trial struct {
	Ifindex int // of an interface in the caller's namespace
	Packet  []byte
	Mark    uint32
	Repeat  int // how often; less than 2: once. More are only for the loopback interface and no mark
}

// Outcome is that of the last run.
type Outcome struct {
	Passed bool
	Mark   uint32
	Each   time.Duration // the kernel's own average of one run
}

// TrySend is the program an instance's packets meet.
func (w *Wall) TrySend(t Trial) (Outcome, error) { return w.run(progFrom, t) }

// TryReceive is the program packets to an instance meet.
func (w *Wall) TryReceive(t Trial) (Outcome, error) { return w.run(progTo, t) }

// skbuff is the kernel's struct __sk_buff as far as a trial reads and writes it.
type skbuff [48]uint32

const (
	skbMark    = 2
	skbIfindex = 10
)

func (w *Wall) run(prog string, t Trial) (Outcome, error) { return try(w.progs[prog], t) }

func try(p *ebpf.Program, t Trial) (Outcome, error) {
	in, out := skbuff{}, skbuff{}
	in[skbMark], in[skbIfindex] = t.Mark, uint32(t.Ifindex)
	opts := ebpf.RunOptions{Data: t.Packet, Context: &in, ContextOut: &out}
	if t.Repeat < 2 {
		ret, err := p.Run(&opts)
		if err != nil {
			return Outcome{}, fmt.Errorf("try a program: %w", err)
		}
		return outcome(ret, out)
	}
	if t.Ifindex != 1 || t.Mark != 0 {
		return Outcome{}, errs.New(errs.Invalid, "a trial that is repeated is of interface 1 and has no mark, not %d and %d", t.Ifindex, t.Mark)
	}
	ret, each, err := p.Benchmark(t.Packet, t.Repeat, nil)
	if err != nil {
		return Outcome{}, fmt.Errorf("try a program: %w", err)
	}
	o, err := outcome(ret, out)
	o.Each = each
	return o, err
}

func outcome(ret uint32, out skbuff) (Outcome, error) {
	switch int32(ret) {
	case -1:
		return Outcome{Passed: true, Mark: out[skbMark]}, nil
	case 2:
		return Outcome{}, nil
	}
	return Outcome{}, errs.New(errs.Internal, "a program of the wall returned %d", int32(ret))
}

// Bare is a program that does nothing but one thing with one table: what a bench compares the
// wall with.
type Bare struct {
	table, count *ebpf.Map
	prog         *ebpf.Program
}

// NewBareLookup makes one that looks up, and hits, in a hash table of so many entries of 8 bytes each way: always the same
// entry, or with scattered each time another one, that the processor does not have at hand.
func NewBareLookup(entries int, scattered bool) (*Bare, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, unsupported(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "bare", Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: uint32(entries)})
	if err != nil {
		return nil, unsupported(err)
	}
	b := &Bare{table: m}
	ks, vs := make([]uint64, entries), make([]uint64, entries)
	for i := range ks {
		ks[i] = uint64(i)
	}
	if err := put(m, "a bench", ks, vs); err != nil {
		b.Close()
		return nil, err
	}
	key := asm.Instructions{asm.Mov.Imm(asm.R1, int32(entries/2))}
	if scattered {
		// By chance: an arithmetic sequence would be fetched ahead.
		key = asm.Instructions{asm.FnGetPrandomU32.Call(), asm.Mov.Reg(asm.R1, asm.R0), asm.Mod.Imm(asm.R1, int32(entries))}
	}
	return b, b.load(append(key,
		asm.StoreMem(asm.RFP, -8, asm.R1, asm.DWord),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -8),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "missed"),
		asm.Mov.Imm(asm.R0, -1),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 2).WithSymbol("missed"),
		asm.Return(),
	))
}

// NewBareInsert makes one that inserts a new entry each time, of the shape of IPv4's flows,
// into a table of so many: what remembering a flow costs whoever does it.
func NewBareInsert(entries int) (*Bare, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, unsupported(err)
	}
	b := &Bare{}
	var err error
	if b.count, err = ebpf.NewMap(&ebpf.MapSpec{Name: "bare", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 1}); err != nil {
		return nil, unsupported(err)
	}
	if b.table, err = ebpf.NewMap(&ebpf.MapSpec{Name: "bare", Type: ebpf.LRUHash, KeySize: 24, ValueSize: 72, MaxEntries: uint32(entries)}); err != nil {
		b.Close()
		return nil, unsupported(err)
	}
	ins := asm.Instructions{
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, b.count.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.StoreMem(asm.RFP, -32, asm.R1, asm.DWord), // the key: a count, then zeroes
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, -24, asm.R1, asm.DWord),
		asm.StoreMem(asm.RFP, -16, asm.R1, asm.DWord),
	}
	for at := -104; at < -32; at += 8 {
		ins = append(ins, asm.StoreMem(asm.RFP, int16(at), asm.R1, asm.DWord))
	}
	return b, b.load(append(ins,
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -32),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, -104),
		asm.Mov.Imm(asm.R4, 0),
		asm.LoadMapPtr(asm.R1, b.table.FD()),
		asm.FnMapUpdateElem.Call(),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("out"),
		asm.Return(),
	))
}

func (b *Bare) load(ins asm.Instructions) error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "bare", Type: ebpf.SchedCLS, License: "GPL", Instructions: ins})
	if err != nil {
		b.Close()
		return unsupported(err)
	}
	b.prog = p
	return nil
}

// Try runs it.
func (b *Bare) Try(t Trial) (Outcome, error) { return try(b.prog, t) }

// Forget empties the table of a NewBareInsert.
func (b *Bare) Forget() error { return forget[[24]byte](b.table) }

// Close takes it away.
func (b *Bare) Close() {
	if b.prog != nil {
		b.prog.Close()
	}
	b.table.Close()
	b.count.Close()
}

// ForgetFlows empties the tables of flows: every packet that is under way is judged as a new one. For benches.
func (w *Wall) ForgetFlows() error {
	if err := forget[key4](w.wallMaps.Flows4); err != nil {
		return err
	}
	return forget[key6](w.wallMaps.Flows6)
}

func forget[K comparable](m *ebpf.Map) error {
	var ks []K
	if err := each(m, "flows", func(k K, _ [72]byte) bool { ks = append(ks, k); return true }); err != nil {
		return err
	}
	return drop(m, "flows", ks)
}
