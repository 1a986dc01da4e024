/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* Reading packets. What every packet has is read where it lies; what few have is copied. */
#pragma once
#include "judge.h"

struct eth {
	__u32 dst_a;
	__u16 dst_b;
	__u16 src_a; /* the source is as odd as the destination is even */
	__u32 src_b;
	__u16 type;
} __attribute__((packed));

struct v4 {
	__u8 vihl, tos;
	__u16 len, id, off;
	__u8 ttl, proto;
	__u16 sum;
	__u32 src, dst;
};

struct v6 {
	__u32 flow;
	__u16 len;
	__u8 next, hops;
	struct ip src, dst;
};

struct l4 { /* the first bytes of TCP, UDP, SCTP and ICMP */
	__u16 a, b;
	__u16 c, d;
};

struct icmp {
	__u8 type, code;
	__u16 sum, id, seq;
};

struct arp {
	__u16 hw, proto;
	__u8 hwlen, protolen;
	__u16 op;
	__u8 sha[6];
	__u8 spa[4];
	__u8 tha[6];
	__u8 tpa[4];
};

#define L3 14

/* linear makes the first n bytes, or all there are, readable where they lie. Rarely is there anything to do. */
static __always_inline void linear(struct __sk_buff *skb, __u32 n)
{
	__u32 have = skb->data_end - skb->data;

	if (have < n && have < skb->len)
		bpf_skb_pull_data(skb, skb->len < n ? skb->len : n);
}

static __always_inline int ported(__u8 proto)
{
	return proto == TCP || proto == UDP || proto == SCTP;
}

static __always_inline __u32 l4_size(__u8 proto)
{
	return proto == TCP ? 20 : ported(proto) || proto == ICMP || proto == ICMP6 ? 8 : 0;
}

/* icmp gives an ICMP message its place among flows. An echo's number is a port of who asks, and
 * the other port is 0, and so that number 0 is nobody else's either, the key has who asked;
 * anything else has its type and code for one port and 0xffff for the other. */
static __always_inline int icmp(struct pkt *p, const struct icmp *h)
{
	__u8 ask = p->proto == ICMP ? 8 : 128, answer = p->proto == ICMP ? 0 : 129;
	__u16 id = bpf_ntohs(h->id);
	int mine = p->dir == FROM; /* who asks is the instance */

	p->asked = h->type << 8 | h->code;
	if (h->type == ask || h->type == answer) {
		if (h->type == answer) {
			mine = !mine;
			p->begins = 0;
		}
		p->lport = mine ? id : 0;
		p->rport = mine ? 0 : id;
		p->theirs = mine ? 0 : 256;
		return ALLOWED;
	}
	if (p->proto == ICMP) {
		if (h->type == 3 || h->type == 11 || h->type == 12)
			p->icmp_error = 1;
		else if (h->type == 4 || h->type == 5 || h->type == 9 || h->type == 10)
			return ICMP_TYPE;
	} else {
		if (h->type >= 1 && h->type <= 4)
			p->icmp_error = 1;
		else if (h->type < 128 || (h->type >= 130 && h->type <= 137) || h->type == 143)
			return ICMP_TYPE; /* neighbour discovery was looked at before */
	}
	p->lport = p->asked;
	p->rport = 0xffff;
	return ALLOWED;
}

/* ports_of fills in what the header after IP says. h has as many bytes as l4_size says. */
static __always_inline int ports_of(struct pkt *p, const struct l4 *h, __u8 tcp)
{
	__u16 a, b;

	p->tcp = tcp;
	if (ported(p->proto)) {
		a = bpf_ntohs(h->a);
		b = bpf_ntohs(h->b);
		if (p->dir == FROM) {
			p->lport = a;
			p->rport = b;
		} else {
			p->rport = a;
			p->lport = b;
		}
		p->asked = b;
		return ALLOWED;
	}
	if (p->proto == ICMP || p->proto == ICMP6)
		return icmp(p, (const struct icmp *)h);
	p->lport = p->rport = p->asked = 0;
	return ALLOWED;
}

/* far reads the header after IP where it does not lie in the usual place. */
static __always_inline int far(struct __sk_buff *skb, struct pkt *p)
{
	struct l4 h = {};
	__u32 size = l4_size(p->proto);
	__u8 tcp = 0;

	if (size) {
		if (p->l4 + size > skb->len || bpf_skb_load_bytes(skb, p->l4, &h, sizeof(h)))
			return SHORT;
		if (p->proto == TCP && bpf_skb_load_bytes(skb, p->l4 + 13, &tcp, 1))
			return SHORT;
	}
	return ports_of(p, &h, tcp);
}

#define EXTENSIONS 4
#define FIRST 1
#define LATER 2

/* extensions walks to the header after IPv6's own. It leaves FRAGMENT_LATER in p->fragmented where there is none. */
static __noinline int extensions(struct __sk_buff *skb, struct pkt *p)
{
	struct {
		__u8 next, len;
		__u16 off;
		__u32 id;
	} h;
	__u32 at = L3 + 40;
	__u8 next = p->proto, this;
	int i;

	for (i = 0; i <= EXTENSIONS; i++) {
		if (ported(next) || next == ICMP6) {
			p->proto = next;
			p->l4 = at;
			return ALLOWED;
		}
		/* A routing header of type 0 is a source route; of the others none leads to an instance. */
		if (i == EXTENSIONS || p->fragmented || (next == 0 && i) || (next != 0 && next != 60 && next != 44))
			return OPTIONS;
		if (bpf_skb_load_bytes(skb, at, &h, sizeof(h)))
			return SHORT;
		this = next;
		next = h.next;
		if (this == 44) {
			p->fragmented = FIRST;
			p->frag_id = h.id;
			at += 8;
			if (h.off & bpf_htons(0xfff8)) {
				p->fragmented = LATER;
				p->proto = next;
				return (bpf_ntohs(h.off) & 0xfff8) < l4_size(next) ? FRAGMENT : ALLOWED;
			}
		} else {
			at += (h.len + 1) * 8;
		}
	}
	return OPTIONS;
}

/* remember lets the later fragments of a packet follow the first. */
static __noinline int remember(struct port *pt, const struct pkt *p, const struct frag_key *k)
{
	struct frag f;

	f.seen = p->now;
	f.life = pt->life;
	f.epoch[FROM] = pt->epoch[FROM];
	f.epoch[TO] = pt->epoch[TO];
	f.pad = 0;
	bpf_map_update_elem(&frags, k, &f, BPF_ANY);
	return 0;
}

/* later judges a fragment that is not the first, by the first. */
static __noinline int later(struct port *pt, const struct pkt *p, const struct frag_key *k)
{
	struct frag *f = bpf_map_lookup_elem(&frags, k);

	if (!f || f->life != pt->life || f->epoch[FROM] != pt->epoch[FROM] || f->epoch[TO] != pt->epoch[TO])
		return FRAGMENT;
	if ((__s64)(p->now - f->seen) > (__s64)frag_time)
		return FRAGMENT;
	return ALLOWED;
}
