#include "simulate.h"

#include "command.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PACKETS_MAX 10000000u

static const char *const fates[] = { "forwarded", "lost", "taildrop", "outage" };
enum fate { FORWARDED, LOST, TAILDROP, OUTAGE };

struct simulation {
    struct link link;
    int each;                           /* print every packet */
    double delay_sum, delay_least, delay_most;
    uint64_t out_of_order, latest;
};

static enum fate fate_of_dropped(const struct link *link, struct counters before)
{
    return link->counters.lost.packets > before.lost.packets         ? LOST
           : link->counters.taildrop.packets > before.taildrop.packets ? TAILDROP
                                                                       : OUTAGE;
}

static struct counters seen;

static void tell(struct simulation *simulation, const struct segment *segment, enum fate fate,
                 uint64_t at)
{
    if (simulation->each)
        printf("{\"packet\":%u,\"fate\":\"%s\",\"at_ns\":%llu}\n", segment->offset, fates[fate],
               (unsigned long long)at);
}

static void dropped(void *context, struct segment *segment)
{
    struct simulation *simulation = context;

    tell(simulation, segment, fate_of_dropped(&simulation->link, seen), segment->arrived);
    seen = simulation->link.counters;
    free(segment);
}

static void take_until(struct simulation *simulation, uint64_t now)
{
    for (;;) {
        uint64_t next = link_next(&simulation->link);
        struct segment *segment;
        double delay;

        if (next > now)
            return;
        segment = link_take(&simulation->link, next);
        if (!segment)
            continue;                   /* something was transmitted, or dropped */
        delay = (double)(segment->due - segment->arrived);
        simulation->delay_sum += delay;
        if (simulation->link.counters.forwarded.packets == 1 || delay < simulation->delay_least)
            simulation->delay_least = delay;
        if (delay > simulation->delay_most)
            simulation->delay_most = delay;
        if (segment->offset < simulation->latest)
            simulation->out_of_order++;
        else
            simulation->latest = segment->offset;
        tell(simulation, segment, FORWARDED, segment->due);
        free(segment);
    }
}

static void print_counter(const char *name, struct counter counter)
{
    printf("\"%s_packets\":%llu,\"%s_bytes\":%llu,", name, (unsigned long long)counter.packets,
           name, (unsigned long long)counter.bytes);
}

int simulate(int count, char **words)
{
    static struct simulation simulation;
    struct link *link = &simulation.link;
    struct figures figures = { 0 };
    double packets = 1000, size = 1500, interval = 0, seed = 1;
    const char *reason = NULL, *trace_path = NULL;
    struct { const char *name; double *value; } loads[] = {
        { "packets=", &packets }, { "size=", &size }, { "interval=", &interval }, { "seed=", &seed },
    };
    struct trace trace = { 0 };
    double last = 0;
    uint64_t outages[LINK_OUTAGES_MAX][2];
    size_t outage_count = 0;

    for (int i = 0; i < count; i++) {
        int known = 0;

        for (size_t k = 0; k < sizeof loads / sizeof *loads; k++)
            if (!strncmp(words[i], loads[k].name, strlen(loads[k].name))) {
                char *end;

                *loads[k].value = strtod(words[i] + strlen(loads[k].name), &end);
                known = !*end;
            }
        if (!strncmp(words[i], "trace=", 6)) {
            trace_path = words[i] + 6;
            known = 1;
        } else if (!strncmp(words[i], "outage=", 7) && outage_count < LINK_OUTAGES_MAX) {
            unsigned long long begin, length;

            known = sscanf(words[i] + 7, "%llu+%llu", &begin, &length) == 2;
            if (known) {
                outages[outage_count][0] = begin;
                outages[outage_count++][1] = begin + length;
            }
        } else if (!strcmp(words[i], "each")) {
            simulation.each = known = 1;
        }
        if (!known && command_figure(&figures, words[i], &reason)) {
            fprintf(stderr, "netlab: %s: %s\n", words[i], reason);
            return 2;
        }
    }
    if (!(packets >= 0 && packets <= PACKETS_MAX && size >= 1 && size <= 65535 && interval >= 0 &&
          interval <= 1e12 && seed >= 0 && seed <= 1e15)) {
        fprintf(stderr, "netlab: packets, size, interval or seed is out of range\n");
        return 2;
    }
    if (trace_path && command_read_trace(trace_path, &trace, &reason)) {
        fprintf(stderr, "netlab: %s: %s\n", trace_path, reason);
        return 2;
    }
    link_init(link, (uint64_t)seed, dropped, &simulation);
    if (link_set(link, &figures, &reason)) {
        fprintf(stderr, "netlab: %s\n", reason);
        return 2;
    }
    link_set_trace(link, trace);
    for (size_t i = 0; i < outage_count; i++)
        link_add_outage(link, outages[i][0], outages[i][1], 0);
    for (double n = 0; n < packets; n++) {
        struct segment *segment = calloc(1, sizeof *segment);
        uint64_t now = (uint64_t)(n * interval);

        if (!segment)
            return 1;
        take_until(&simulation, now);
        segment->arrived = now;
        segment->offset = (uint32_t)n;
        segment->size = (uint32_t)size;
        link_offer(link, segment);
    }
    while (link_next(link) != LINK_NEVER)
        take_until(&simulation, link_next(link));
    last = link->free_at;
    putchar('{');
    print_counter("in", link->counters.in);
    print_counter("forwarded", link->counters.forwarded);
    print_counter("lost", link->counters.lost);
    print_counter("taildrop", link->counters.taildrop);
    print_counter("outage", link->counters.outage);
    printf("\"queue_max_bytes\":%llu,\"out_of_order\":%llu,\"delay_least_ns\":%.0f,"
           "\"delay_mean_ns\":%.0f,\"delay_most_ns\":%.0f,\"sent_at_ns\":%.0f}\n",
           (unsigned long long)link->counters.queue_max,
           (unsigned long long)simulation.out_of_order, simulation.delay_least,
           link->counters.forwarded.packets
               ? simulation.delay_sum / (double)link->counters.forwarded.packets : 0,
           simulation.delay_most, last);
    return 0;
}
