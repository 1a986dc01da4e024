package metrics

import (
	"runtime"
	rm "runtime/metrics"
)

// Runtime adds what the Go runtime knows of this process; it costs nothing until it is read.
func Runtime(r *Registry) {
	r.Func("go_goroutines", "Goroutines that exist.", func() float64 { return float64(runtime.NumGoroutine()) })
	for _, m := range []struct{ name, help, key string }{
		{"go_memory_heap_bytes", "Bytes of live and dead objects on the heap.", "/memory/classes/heap/objects:bytes"},
		{"go_memory_total_bytes", "Bytes the Go runtime has mapped.", "/memory/classes/total:bytes"},
		{"go_gc_cycles_total", "Garbage collections so far.", "/gc/cycles/total:gc-cycles"},
		{"go_gomaxprocs", "Threads that may run Go code at once.", "/sched/gomaxprocs:threads"},
	} {
		r.Func(m.name, m.help, func() float64 { return sample(m.key) })
	}
}

func sample(key string) float64 {
	s := []rm.Sample{{Name: key}}
	rm.Read(s)
	switch s[0].Value.Kind() {
	case rm.KindUint64:
		return float64(s[0].Value.Uint64())
	case rm.KindFloat64:
		return s[0].Value.Float64()
	}
	return 0
}
