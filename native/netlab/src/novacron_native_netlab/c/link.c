#include "link.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ chance */

/* xoshiro256++ seeded by splitmix64, after Blackman and Vigna, https://prng.di.unimi.it */

static uint64_t rotated(uint64_t x, int by) { return x << by | x >> (64 - by); }

void random_seed(struct random *random, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        uint64_t z = seed += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        random->state[i] = z ^ z >> 31;
    }
}

double random_share(struct random *random)
{
    uint64_t *s = random->state, result = rotated(s[0] + s[3], 23) + s[0], t = s[1] << 17;

    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotated(s[3], 45);
    return (double)(result >> 11) * 0x1p-53;
}

/* ------------------------------------------------------------------- lists */

static void insert_after(struct segments *list, struct segment *place, struct segment *segment)
{
    segment->previous = place;
    segment->next = place ? place->next : list->first;
    if (segment->next)
        segment->next->previous = segment;
    else
        list->last = segment;
    if (place)
        place->next = segment;
    else
        list->first = segment;
    list->count++;
    list->bytes += segment->size;
}

static struct segment *take_first(struct segments *list)
{
    struct segment *segment = list->first;

    list->first = segment->next;
    if (list->first)
        list->first->previous = NULL;
    else
        list->last = NULL;
    list->count--;
    list->bytes -= segment->size;
    return segment;
}

static void count(struct counter *counter, const struct segment *segment)
{
    counter->packets++;
    counter->bytes += segment->size;
}

/* ----------------------------------------------------------------- figures */

void link_init(struct link *link, uint64_t seed, void (*drop)(void *, struct segment *), void *context)
{
    memset(link, 0, sizeof *link);
    link->drop = drop;
    link->context = context;
    link->head_done = -1;
    /* Streams of their own: the n-th packet has the same fate whatever else is switched on. */
    random_seed(&link->loss_random, seed * 3);
    random_seed(&link->jitter_random, seed * 3 + 1);
    random_seed(&link->reorder_random, seed * 3 + 2);
}

static int is_share(double x) { return x >= 0 && x <= 1; }
static int is_time(double x) { return x >= 0 && x <= 600e9; }

int link_set(struct link *link, const struct figures *f, const char **reason)
{
    *reason = NULL;
    if (!(f->rate == 0 || (f->rate >= 125 && f->rate <= 125e9)))
        *reason = "rate is 0 (no limit) or 125 to 125000000000 bytes per second";
    else if (!is_time(f->delay) || !is_time(f->jitter) || !is_time(f->reorder_by))
        *reason = "delay, jitter and reorder_by are 0 to 600000000000 ns";
    else if (!is_share(f->loss) || !is_share(f->burst_begin) || !is_share(f->burst_end) ||
             !is_share(f->burst_loss) || !is_share(f->reorder))
        *reason = "loss, burst_begin, burst_end, burst_loss and reorder are shares from 0 to 1";
    else if (!(f->queue >= 0 && f->queue <= (double)LINK_HELD_MAX))
        *reason = "queue is 0 to 1073741824 bytes";
    if (*reason)
        return -1;
    link->figures = *f;
    link->head_done = -1;
    return 0;
}

void link_set_trace(struct link *link, struct trace trace)
{
    free(link->trace.at_ms);
    link->trace = trace;
    link->opportunity = 0;
    link->opportunity_left = 0;
    link->head_done = -1;
}

int link_add_outage(struct link *link, uint64_t begin, uint64_t end, uint64_t now)
{
    size_t kept = 0;

    for (size_t i = 0; i < link->outage_count; i++)
        if (link->outages[i].end > now)
            link->outages[kept++] = link->outages[i];
    link->outage_count = kept;
    if (kept == LINK_OUTAGES_MAX)
        return -1;
    link->outages[link->outage_count++] = (struct outage){ begin, end };
    return 0;
}

int link_is_down(const struct link *link, uint64_t now)
{
    for (size_t i = 0; i < link->outage_count; i++)
        if (link->outages[i].begin <= now && now < link->outages[i].end)
            return 1;
    return 0;
}

/* ------------------------------------------------------------- transmitter */

static double opportunity_at(const struct trace *trace, uint64_t number)
{
    uint64_t period = trace->at_ms[trace->count - 1];

    return 1e6 * ((double)(number / trace->count * period) + trace->at_ms[number % trace->count]);
}

/* The first opportunity of a trace at `when` or later. */
static uint64_t opportunity_from(const struct trace *trace, double when)
{
    double period = 1e6 * trace->at_ms[trace->count - 1];
    uint64_t rounds = (uint64_t)(when / period), low, high;

    low = (rounds ? rounds - 1 : 0) * trace->count;
    high = (rounds + 1) * trace->count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;

        if (opportunity_at(trace, middle) < when)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* When the first packet of the queue will have been sent. */
static void time_head(struct link *link)
{
    const struct segment *head = link->queue.first;
    double arrived = (double)head->arrived - head->credit;
    double begin = link->free_at > arrived ? link->free_at : arrived;

    if (begin < 0)
        begin = 0;
    if (link->trace.count) {
        double need = head->size;

        link->head_opportunity = link->opportunity;
        link->head_left = link->opportunity_left;
        /* What nobody used in time is gone. */
        if (opportunity_at(&link->trace, link->opportunity) < arrived) {
            link->head_opportunity = opportunity_from(&link->trace, arrived > 0 ? arrived : 0);
            link->head_left = 0;
        }
        if (link->head_left <= 0)
            link->head_left = TRACE_OPPORTUNITY;
        while (need > link->head_left) {
            need -= link->head_left;
            link->head_left = TRACE_OPPORTUNITY;
            link->head_opportunity++;
        }
        link->head_left -= need;
        link->head_done = opportunity_at(&link->trace, link->head_opportunity);
        if (link->head_left <= 0)
            link->head_opportunity++;
    } else {
        link->head_done = begin;
        if (link->figures.rate > 0)
            link->head_done += head->size * 1e9 / link->figures.rate;
    }
}

static int is_lost(struct link *link)
{
    const struct figures *f = &link->figures;
    double loss = f->loss;

    if (f->burst_begin > 0) {
        double change = link->in_burst ? f->burst_end : f->burst_begin;

        if (random_share(&link->loss_random) < change)
            link->in_burst = !link->in_burst;
        if (link->in_burst)
            loss = f->burst_loss;
    } else {
        link->in_burst = 0;
    }
    return random_share(&link->loss_random) < loss;
}

/* A packet that left the transmitter at `sent`. */
static void fly(struct link *link, struct segment *segment, uint64_t sent)
{
    const struct figures *f = &link->figures;
    struct segment *place = link->flight.last;
    double due;

    if (sent < segment->arrived)
        sent = segment->arrived;
    due = (double)sent + f->delay;
    if (f->jitter > 0) {
        due += (2 * random_share(&link->jitter_random) - 1) * f->jitter;
        if (due < (double)sent)
            due = (double)sent;
    }
    segment->due = (uint64_t)due;
    if (segment->due < link->latest_due)
        segment->due = link->latest_due;
    link->latest_due = segment->due;
    /* Late ones are overtaken by those behind them, which do not wait. */
    if (f->reorder > 0 && random_share(&link->reorder_random) < f->reorder)
        segment->due += (uint64_t)f->reorder_by;
    while (place && place->due > segment->due)
        place = place->previous;
    insert_after(&link->flight, place, segment);
}

static void transmit(struct link *link, uint64_t now)
{
    while (link->queue.first) {
        struct segment *segment;
        int lost;

        if (link->head_done < 0)
            time_head(link);
        if (link->head_done > (double)now)
            return;
        link->free_at = link->head_done;
        link->opportunity = link->head_opportunity;
        link->opportunity_left = link->head_left;
        link->head_done = -1;
        segment = take_first(&link->queue);
        /* Asked for every packet, so that an outage does not change the fate of later ones. */
        lost = is_lost(link);
        if (link_is_down(link, (uint64_t)link->free_at)) {
            count(&link->counters.outage, segment);
            link->drop(link->context, segment);
        } else if (lost) {
            count(&link->counters.lost, segment);
            link->drop(link->context, segment);
        } else {
            fly(link, segment, (uint64_t)ceil(link->free_at));
        }
    }
}

/* --------------------------------------------------------------- in and out */

void link_offer(struct link *link, struct segment *segment)
{
    int limited = link->figures.rate > 0 || link->trace.count;
    double queued;

    transmit(link, segment->arrived);
    count(&link->counters.in, segment);
    queued = (double)(link->queue.bytes + segment->size);
    if ((limited && queued > link->figures.queue) ||
        queued + (double)link->flight.bytes > (double)LINK_HELD_MAX) {
        count(&link->counters.taildrop, segment);
        link->drop(link->context, segment);
        return;
    }
    if (limited && queued > (double)link->counters.queue_max)
        link->counters.queue_max = (uint64_t)queued;
    insert_after(&link->queue, link->queue.last, segment);
    transmit(link, segment->arrived);
}

struct segment *link_take(struct link *link, uint64_t now)
{
    struct segment *segment;

    transmit(link, now);
    segment = link->flight.first;
    if (!segment || segment->due > now)
        return NULL;
    count(&link->counters.forwarded, segment);
    return take_first(&link->flight);
}

uint64_t link_next(const struct link *link)
{
    uint64_t next = link->flight.first ? link->flight.first->due : LINK_NEVER;

    if (link->queue.first && link->head_done >= 0) {
        double shortest = link->figures.delay - link->figures.jitter;
        double done = ceil(link->head_done + (shortest > 0 ? shortest : 0));

        if (done < (double)next)
            next = (uint64_t)done;
    } else if (link->queue.first) {
        return 0;               /* new figures: ask the transmitter */
    }
    return next;
}
