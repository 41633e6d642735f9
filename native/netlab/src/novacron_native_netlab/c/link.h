/*
 * One direction of a link, without clock and without I/O: packets and the time go in, packets come
 * out when they are due.
 *
 *     offer -> drop-tail queue -> transmitter (rate or trace) -> outage -> loss -> delay -> take
 *
 * All times are nanoseconds since the caller's epoch.
 */
#ifndef NETLAB_LINK_H
#define NETLAB_LINK_H

#include <stddef.h>
#include <stdint.h>

#define LINK_NEVER UINT64_MAX
#define LINK_OUTAGES_MAX 256
/* What one direction may hold, whatever its figures say: a link without a rate has no queue. */
#define LINK_HELD_MAX (1ull << 30)
/* What a transmitter may make up for, when its packets were read late. */
#define LINK_CREDIT_MAX_NS 1000000u
/* Bytes that one line of a delivery trace stands for. */
#define TRACE_OPPORTUNITY 1500u

/* One packet of the wire. The caller knows what `packet` is; `offset` and `length` are its cut. */
struct segment {
    struct segment *previous, *next;
    void *packet;
    uint64_t arrived, due;
    uint32_t credit;            /* ns by which it may have arrived earlier than it was read */
    uint32_t size;              /* bytes on the wire */
    uint32_t offset, length;
};

struct segments {
    struct segment *first, *last;
    uint64_t count, bytes;
};

struct random {
    uint64_t state[4];
};

/* What can be set; the defaults are a link that does nothing. */
struct figures {
    double rate;                        /* bytes per second; 0: no limit */
    double delay, jitter;               /* ns; the jitter goes both ways and keeps the order */
    double loss;                        /* share of packets, 0 to 1; in the good state of bursts */
    double burst_begin, burst_end;      /* chance per packet that a burst begins, ends */
    double burst_loss;                  /* share of packets that is lost in a burst */
    double queue;                       /* bytes */
    double reorder, reorder_by;         /* share of packets that arrive so many ns late */
};

struct counter {
    uint64_t packets, bytes;
};

struct counters {
    struct counter in, forwarded, lost, taildrop, outage;
    uint64_t queue_max;                 /* bytes */
};

struct outage {
    uint64_t begin, end;
};

struct trace {
    uint32_t *at_ms;                    /* of each opportunity, rising; the last one is the period */
    size_t count;
};

struct link {
    struct figures figures;
    struct trace trace;
    struct outage outages[LINK_OUTAGES_MAX];
    size_t outage_count;
    void (*drop)(void *context, struct segment *);
    void *context;

    /* The rest is the link's own. */
    struct random loss_random, jitter_random, reorder_random;
    int in_burst;
    double free_at;                     /* when the transmitter has sent what it has begun */
    uint64_t opportunity;               /* the trace's next, counted from the first round */
    double opportunity_left;            /* bytes */
    double head_done;                   /* when the queue's first packet is sent; < 0: unknown */
    uint64_t head_opportunity;
    double head_left;
    uint64_t latest_due;
    struct segments queue, flight;
    struct counters counters;
};

/* `drop` gets each segment that the link does not deliver. */
void link_init(struct link *, uint64_t seed, void (*drop)(void *, struct segment *), void *context);

/* Take new figures; packets in the queue are sent by them, packets under way arrive as they were
 * due. Returns 0, or -1 with a reason if they make no sense. */
int link_set(struct link *, const struct figures *, const char **reason);

/* Replace the trace (taken over; count 0: none). */
void link_set_trace(struct link *, struct trace);

/* The link is down from `begin` to `end`. Returns 0, or -1 if there are too many outages. */
int link_add_outage(struct link *, uint64_t begin, uint64_t end, uint64_t now);
int link_is_down(const struct link *, uint64_t now);

/* A packet arrives (arrived, credit, size and packet are set). */
void link_offer(struct link *, struct segment *);

/* The next packet that is due at `now` or before, or NULL. It is the caller's then. */
struct segment *link_take(struct link *, uint64_t now);

/* When there may be something to take, LINK_NEVER if the link is empty. */
uint64_t link_next(const struct link *);

void random_seed(struct random *, uint64_t seed);
double random_share(struct random *);   /* 0 <= x < 1 */

#endif
