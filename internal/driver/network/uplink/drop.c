//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
/* The drop list of a host's uplink: what comes from a listed prefix goes no further, before the host spends anything
 * on it. Everything else passes, also what is too short to tell. Tags of VLANs are looked behind. */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual MIT/GPL";

struct source { /* an IPv4 address is mapped: ::ffff:a.b.c.d */
	__u32 bits;
	__u32 addr[4];
};

struct count {
	__u64 packets, bytes;
};

/* With any change of the program or of a layout the name gets another number: by it a later build knows its own. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* set by the Go side */
	__type(key, struct source);
	__type(value, struct count);
} drops_1 SEC(".maps");

#define TAGS 2

SEC("xdp")
int atoll_drop(struct xdp_md *ctx)
{
	void *at = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct source s = {.bits = 128};
	struct count *c;
	__u16 type;
	int i;

	if (at + 14 > end)
		return XDP_PASS;
	type = *(__u16 *)(at + 12);
	at += 14;
#pragma unroll
	for (i = 0; i < TAGS; i++) {
		if (type != bpf_htons(0x8100) && type != bpf_htons(0x88a8))
			break;
		if (at + 4 > end)
			return XDP_PASS;
		type = *(__u16 *)(at + 2);
		at += 4;
	}
	if (type == bpf_htons(0x0800)) {
		if (at + 20 > end)
			return XDP_PASS;
		s.addr[2] = bpf_htonl(0xffff);
		s.addr[3] = *(__u32 *)(at + 12);
	} else if (type == bpf_htons(0x86dd)) {
		if (at + 40 > end)
			return XDP_PASS;
		__builtin_memcpy(s.addr, at + 8, 16);
	} else {
		return XDP_PASS;
	}
	c = bpf_map_lookup_elem(&drops_1, &s);
	if (!c)
		return XDP_PASS;
	__sync_fetch_and_add(&c->packets, 1);
	__sync_fetch_and_add(&c->bytes, (__u64)(ctx->data_end - ctx->data));
	return XDP_DROP;
}
