/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* What the programs and the Go side share: layouts and maps. A change of any layout or of
 * a map's kind needs a new number in layout (wall.go), or an older daemon's pins are read wrongly. */
#pragma once
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define PASS -1 /* TCX_NEXT and TC_ACT_UNSPEC: whoever comes after us may still look */
#define SHOT 2  /* TCX_DROP and TC_ACT_SHOT */

#define FROM 0 /* from the instance: egress */
#define TO 1   /* to the instance: ingress */

#define ID_HOST 1
#define ID_OUTSIDE 2
#define ID_PEER 3 /* of a peered network: in marks only, the number is found by the address */
#define ID_UNBIDDEN 4 /* in marks only: outside, and to an address of the network's own that nobody published */
#define FIRST_PREFIX 65536
#define FIRST_PEER (1u << 31)
#define FIRST_FOREIGN (3u << 30) /* of another tenant's: reaches nobody without a rule */

/* Why a packet was dropped. Only add at the end, and name it in reasons (types.go). */
enum reason {
	ALLOWED = 0,
	NO_PORT,      /* the interface is not a port */
	SHORT,        /* a header is cut off, or says something impossible */
	SOURCE_MAC,   /* not the port's */
	VLAN,
	ETHERTYPE,    /* neither ARP, IPv4 nor IPv6 */
	ARP,          /* speaks for another, or is no request or reply */
	SOURCE,       /* not the port's own address */
	DESTINATION,  /* multicast, broadcast or, inwards, not the port's own */
	ND,           /* router advertisement, redirect, or a neighbour that is not the port */
	DHCP,         /* an instance answers as a DHCP server */
	FRAGMENT,     /* a later fragment without its first, or one that overlaps a header */
	OPTIONS,      /* IPv4 options, or an IPv6 extension that is unknown, too deep or a source route */
	NO_IDENTITY,  /* nobody knows who sent it */
	EGRESS,       /* no rule allows it to be sent */
	INGRESS,      /* no rule allows it to be received */
	NO_FLOW,      /* an answer or an ICMP error to nothing */
	ICMP_TYPE,    /* redirects and the like */
	CONN_LIMIT,
	PACKET_LIMIT,
	REASONS,
	ANSWER = 255  /* no reason: a question that is answered right here */
};

struct ip { /* an IPv4 address is mapped: ::ffff:a.b.c.d */
	__u32 w[4];
};

#define LIMITED 1
#define HAS6 2
#define HOP 4 /* it is the next hop of routes: see behind */

struct port {
	__u32 vni;
	__u32 life;     /* no two ports had the same: flows of an earlier one at this interface do not count */
	__u32 epoch[2]; /* of [FROM] and [TO] */
	__u32 set[2];   /* 0: open */
	__u32 dry[2];
	__u32 mac_a;
	__u16 mac_b;
	__u16 identity;
	__u32 addr4; /* 0: none */
	__u32 flags;
	struct ip addr6;
};

struct key4 {
	__u32 ifindex, local, remote;
	__u16 lport, rport; /* as numbers; see ports_of */
	__u32 proto;
};

struct key6 {
	__u32 ifindex;
	struct ip local, remote;
	__u16 lport, rport;
	__u32 proto;
};

#define ESTABLISHED 1 /* who began it has acknowledged something */
#define FIN_FROM 2
#define FIN_TO 4
#define RESET 8
#define UNBIDDEN 16   /* it was begun by ID_UNBIDDEN */
#define NO_ENTRY 0x80 /* only on the way to a decision: not to be remembered */

struct flow {
	__u64 seen, began;
	__u64 packets[2], bytes[2];
	__u32 rule, peer, epoch, life;
	__u8 dir; /* who began it: FROM or TO */
	__u8 state;
	__u8 pad[6];
};

struct member_key {
	__u32 vni;
	struct ip addr;
};

struct prefix_key {
	__u32 bits; /* 32 of the VNI, then those of the address, mapped */
	__u32 vni;
	struct ip addr;
};

struct pair_key {
	__u32 set, peer;
};

struct pair {
	__u32 all, list, lens;
};

struct list_key {
	__u32 list;
	__u8 proto, len;
	__u16 port;
};

struct frag_key {
	__u32 ifindex, id;
	struct ip src, dst;
	__u32 proto_dir;
};

struct frag {
	__u64 seen;
	__u32 life, epoch[2], pad;
};

struct station { /* whose hardware address a member has: who asks for it at a port is answered there */
	__u8 mac[6], pad[2];
};

struct device { /* a bridge, by which packets of the host's stack enter a network */
	__u32 vni, gateway4;
	struct ip gateway6;
};

struct tally {
	__u64 drops[32]; /* by reason */
};

struct bucket { /* one packet more costs `cost` ns; `burst` ns may be saved up. 0: no limit */
	__u64 cost, burst;
	__u64 due[2];
};

struct limit {
	struct bucket conns, packets;
};

struct rule {
	__u64 flows;
	__u32 logged, pad;
};

struct dry {
	__u64 allowed, denied;
};

struct config {
	__u32 sample; /* one of so many new flows is told; 0: none */
	__u32 lives;  /* how many ports there have been; only the Go side counts */
	__u64 event_cost, event_burst; /* ns, per CPU */
};

struct gauge {
	__u64 due, lost, count;
};

struct event {
	__u64 ns;
	struct ip src, dst;
	__u32 ifindex, vni, peer, rule, len;
	__u16 sport, dport;
	__u8 dir, reason, proto, dry;
	__u32 pad;
};

#define MAP(NAME, KIND, FLAGS, KEY, VALUE, MAX)          \
	struct {                                         \
		__uint(type, KIND);                      \
		__uint(map_flags, FLAGS);                \
		__uint(max_entries, MAX);                \
		__type(key, KEY);                        \
		__type(value, VALUE);                    \
	} NAME SEC(".maps")

/* Sizes are set by the Go side. */
MAP(ports, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, __u32, struct port, 1);
MAP(flows4, BPF_MAP_TYPE_LRU_HASH, 0, struct key4, struct flow, 1);
MAP(flows6, BPF_MAP_TYPE_LRU_HASH, 0, struct key6, struct flow, 1);
MAP(frags, BPF_MAP_TYPE_LRU_HASH, 0, struct frag_key, struct frag, 1);
MAP(members, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, struct member_key, __u32, 1);
MAP(stations, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, struct member_key, struct station, 1);
MAP(prefixes, BPF_MAP_TYPE_LPM_TRIE, BPF_F_NO_PREALLOC, struct prefix_key, __u32, 1);
MAP(pairs, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, struct pair_key, struct pair, 1);
MAP(lists, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, struct list_key, __u32, 1);
MAP(devices, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, __u32, struct device, 1);
MAP(tallies, BPF_MAP_TYPE_PERCPU_HASH, BPF_F_NO_PREALLOC, __u32, struct tally, 1);
MAP(limits, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, __u32, struct limit, 1);
MAP(rules, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, __u32, struct rule, 1);
MAP(dries, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, __u32, struct dry, 1);
MAP(settings, BPF_MAP_TYPE_ARRAY, 0, __u32, struct config, 1);
MAP(gauges, BPF_MAP_TYPE_PERCPU_ARRAY, 0, __u32, struct gauge, 1);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

/* Constants from here on are written by the Go side before the programs are loaded. */
volatile const __u64 tcp_idle = 5ull * 3600 * 1000000000;
volatile const __u64 tcp_brief = 60ull * 1000000000;
volatile const __u64 one_way = 60ull * 1000000000;
volatile const __u64 both_ways = 180ull * 1000000000;
volatile const __u64 frag_time = 30ull * 1000000000;
volatile const __u32 coarse_clock = 0; /* the kernel has bpf_ktime_get_coarse_ns */
/* For measuring: each run is another flow, to one of vary_hosts + 1 addresses and vary_ports + 1 ports
 * from the packet's own on. The verifier takes it all out where vary is 0. */
volatile const __u32 vary = 0;
volatile const __u32 vary_hosts = 0;
volatile const __u32 vary_ports = 0;

static __always_inline __u64 clock_now(void)
{
	return coarse_clock ? bpf_ktime_get_coarse_ns() : bpf_ktime_get_ns();
}
