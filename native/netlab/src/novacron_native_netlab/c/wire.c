#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#ifndef TUN_F_USO4                      /* kernel headers before 6.2 */
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

/* Gathering costs accuracy and saves wake-ups: 2 % of the delay, within these. A packet is up to
 * half of that too early or too late, and none of it on average. */
#define QUANTUM_SHARE 50
#define QUANTUM_MIN 50000u
#define QUANTUM_MAX 1000000u
/* Reads in one round, so that what is due is not kept waiting by a flood. */
#define READS_MAX 64
#define SLEEP_MAX 1000000000u
/* Longer than this is no property of the machine, but somebody else's turn. */
#define OVERSLEEP_MAX 1000000u

static uint64_t began;

static uint64_t monotonic(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void wire_begin_clock(void) { began = monotonic(); }
uint64_t wire_now(void) { return monotonic() - began; }

int wire_open_tun(const char *netns, const char *name, int offload, const char **step)
{
    char path[256];
    int home, there, fd = -1, prefix = PACKET_PREFIX;
    unsigned features = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    struct ifreq request;

    memset(&request, 0, sizeof request);
    request.ifr_flags = (short)(IFF_TUN | IFF_NO_PI | (offload ? IFF_VNET_HDR : 0));
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    snprintf(path, sizeof path, "/run/netns/%s", netns);
    *step = "open the namespace";
    home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    there = open(path, O_RDONLY | O_CLOEXEC);
    if (home < 0 || there < 0)
        goto out;
    *step = "enter the namespace";
    if (setns(there, CLONE_NEWNET) < 0)
        goto out;
    *step = "open /dev/net/tun";
    fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0) {
        *step = "make the TUN device";
        if (ioctl(fd, TUNSETIFF, &request) < 0)
            goto fail;
        *step = "switch on the device's offload";
        if (offload && (ioctl(fd, TUNSETVNETHDRSZ, &prefix) < 0 ||
                        (ioctl(fd, TUNSETOFFLOAD, features | TUN_F_USO4 | TUN_F_USO6) < 0 &&
                         ioctl(fd, TUNSETOFFLOAD, features) < 0)))
            goto fail;
    }
    goto back;
fail:
    close(fd);
    fd = -1;
back:
    if (setns(home, CLONE_NEWNET) < 0) {
        *step = "return from the namespace";
        if (fd >= 0)
            close(fd);
        fd = -1;
    }
out:
    if (home >= 0)
        close(home);
    if (there >= 0)
        close(there);
    return fd;
}

static void give_back(void *context, struct segment *segment)
{
    struct wire *wire = context;

    packet_drop(&wire->packets, segment->packet);
    segment->next = wire->spare;
    wire->spare = segment;
}

int wire_init(struct wire *wire, const char *name, int from, int to, int offload, uint64_t seed)
{
    memset(wire, 0, sizeof *wire);
    snprintf(wire->name, sizeof wire->name, "%s", name);
    wire->from = from;
    wire->to = to;
    wire->packets.skip = offload ? PACKET_PREFIX : 0;
    wire->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    wire->quantum = QUANTUM_MIN;
    link_init(&wire->link, seed, give_back, wire);
    return wire->wake < 0 || pthread_mutex_init(&wire->lock, NULL) ? -1 : 0;
}

static struct segment *new_segment(struct wire *wire)
{
    struct segment *segment = wire->spare;

    if (!segment) {
        enum { SLAB = 256 };
        struct segment *slab = malloc(SLAB * sizeof *slab);

        if (!slab)
            return NULL;
        for (int i = 0; i < SLAB; i++) {
            slab[i].next = wire->spare;
            wire->spare = &slab[i];
        }
        segment = wire->spare;
    }
    wire->spare = segment->next;
    return segment;
}

/* Read what waits in the device. Returns how many reads that took. */
static int pull(struct wire *wire)
{
    int reads = 0;

    while (reads < READS_MAX) {
        struct packet *packet = packet_next(&wire->packets);
        ssize_t got;
        uint64_t now, unseen, early;
        uint32_t count;

        if (!packet)
            return reads;               /* out of memory: the device's queue overflows instead */
        got = read(wire->from, packet->raw, packet_room(&wire->packets));
        now = wire_now();
        if (got <= 0) {
            wire->drained = now;
            return reads;
        }
        reads++;
        /* It came some time since we last looked. Take the middle if we did not listen, and else
         * what it usually takes to wake up. */
        unseen = now - wire->drained;
        if (unseen > LINK_CREDIT_MAX_NS)
            unseen = LINK_CREDIT_MAX_NS;
        early = wire->gathering ? unseen / 2 : (uint64_t)wire->oversleep;
        if (early > wire->quantum / 2)
            early = wire->quantum / 2;
        now -= early < unseen ? early : unseen;
        count = packet_keep(&wire->packets, packet, (uint32_t)got);
        for (uint32_t i = 0; i < count; i++) {
            struct segment *segment = new_segment(wire);

            if (!segment) {
                packet_drop(&wire->packets, packet);
                continue;
            }
            segment->packet = packet;
            segment->arrived = now;
            segment->credit = (uint32_t)unseen;
            packet_cut(packet, i, &segment->offset, &segment->length, &segment->size);
            link_offer(&wire->link, segment);
        }
    }
    return reads;
}

/* Write what is due, neighbours of one super-packet as one. */
static void deliver(struct wire *wire)
{
    uint64_t now = wire_now(), limit = now + wire->quantum / 2;
    struct segment *segment = link_take(&wire->link, limit), *next;

    while (segment) {
        struct packet *packet = segment->packet;
        uint32_t offset = segment->offset, end = offset + segment->length, cuts = 0;

        if (now > segment->due) {
            uint64_t late = now - segment->due;

            wire->late_sum += (double)late;
            if (late > wire->late_max)
                wire->late_max = late;
        }
        for (;;) {
            cuts++;
            segment->next = wire->spare;
            wire->spare = segment;
            next = link_take(&wire->link, limit);
            if (!next || !packet->headers || next->packet != packet || next->offset != end)
                break;
            end += next->length;
            segment = next;
        }
        wire->writes++;
        if (packet_write(&wire->packets, packet, wire->to, offset, end - offset) < 0)
            wire->write_errors++;
        while (cuts--)
            packet_drop(&wire->packets, packet);
        segment = next;
    }
}

static void *run(void *context)
{
    struct wire *wire = context;
    struct sched_param priority = { .sched_priority = 1 };

    prctl(PR_SET_TIMERSLACK, 1ul);
    /* A real wire does not wait for a busy processor. */
    wire->realtime = sched_setscheduler(0, SCHED_RR, &priority) == 0;
    while (!__atomic_load_n(&wire->stopping, __ATOMIC_RELAXED)) {
        struct pollfd waits[] = { { .fd = wire->wake, .events = POLLIN }, { .fd = wire->from } };
        uint64_t next, now, sleep = SLEEP_MAX, quantum, drain;
        uint64_t early, awake;
        int reads, ready;

        pthread_mutex_lock(&wire->lock);
        reads = pull(wire);
        deliver(wire);
        next = link_next(&wire->link);
        quantum = wire->quantum;
        pthread_mutex_unlock(&wire->lock);

        now = wire_now();
        /* Whoever wakes up late goes to bed early: right on average, up to half a quantum. */
        early = (uint64_t)wire->oversleep;
        if (early > quantum / 2)
            early = quantum / 2;
        if (next != LINK_NEVER && next < now + sleep)
            sleep = next > now + early + quantum / 4 ? next - now - early : quantum / 4;
        /* While packets come, let them gather for a moment instead of waking up for each. */
        if (reads == READS_MAX)
            continue;
        wire->gathering = reads > 0;
        if (!reads)
            waits[1].events = POLLIN;
        else if (sleep > quantum)
            sleep = quantum;
        struct timespec wait = { (time_t)(sleep / 1000000000u), (long)(sleep % 1000000000u) };
        ready = ppoll(waits, 2, &wait, NULL);
        awake = wire_now();
        if (!ready && awake < now + sleep + OVERSLEEP_MAX)
            wire->oversleep += ((double)(awake - now) - (double)sleep - wire->oversleep) / 16;
        if (ready > 0 && waits[0].revents && read(wire->wake, &drain, sizeof drain) < 0)
            continue;
    }
    return NULL;
}

int wire_start(struct wire *wire) { return pthread_create(&wire->thread, NULL, run, wire); }

int wire_set(struct wire *wire, const struct figures *figures, const char **reason)
{
    double quantum = figures->delay / QUANTUM_SHARE;

    if (link_set(&wire->link, figures, reason))
        return -1;
    wire->quantum = quantum < QUANTUM_MIN ? QUANTUM_MIN
                    : quantum > QUANTUM_MAX ? QUANTUM_MAX : (uint64_t)quantum;
    return 0;
}

void wire_wake(struct wire *wire)
{
    uint64_t one = 1;

    /* Full means that it will wake up anyway. */
    (void)!write(wire->wake, &one, sizeof one);
}

void wire_stop(struct wire *wire)
{
    __atomic_store_n(&wire->stopping, 1, __ATOMIC_RELAXED);
    wire_wake(wire);
    pthread_join(wire->thread, NULL);
}

static void print_counter(FILE *out, const char *name, struct counter counter)
{
    fprintf(out, "\"%s_packets\":%llu,\"%s_bytes\":%llu,", name,
            (unsigned long long)counter.packets, name, (unsigned long long)counter.bytes);
}

void wire_print(FILE *out, struct wire *wire)
{
    struct link *link = &wire->link;
    struct counters counters;
    struct segments queue, flight;
    double late_mean;
    uint64_t late_max, writes, write_errors;
    int down;

    pthread_mutex_lock(&wire->lock);
    counters = link->counters;
    queue = link->queue;
    flight = link->flight;
    late_max = wire->late_max;
    writes = wire->writes;
    write_errors = wire->write_errors;
    late_mean = writes ? wire->late_sum / (double)writes : 0;
    down = link_is_down(link, wire_now());
    pthread_mutex_unlock(&wire->lock);

    fprintf(out, "{\"down\":%s,", down ? "true" : "false");
    print_counter(out, "in", counters.in);
    print_counter(out, "forwarded", counters.forwarded);
    print_counter(out, "lost", counters.lost);
    print_counter(out, "taildrop", counters.taildrop);
    print_counter(out, "outage", counters.outage);
    print_counter(out, "queue", (struct counter){ queue.count, queue.bytes });
    print_counter(out, "flight", (struct counter){ flight.count, flight.bytes });
    fprintf(out,
            "\"queue_max_bytes\":%llu,\"writes\":%llu,\"write_errors\":%llu,"
            "\"late_mean_s\":%.9f,\"late_max_s\":%.9f,\"realtime\":%s}",
            (unsigned long long)counters.queue_max, (unsigned long long)writes,
            (unsigned long long)write_errors, late_mean * 1e-9, (double)late_max * 1e-9,
            wire->realtime ? "true" : "false");
}
