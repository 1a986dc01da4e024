/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* The decision about a flow, and what is told of it. */
#pragma once
#include "maps.h"

#define ETH_ARP 0x0806
#define ETH_V4 0x0800
#define ETH_V6 0x86dd
#define TCP 6
#define UDP 17
#define ICMP 1
#define ICMP6 58
#define SCTP 132

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

/* What a decision needs of a packet. It is filled field by field: nothing here is zeroed for its own sake. */
struct pkt {
	__u32 ifindex;
	__u32 mark; /* identity it came with; only inwards */
	__u64 now;
	__u16 lport, rport;
	__u16 asked; /* the port, or type and code, that rules are about */
	__u8 proto, tcp;
	__u8 dir, begins; /* begins 0: an answer, which never starts a flow */
	__u8 fragmented, icmp_error;
	__u32 l4;      /* offset of the header after IP */
	__u32 frag_id;
	__u32 unbidden; /* its mark said so; it is ID_OUTSIDE then */
	__u32 theirs;  /* an echo that the other side asked for: 256, beside the protocol in the key */
};

struct verdict {
	__u32 peer, rule;
	__u32 tell; /* TELL: somebody wants to know; DRY: a set that is not obeyed would have refused */
};

#define TELL 1
#define DRY 2

struct note {
	__u32 ifindex, vni, peer, rule, reason, dir, dry;
};

static __always_inline void mapped(struct ip *a, __u32 addr4)
{
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = bpf_htonl(0xffff);
	a->w[3] = addr4;
}

static __always_inline int same_ip(const struct ip *a, const struct ip *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

static __always_inline int take(struct bucket *b, int dir, __u64 now)
{
	__u64 due = b->due[dir & 1];

	if (!b->cost)
		return 1;
	if (due < now)
		due = now;
	if (due - now > b->burst)
		return 0;
	b->due[dir & 1] = due + b->cost; /* two CPUs at once may take one token for two */
	return 1;
}

/* emit tells user space of a packet, if this CPU may tell of one more. */
static __noinline void emit(struct __sk_buff *skb, const struct note *n)
{
	struct config *c;
	struct gauge *g;
	struct event *e;
	__u64 now = clock_now();
	__u64 due;
	__u32 zero = 0;
	__u16 type = 0;

	c = bpf_map_lookup_elem(&settings, &zero);
	g = bpf_map_lookup_elem(&gauges, &zero);
	if (!c || !g)
		return;
	due = g->due < now ? now : g->due;
	if (!c->event_cost || due - now > c->event_burst) {
		g->lost++;
		return;
	}
	g->due = due + c->event_cost;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		g->lost++;
		return;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->ns = bpf_ktime_get_ns();
	e->ifindex = n->ifindex;
	e->vni = n->vni;
	e->peer = n->peer;
	e->rule = n->rule;
	e->len = skb->len;
	e->dir = n->dir;
	e->reason = n->reason;
	e->dry = n->dry;
	bpf_skb_load_bytes(skb, 12, &type, 2);
	if (type == bpf_htons(ETH_V4)) {
		__u8 vihl = 0;

		mapped(&e->src, 0);
		mapped(&e->dst, 0);
		bpf_skb_load_bytes(skb, 14, &vihl, 1);
		bpf_skb_load_bytes(skb, 23, &e->proto, 1);
		bpf_skb_load_bytes(skb, 26, &e->src.w[3], 4);
		bpf_skb_load_bytes(skb, 30, &e->dst.w[3], 4);
		if (e->proto != ICMP && vihl == 0x45)
			bpf_skb_load_bytes(skb, 34, &e->sport, 4);
	} else if (type == bpf_htons(ETH_V6)) {
		bpf_skb_load_bytes(skb, 20, &e->proto, 1);
		bpf_skb_load_bytes(skb, 22, &e->src, 16);
		bpf_skb_load_bytes(skb, 38, &e->dst, 16);
		if (e->proto == TCP || e->proto == UDP || e->proto == SCTP)
			bpf_skb_load_bytes(skb, 54, &e->sport, 4);
	} else if (type == bpf_htons(ETH_ARP)) {
		mapped(&e->src, 0);
		mapped(&e->dst, 0);
		bpf_skb_load_bytes(skb, 28, &e->src.w[3], 4);
		bpf_skb_load_bytes(skb, 38, &e->dst.w[3], 4);
	}
	e->sport = bpf_ntohs(e->sport);
	e->dport = bpf_ntohs(e->dport);
	bpf_ringbuf_submit(e, 0);
}

/* dropped counts, tells and drops. */
static __noinline int dropped(struct __sk_buff *skb, const struct note *n)
{
	struct tally *t;
	__u32 at = n->ifindex;

	t = bpf_map_lookup_elem(&tallies, &at);
	if (!t) {
		at = 0; /* whoever is not known */
		t = bpf_map_lookup_elem(&tallies, &at);
	}
	if (t)
		t->drops[n->reason & 31]++;
	emit(skb, n);
	return SHOT;
}

/* number is who an address belongs to, seen from a network; 0: it came by a peering, and nobody there has it. */
static __always_inline __u32 number(__u32 vni, const struct ip *a, __u32 known)
{
	struct prefix_key p;
	__u32 *id;

	if (!known || known == ID_PEER) {
		struct member_key m = {.vni = vni, .addr = *a};

		id = bpf_map_lookup_elem(&members, &m);
		if (known)
			return id && *id >= FIRST_PEER ? *id : 0;
		if (id)
			return *id;
	} else if (known != ID_OUTSIDE) {
		return known;
	}
	p.bits = 160;
	p.vni = vni;
	p.addr = *a;
	id = bpf_map_lookup_elem(&prefixes, &p);
	return id ? *id : ID_OUTSIDE;
}

/* carried is the mark with which packets of a number come. */
static __always_inline __u32 carried(__u32 number)
{
	return number >= FIRST_PEER ? ID_PEER : number >= FIRST_PREFIX ? ID_OUTSIDE : number;
}

#define YES (1ull << 32)

/* allowed asks one set: YES and the rule, or 0. A set holds nothing that can be walked: one pair, and one
 * entry for each length its list has. It takes numbers only, and is not static: so verifiers look at it once,
 * not once for each way that leads here. */
__attribute__((noinline)) __u64 allowed(__u32 set, __u32 peer, __u32 proto, __u32 port)
{
	struct pair_key pk = {.set = set, .peer = peer};
	struct list_key lk;
	struct pair *p;
	__u32 lens;
	__u32 *r;
	int i;

	p = bpf_map_lookup_elem(&pairs, &pk);
	if (!p)
		return 0;
	if (p->all)
		return YES | p->all;
	if (!p->list)
		return 0;
	lk.list = p->list;
	lk.proto = proto;
	lens = p->lens;
	for (i = 16; i >= 0; i--) {
		if (!(lens & (1u << i)))
			continue;
		lk.len = i;
		lk.port = port & (0xffff0000u >> i);
		r = bpf_map_lookup_elem(&lists, &lk);
		if (r)
			return YES | *r;
	}
	return 0;
}

/* count is a new flow's mark on its rule. It reports whether the rule is to be logged. */
static __always_inline int count(__u32 rule)
{
	struct rule first = {.flows = 1}, *r;

	if (!rule)
		return 0;
	r = bpf_map_lookup_elem(&rules, &rule);
	if (!r) {
		bpf_map_update_elem(&rules, &rule, &first, BPF_NOEXIST);
		return 0;
	}
	__sync_fetch_and_add(&r->flows, 1);
	return r->logged;
}

/* rehearse asks a set that is not obeyed. It reports whether it would have refused. */
static __always_inline int rehearse(__u32 set, __u32 peer, const struct pkt *p)
{
	struct dry none = {}, *d;
	int ok = !!allowed(set, peer, p->proto, p->asked);

	d = bpf_map_lookup_elem(&dries, &set);
	if (!d) {
		bpf_map_update_elem(&dries, &set, &none, BPF_NOEXIST);
		d = bpf_map_lookup_elem(&dries, &set);
	}
	if (d)
		__sync_fetch_and_add(ok ? &d->allowed : &d->denied, 1);
	return !ok;
}

/* fresh judges a flow's first packet: ALLOWED, or why not. */
static __noinline int fresh(struct __sk_buff *skb, struct port *pt, const struct pkt *p, const struct ip *remote, struct verdict *v)
{
	int dir = p->dir & 1;
	__u32 set = dir ? pt->set[TO] : pt->set[FROM];
	__u32 dry = dir ? pt->dry[TO] : pt->dry[FROM];
	struct config *c;
	struct gauge *g;
	__u32 zero = 0;
	__u64 yes;

	v->rule = 0;
	v->tell = 0;
	v->peer = number(pt->vni, remote, dir ? p->mark : 0);
	if (!v->peer)
		return NO_IDENTITY;
	if (!set && dir && (v->peer >= FIRST_FOREIGN || p->unbidden))
		return INGRESS;
	if (set) {
		yes = allowed(set, v->peer, p->proto, p->asked);
		if (!yes)
			return dir ? INGRESS : EGRESS;
		v->rule = yes;
	}
	if (pt->flags & LIMITED) {
		struct limit *l = bpf_map_lookup_elem(&limits, &p->ifindex);

		if (l && !take(&l->conns, dir, p->now))
			return CONN_LIMIT;
	}
	if (count(v->rule))
		v->tell = TELL;
	c = bpf_map_lookup_elem(&settings, &zero);
	if (c && c->sample && !v->tell) {
		g = bpf_map_lookup_elem(&gauges, &zero);
		if (g) {
			g->count++;
			v->tell = g->count % c->sample == 0;
		}
	}
	if (dry && rehearse(dry, v->peer, p))
		v->tell |= TELL | DRY;
	return ALLOWED;
}

/* told tells of a flow that was let in. */
static __noinline void told(struct __sk_buff *skb, struct port *pt, const struct pkt *p, const struct verdict *v)
{
	struct note n;

	n.ifindex = p->ifindex;
	n.vni = pt->vni;
	n.peer = v->peer;
	n.rule = v->rule;
	n.reason = ALLOWED;
	n.dir = p->dir;
	n.dry = v->tell & DRY;
	emit(skb, &n);
}

/* again judges a flow after a change of rules, by the side that began it: ALLOWED, or why not. */
static __noinline int again(struct port *pt, const struct pkt *p, const struct ip *remote, struct flow *f, struct verdict *v)
{
	int dir = f->dir & 1;
	__u32 set = dir ? pt->set[TO] : pt->set[FROM];
	__u16 asked;
	__u64 yes;

	if (p->proto == ICMP || p->proto == ICMP6)
		asked = p->rport == 0xffff && p->lport ? p->lport : (p->proto == ICMP ? 8 : 128) << 8; /* see icmp */
	else
		asked = dir ? p->lport : p->rport;
	if (!dir)
		v->peer = number(pt->vni, remote, 0);
	else
		v->peer = p->dir ? number(pt->vni, remote, p->mark) : f->peer;
	v->rule = 0;
	if (!v->peer)
		return NO_IDENTITY;
	if (!set)
		return dir && (v->peer >= FIRST_FOREIGN || (f->state & UNBIDDEN)) ? INGRESS : ALLOWED;
	yes = allowed(set, v->peer, p->proto, asked);
	v->rule = yes;
	return yes ? ALLOWED : dir ? INGRESS : EGRESS;
}

#define ABSENT 0
#define KNOWN 1
#define STALE 2

/* known says what a flow's entry is worth. */
static __always_inline int known(struct port *pt, struct flow *f, const struct pkt *p)
{
	__u64 age = p->now - f->seen, idle;

	if (f->life != pt->life)
		return ABSENT;
	if ((__s64)age > 0) { /* another CPU may be a tick ahead */
		int both = f->packets[FROM] && f->packets[TO];

		if (p->proto != TCP)
			idle = both ? both_ways : one_way;
		else if (both && (f->state & ESTABLISHED) && !(f->state & RESET) && (f->state & (FIN_FROM | FIN_TO)) != (FIN_FROM | FIN_TO))
			idle = tcp_idle;
		else
			idle = tcp_brief;
		if (age > idle)
			return ABSENT;
	}
	if (p->proto == TCP && (p->tcp & (TCP_SYN | TCP_ACK)) == TCP_SYN && (f->state & (FIN_FROM | FIN_TO | RESET)))
		return ABSENT; /* its ports are used once more */
	if (f->epoch != (f->dir & 1 ? pt->epoch[TO] : pt->epoch[FROM]))
		return STALE;
	if (p->dir == TO && p->mark != carried(f->peer))
		return STALE; /* the address has another owner, or he has other labels */
	return KNOWN;
}

static __always_inline __u8 state_of(const struct pkt *p, int begun)
{
	__u8 s = 0;

	if (p->proto != TCP)
		return 0;
	if (p->tcp & TCP_RST)
		s |= RESET;
	if (p->tcp & TCP_FIN)
		s |= p->dir ? FIN_TO : FIN_FROM;
	if ((p->tcp & TCP_ACK) && !(p->tcp & TCP_SYN) && p->dir == begun)
		s |= ESTABLISHED;
	return s;
}

/* seen notes one more packet of a flow. Each direction of a flow keeps to one CPU at a time, so nothing is atomic. */
static __always_inline void seen(struct flow *f, const struct pkt *p, __u32 len)
{
	__u8 s;

	if (f->seen != p->now)
		f->seen = p->now;
	if (p->dir == FROM) {
		f->packets[FROM]++;
		f->bytes[FROM] += len;
	} else {
		f->packets[TO]++;
		f->bytes[TO] += len;
	}
	if (p->proto == TCP) {
		s = state_of(p, f->dir);
		if ((f->state & s) != s)
			f->state |= s;
	}
}

static __always_inline void begin(struct flow *f, struct port *pt, const struct pkt *p, const struct verdict *v)
{
	f->seen = p->now;
	f->began = p->now;
	f->packets[FROM] = 0;
	f->packets[TO] = 0;
	f->bytes[FROM] = 0;
	f->bytes[TO] = 0;
	f->rule = v->rule;
	f->peer = v->peer;
	f->epoch = p->dir ? pt->epoch[TO] : pt->epoch[FROM];
	f->life = pt->life;
	f->dir = p->dir;
	f->state = p->unbidden && p->dir ? UNBIDDEN : 0;
	__builtin_memset(f->pad, 0, sizeof(f->pad));
}
